"""What a KV cache of fewer bits loses against one of 16, the same network, token by token.

    python benches/kv_quality.py MODEL TEXT [--kv BITS --kv ...]

MODEL is an artefact or an original. KL(16 bits || fewer) in nats a token, over windows that begin
with an empty cache. Writes benches/results/kv_quality.json; rows that were there of the same model
and text stay where --kv leaves their kind out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
KINDS = [bits for bits in KV_BITS if bits != "16"]

Row = dict[str, float | str]


def rows_of(network: Network, text: Text, words: str, kinds: Sequence[str]) -> list[Row]:
    """Figures of every context and kind of cache."""
    ids = text.encode(words, special=False)[: TOKENS + 1]
    rows: list[Row] = []
    for context in CONTEXTS:
        tokens = windows(ids, context, TOKENS)
        for bits in kinds:
            (found,) = compare([network], network, tokens, kv_bits=bits)
            row: Row = {
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
    parser.add_argument("--kv", action="append", choices=KINDS)
    options = parser.parse_args()
    kinds = options.kv or KINDS
    _native.set_threads(usable_cores())
    words = options.text.read_text("utf-8")
    if (options.model / WEIGHTS_FILE).is_file():
        kind = "artefact"
        rows = rows_of(ResidentNetwork(options.model), Text.open(options.model), words, kinds)
    else:
        kind = "original"
        with open_original(str(options.model)) as (network, text):
            rows = rows_of(network, text, words, kinds)
    values = {
        "command": "python benches/kv_quality.py MODEL TEXT",
        "model": f"{options.model.absolute().name}, {kind}",
        "text": options.text.name,
        "tokens": TOKENS,
    }
    rows += [row for row in rows_before(values) if row["bits"] not in kinds]
    rows.sort(key=lambda row: (row["context"], KINDS.index(str(row["bits"]))))
    write_result("kv_quality", {**values, "rows": rows, "machine": machine_facts()})


def rows_before(facts: dict[str, object]) -> list[Row]:
    """Rows of the file there is, if it is of the same model and text."""
    path = Path(__file__).parent / "results" / "kv_quality.json"
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    same = all(before.get(name) == value for name, value in facts.items())
    return before["rows"] if same else []


if __name__ == "__main__":
    main()
