"""What calibration is worth at one size: which text, how tokens count, and where planes go.

    python benches/calibration_study.py MODEL_DIR --text FILE... [--calibration FILE]

Linear layers at 3 planes (embedding and head raw); the last row spends the same bytes by predicted
cost. Writes benches/results/calibration_study.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, Budgets
from loop_singular_bit.cli.show import progress_on_stderr
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.calibrate import sample_sequences
from loop_singular_bit.compress.compressor import EvaluationOptions, evaluation_tokens
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.compress.guidance import Guidance
from loop_singular_bit.compress.openings import first_id
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import (
    SEQUENCE_TOKENS,
    Calibration,
    CalibrationOptions,
    Progress,
    make_calibration,
    make_plan,
    write_artefacts,
)
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.measure.quality import NetworkScorer, compare_tokens, summary

PLANES = 3


@dataclass(frozen=True)
class Variant:
    """spent: planes by predicted cost, in the bytes of PLANES everywhere."""

    name: str
    calibration: Calibration
    spent: bool = False


def squared(guidance: Guidance) -> Guidance:
    """Weights whose square roots, which the statistics take, are the given ones."""
    layers = tuple(
        {role: replace(each, weights=each.weights**2) for role, each in layer.items()}
        for layer in guidance.layers
    )
    head = replace(guidance.head, weights=guidance.head.weights**2)
    return replace(guidance, layers=layers, head=head)


def first_tokens(source: Source, network: OriginalNetwork, tokens: int) -> Tokens:
    """Sampled with nothing given but the first token."""
    first = first_id(source.companion_files(), source.spec.vocab)
    starts = [[first]] * (tokens // SEQUENCE_TOKENS)
    return sample_sequences(network, starts, SEQUENCE_TOKENS, 0)


def variants(
    source: Source, network: OriginalNetwork, options: argparse.Namespace, progress: Progress
) -> Iterator[Variant]:
    alone = first_tokens(source, network, options.calibration_tokens)
    yield Variant("sampled after the first token alone; tokens count alike", Calibration(alone))
    texts: list[tuple[str, str | None]] = [("sampled after openings", None)]
    if options.calibration:
        texts.append((options.calibration.name, options.calibration.read_text("utf-8")))
    for name, text in texts:
        asked = CalibrationOptions(options.calibration_tokens, text)
        with tempfile.TemporaryDirectory() as folder:
            found = make_calibration(source, network, asked, Path(folder), progress)
        assert found.guidance is not None
        yield Variant(f"{name}; tokens count alike", Calibration(found.tokens))
        full = replace(found, guidance=squared(found.guidance))
        yield Variant(f"{name}; by their weights", full)
        yield Variant(f"{name}; by the root of their weights", found)
        yield Variant(f"{name}; by the root; planes by cost", found, spent=True)


def measured(
    variant: Variant, source: Source, windows: dict[str, Tokens], reference: NetworkScorer,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    codec = CodecOptions(planes=PLANES, embedding="raw")
    plan = make_plan(source, codec, Budgets())
    if variant.spent:
        budgets = Budgets(plan.size_bytes_max / GIGABYTE)
        plan = make_plan(
            source, replace(codec, planes=None), budgets, 0, variant.calibration.sensitivity
        )
    with tempfile.TemporaryDirectory() as folder:
        write_artefacts(source, [(plan, Path(folder))], variant.calibration, 0, progress)
        with closing(ResidentNetwork(Path(folder))) as network:
            figures = {}
            for name, tokens in windows.items():
                scorer = NetworkScorer(network, tokens.shape[1] - 1)
                (found,) = compare_tokens([scorer], reference, tokens)
                figures[name] = asdict(summary(found))
    mean = float(np.mean([each["kl_mean"] for each in figures.values()]))
    print(f"{variant.name}: KL {mean:.4f}", {k: round(v["kl_mean"], 4) for k, v in figures.items()},
          flush=True)  # fmt: skip
    return {"name": variant.name, "size_bytes": plan.size_bytes, "kl_mean": mean, "texts": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096, help="of each text")
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    source = open_source(options.model)
    network = OriginalNetwork(source, resident_layers(source))
    windows = {
        path.name: evaluation_tokens(
            source, EvaluationOptions(path.read_text("utf-8"), 1024, options.tokens)
        )
        for path in options.text
    }
    reference = NetworkScorer(network, 1024, keep=True)
    with progress_on_stderr() as progress:
        rows = [
            measured(variant, source, windows, reference, progress)
            for variant in variants(source, network, options, progress)
        ]
    write_result(
        "calibration_study",
        {
            "command": "python benches/calibration_study.py MODEL_DIR --text FILE...",
            "model": Path(options.model).name,
            "planes": PLANES,
            "calibration_tokens": options.calibration_tokens,
            "rows": rows,
            "machine": machine_facts(),
        },
    )


if __name__ == "__main__":
    main()
