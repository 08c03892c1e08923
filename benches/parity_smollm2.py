"""The engine against transformers in float32, original weights, token by token of a text.

    python scripts/make_golden.py smollm2 HF_DIR TEXT REFERENCE.npy   (needs ".[parity]")
    python benches/parity_smollm2.py HF_DIR TEXT REFERENCE.npy

KL(transformers || engine) in nats a token. Writes benches/results/parity_smollm2.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.compress.original import open_original
from loop_singular_bit.engine.runtime import Engine, usable_cores

ROWS = 128  # rows whose distributions are in memory at once, in float64


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """float64: rounding of the normalisation would otherwise be most of the divergence."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergence(model: str, text: str, reference: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Divergence and agreement over the rows of reference [tokens, vocab]."""
    kl, same = [], []
    with open_original(model) as (network, reader_text):
        ids = reader_text.encode(text, special=False)[: len(reference)]
        engine = Engine(network, 1, len(ids), len(ids))
        hidden = engine.hidden(ids, 0, 0)
        for start in range(0, len(ids), ROWS):
            expected = log_softmax(reference[start : start + ROWS])
            found = log_softmax(engine.logits(hidden[start : start + ROWS]))
            kl.append((np.exp(expected) * (expected - found)).sum(axis=1))
            same.append(found.argmax(axis=1) == expected.argmax(axis=1))
    each = np.concatenate(kl)
    return {
        "mean_kl": float(each.mean()),
        "max_kl": float(each.max()),
        "top1": float(np.concatenate(same).mean()),
        "tokens": len(each),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="HF_DIR")
    parser.add_argument("text", type=Path)
    parser.add_argument("reference", type=Path, metavar="REFERENCE.npy")
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    reference = np.load(options.reference, mmap_mode="r")
    figures = divergence(options.model, options.text.read_text("utf-8"), reference)
    print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    write_result(
        "parity_smollm2",
        {
            "command": "python benches/parity_smollm2.py HF_DIR TEXT REFERENCE.npy",
            "model": "SmolLM2-135M-Instruct, weights as stored",
            "text": options.text.name,
            "reference": "transformers, float32",
            **figures,
            "machine": machine_facts(),
        },
    )


if __name__ == "__main__":
    main()
