"""`lsb demo`: the whole path on a real small model, every figure measured here."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop_singular_bit.cli.options import json_flag, quiet_flag, threads_option
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text

if TYPE_CHECKING:
    from loop_singular_bit.compress.compressor import CompressionResult
    from loop_singular_bit.compress.pipeline import Progress

PROMPT = "What is the capital of France? Answer in one sentence."
_HEADER = ("codec", "bits/weight", "ratio", "PPL", "loss %", "KL", "top-1 %", "MAE", "size")
# (what the table calls it, codec, planes, outlier ratio)
_ROWS = (
    ("INT8", "int8", None, 0.0),
    ("uniform 1-bit", "uniform1", None, 0.0),
    ("naive 2 % + 1-bit", "outlier1", None, 0.02),
    ("loops: 3 planes + 0.5 %", "planes", 3, 0.005),
    ("loops: 4 planes + 0.5 %", "planes", 4, 0.005),
)


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep the 4-plane artefact.")
@click.option("--model", help="Another model [default: SmolLM2-135M-Instruct, fetched once].")
@click.option("--tokens", default=2048, show_default=True, help="Tokens to evaluate on.")
@click.option("--calibration-tokens", default=4096, show_default=True, help="To calibrate on.")
@threads_option
@quiet_flag
@json_flag
def demo(
    output: Path | None, model: str | None, tokens: int, calibration_tokens: int,
    threads: int | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compress a real model five ways, compare, and let it answer a question.

    \b
    lsb demo
    lsb demo -o smol && lsb chat smol
    """
    from tempfile import TemporaryDirectory

    from loop_singular_bit.compress.demo_model import demo_model

    started = time.monotonic()
    with TemporaryDirectory(prefix="lsb-demo-") as folder, progress_on_stderr(quiet) as progress:
        source = model if model is not None else str(demo_model(progress))
        best = output if output is not None else Path(folder) / "demo"
        results = _compress_all(
            source, Path(folder), best, tokens, calibration_tokens, threads, progress
        )
        if not as_json:
            _show_table(Path(source).name, results)
        answer, speed = _answer(best, threads)
    seconds = time.monotonic() - started
    if as_json:
        rows = {name: dict(result) for (name, *_), result in zip(_ROWS, results, strict=True)}
        values = {"model": Path(source).name, "codecs": rows, "prompt": PROMPT, "answer": answer}
        print_json(values | {"generated_per_second": speed, "seconds": seconds})
        return
    click.echo(f"\n> {PROMPT}\n{answer}\n")
    click.echo(f"[4 planes, {speed:.1f} tokens/s; everything took {seconds:.0f} s]")
    if output is not None:
        click.echo(f"kept: {output} (try: lsb chat {output})")


def _show_table(model: str, results: list[CompressionResult]) -> None:
    title = (
        f"{model}: perplexity {results[0]['perplexity_original']:.2f} before; "
        f"{results[0]['eval_tokens']} tokens of Python's language reference"
    )
    rows = [_row(name, result) for (name, *_), result in zip(_ROWS, results, strict=True)]
    print_table(title, _HEADER, rows)


def _compress_all(
    source: str, folder: Path, best: Path, tokens: int, calibration_tokens: int,
    threads: int | None, progress: Progress,
) -> list[CompressionResult]:  # fmt: skip
    """One artefact for each row, the last one in `best`, all measured on the same tokens."""
    from loop_singular_bit.compress.allocate import CodecOptions
    from loop_singular_bit.compress.compressor import EvaluationOptions
    from loop_singular_bit.compress.pipeline import CalibrationOptions
    from loop_singular_bit.compress.study import Variant, compress_variants

    variants = [
        Variant(CodecOptions(codec=codec, planes=planes, outlier_ratio=ratio), folder / str(index))
        for index, (_, codec, planes, ratio) in enumerate(_ROWS)
    ]
    variants[-1] = replace(variants[-1], directory=best)
    return compress_variants(
        source, variants, CalibrationOptions(calibration_tokens), EvaluationOptions(tokens=tokens),
        threads, progress, runs=False,
    )  # fmt: skip


def _row(name: str, result: Any) -> tuple[str, ...]:
    return (
        name, f"{result['bits_per_weight']:.2f}", f"{result['compression_ratio']:.2f}x",
        f"{result['perplexity']:.4g}", f"{result['quality_loss']:+.3g}", f"{result['kl_mean']:.4f}",
        f"{100 * result['top1_agreement']:.1f}", f"{result['mean_absolute_error']:.2e}",
        size_text(result["size_bytes"]),
    )  # fmt: skip


def _answer(directory: Path, threads: int | None) -> tuple[str, float]:
    """What the artefact says to PROMPT, and its tokens a second."""
    from loop_singular_bit.engine.generate import Finish, GenerateOptions, generate
    from loop_singular_bit.engine.runtime import open_model

    with open_model(directory, threads=threads) as model, model.session() as session:
        ids = model.text.encode_prompt(PROMPT)
        events = list(generate(model, session, ids, GenerateOptions(max_tokens=48)))
    finish = next(event for event in events if isinstance(event, Finish))
    speed = finish.completion_tokens / max(finish.generation_seconds, 1e-9)
    return "".join(event.text for event in events).strip(), speed
