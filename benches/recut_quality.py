"""An artefact of four planes cut to the size of three and of two, beside those sizes encoded.

    python benches/recut_quality.py MODEL [TEXT] [--calibration-tokens 16384] [--tokens 4096]

The sizes are those of 3 and 2 planes in every linear layer; both ways spend them by the same
predicted costs, so what differs is the encoding. Writes benches/results/recut_quality.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import machine_facts, write_result

from loop_singular_bit.budget import GIGABYTE, Budgets
from loop_singular_bit.cli.show import progress_on_stderr
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import EvaluationOptions
from loop_singular_bit.compress.pipeline import CalibrationOptions, Progress, make_plan
from loop_singular_bit.compress.recut import RecutOptions, recut
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.compress.study import Variant, compress_variants

PLANES = 4
SIZES = (3, 2)  # planes whose size is asked for
KEPT = (
    "size_bytes", "bits_per_weight", "planes", "perplexity", "perplexity_original",
    "quality_loss", "quality_loss_stderr", "kl_mean", "kl_stderr", "top1_agreement",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress_on_stderr() as progress:
        rows = measured(options, Path(folder), progress)
    for row in rows:
        print(
            f"{row['how']:8} {row['asked']}: {row['bits_per_weight']:.3f} bits, "
            f"KL {row['kl_mean']:.4f} ± {row['kl_stderr']:.4f}, loss {row['quality_loss']:+.1f} %"
        )
    write_result(
        "recut_quality",
        {
            "command": "python benches/recut_quality.py MODEL [TEXT]",
            "model": Path(options.model).resolve().name,
            "text": None if options.text is None else options.text.name,
            "calibration_tokens": options.calibration_tokens,
            "eval_tokens": options.tokens,
            "rows": rows,
            "machine": machine_facts(),
        },
    )


def measured(options: argparse.Namespace, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """The whole artefact, then for each size the one encoded at it and the one cut to it."""
    text = None if options.text is None else options.text.read_text("utf-8")
    evaluation = EvaluationOptions(text, 1024, options.tokens)
    source = open_source(options.model)
    sizes = {
        planes: make_plan(source, CodecOptions(planes=planes), Budgets()).size_bytes / GIGABYTE
        for planes in (PLANES, *SIZES)
    }
    variants = [Variant(CodecOptions(), folder / f"{p}", size) for p, size in sizes.items()]
    calibration = CalibrationOptions(options.calibration_tokens)
    encoded = compress_variants(
        options.model, variants, calibration, evaluation, None, progress, runs=False
    )
    rows = [_row("encoded", planes, result) for planes, result in zip(sizes, encoded, strict=True)]
    for planes in SIZES:
        asked = RecutOptions(Budgets(sizes[planes]), options.model, evaluation)
        cut = recut(folder / f"{PLANES}", folder / f"{planes}-cut", asked, progress)
        rows.append(_row("cut", planes, cut))
    return rows


def _row(how: str, planes: int, result: Mapping[str, Any]) -> dict[str, Any]:
    return {"how": how, "asked": f"{planes} planes"} | {name: result[name] for name in KEPT}


if __name__ == "__main__":
    main()
