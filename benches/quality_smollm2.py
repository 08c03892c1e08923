"""Quality of SmolLM2-135M off its grid, linear layers at L=7: 3 and 4 planes, 0 and 2 % outliers.

    python benches/quality_smollm2.py MODEL_DIR TEXT [--calibration FILE] [--tokens 4096]

Embedding and head stay raw, so the figures are those of the linear layers. Writes
benches/results/quality_smollm2.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from machine import machine_facts, write_result

from loop_singular_bit.cli.show import progress_on_stderr
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import EvaluationOptions
from loop_singular_bit.compress.pipeline import CalibrationOptions
from loop_singular_bit.compress.study import Variant, compress_variants

VARIANTS = [(3, 0.0), (4, 0.0), (3, 0.02), (4, 0.02)]
KEPT = (
    "bits_per_weight", "perplexity", "perplexity_original", "quality_loss", "quality_loss_stderr",
    "kl_mean", "kl_stderr", "kl_median", "kl_p999", "top1_agreement", "eval_tokens", "size_bytes",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    text = options.calibration.read_text("utf-8") if options.calibration else None
    with tempfile.TemporaryDirectory() as folder, progress_on_stderr() as progress:
        variants = [
            Variant(
                CodecOptions(planes=planes, outlier_ratio=ratio, embedding="raw"),
                Path(folder) / f"{planes}-{ratio}",
            )
            for planes, ratio in VARIANTS
        ]
        results = compress_variants(
            options.model,
            variants,
            CalibrationOptions(options.calibration_tokens, text),
            EvaluationOptions(options.text.read_text("utf-8"), 1024, options.tokens),
            None,
            progress,
        )
    rows = []
    for (planes, ratio), result in zip(VARIANTS, results, strict=True):
        rows.append({"planes": planes, "outlier_ratio": ratio} | {k: result[k] for k in KEPT})
        print(
            f"{planes} planes, {100 * ratio:g} % outliers: "
            f"PPL {result['perplexity_original']:.2f} -> {result['perplexity']:.2f} "
            f"({result['quality_loss']:+.1f} %), KL {result['kl_mean']:.4f}"
        )
    calibration = "self-sampled" if text is None else "given text"
    write_result(
        "quality_smollm2",
        {
            "command": "python benches/quality_smollm2.py MODEL_DIR TEXT",
            "model": "SmolLM2-135M-Instruct off its grid",
            "text": options.text.name,
            "calibration": f"{calibration}, {options.calibration_tokens} tokens",
            "rows": rows,
            "machine": machine_facts(),
        },
    )


if __name__ == "__main__":
    main()
