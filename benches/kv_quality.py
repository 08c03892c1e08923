"""What a KV cache of fewer bits loses against one of 16, the same network, token by token.

    python benches/kv_quality.py MODEL TEXT

MODEL is an artefact or an original. KL(16 bits || fewer) in nats a token, over windows that begin
with an empty cache. Writes benches/results/kv_quality.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.compress.original import open_original
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ResidentNetwork
from loop_singular_bit.engine.kv import KV_BITS, cache_bytes
from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.text import Text
from loop_singular_bit.measure.quality import compare, windows

TOKENS = 4096
CONTEXTS = (1024, 2048)


def rows_of(network: Network, text: Text, words: str) -> list[dict[str, float | str]]:
    """Figures of every context and number of bits."""
    ids = text.encode(words, special=False)[: TOKENS + 1]
    rows: list[dict[str, float | str]] = []
    for context in CONTEXTS:
        tokens = windows(ids, context, TOKENS)
        for bits in list(KV_BITS)[1:]:
            (found,) = compare([network], network, tokens, kv_bits=bits)
            row: dict[str, float | str] = {
                "bits": bits,
                "context": context,
                "bytes_per_token": cache_bytes(network.spec, 1, 16, bits) // 16,
                "kl_mean": found.kl_mean,
                "kl_stderr": found.kl_stderr,
                "kl_median": found.kl_median,
                "kl_p999": found.kl_p999,
                "top1_agreement": found.top1_agreement,
                "quality_loss": found.quality_loss,
                "quality_loss_stderr": found.quality_loss_stderr,
            }
            print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("text", type=Path)
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    words = options.text.read_text("utf-8")
    if (options.model / WEIGHTS_FILE).is_file():
        kind = "artefact"
        rows = rows_of(ResidentNetwork(options.model), Text.open(options.model), words)
    else:
        kind = "original"
        with open_original(str(options.model)) as (network, text):
            rows = rows_of(network, text, words)
    values = {
        "command": "python benches/kv_quality.py MODEL TEXT",
        "model": f"{options.model.absolute().name}, {kind}",
        "text": options.text.name,
        "tokens": TOKENS,
        "rows": rows,
        "machine": machine_facts(),
    }
    write_result("kv_quality", values)


if __name__ == "__main__":
    main()
