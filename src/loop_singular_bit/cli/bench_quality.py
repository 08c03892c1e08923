"""`lsb bench quality`: quality against size, ours beside the baselines and llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop_singular_bit.cli.options import json_flag, quiet_flag, read_text, threads_option
from loop_singular_bit.cli.show import print_json, progress_on_stderr, size_text
from loop_singular_bit.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from loop_singular_bit.compress.points import Point, PointsOptions
    from loop_singular_bit.measure.quality import Quality

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the study; what is finished there is kept.",
)
@click.option(
    "--points",
    help="Comma-separated bits per weight (with another --window: 3.9@10), int8, uniform1, "
    "outlier1, and llama.cpp's types "
    "[default: 2.0 to 4.5, the baselines, and llama.cpp with --gguf].",
)
@click.option(
    "--text",
    "texts",
    type=_FILE,
    multiple=True,
    help="Evaluation text, once for each kind [default: Python's language reference].",
)
@click.option("--context", default=1024, show_default=True, help="Tokens of one window.")
@click.option("--tokens", default=8192, show_default=True, help="Tokens to predict of each text.")
@click.option(
    "--calibration",
    type=_FILE,
    help="Calibration text [default: sampled from the model itself].",
)
@click.option("--calibration-tokens", default=16384, show_default=True, help="Tokens to use.")
@click.option("--seed", default=0, show_default=True, help="Of signs and sampling.")
@click.option("--gguf", type=_FILE, help="The model as a 16-bit GGUF file, for llama.cpp.")
@threads_option
@quiet_flag
@json_flag
def quality(model: str, output: Path, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Measure MODEL at many sizes: loss, KL and agreement against bits per weight.

    Every byte that inference needs counts. MAE is the mean absolute error of a weight, efficiency
    the bits of precision it leaves, log2(mean |W| / MAE), for each bit of size. The output
    directory gets the artefacts, quality.json, quality.md and quality.svg; a run that was stopped
    goes on where it was: the calibration, a point that is measured, or an artefact that is whole,
    is kept.

    \b
    lsb bench quality ./SmolLM2-135M-Instruct -o study --text wiki.txt --text code.txt
    lsb bench quality ./SmolLM2-135M-Instruct -o study --points 3.35,3.9,int8
    lsb bench quality ./SmolLM2-135M-Instruct -o study --gguf smollm2-f16.gguf
    """
    from loop_singular_bit.cli.quality_plot import require_plotting, write_plot
    from loop_singular_bit.compress.points import measure_points

    require_plotting()
    options = _options(flags)
    with progress_on_stderr(quiet) as progress:
        points = measure_points(model, output, options, progress)
    values = {"model": Path(model).name, "points": [asdict(point) for point in points]}
    table = markdown(points)
    (output / "quality.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    (output / "quality.md").write_text(table + "\n", "utf-8")
    write_plot(points, Path(model).name, output / "quality.svg")
    if as_json:
        print_json(values)
    else:
        click.echo(table)


def _options(flags: dict[str, Any]) -> PointsOptions:
    from loop_singular_bit.compress.pipeline import CalibrationOptions
    from loop_singular_bit.compress.points import (
        BASELINE_POINTS,
        OUR_POINTS,
        PEER_POINTS,
        PointsOptions,
    )

    names = (*OUR_POINTS, *BASELINE_POINTS, *(PEER_POINTS if flags["gguf"] else ()))
    if flags["points"] is not None:
        names = tuple(name for part in flags["points"].split(",") if (name := part.strip()))
    if not names:
        raise UsageError("--points: names no point")
    calibration = CalibrationOptions(
        flags["calibration_tokens"], read_text(flags["calibration"]), flags["seed"]
    )
    return PointsOptions(
        tuple(dict.fromkeys(names)), _texts(flags["texts"]), flags["context"], flags["tokens"],
        calibration, flags["gguf"], flags["threads"],
    )  # fmt: skip


def _texts(paths: Sequence[Path]) -> dict[str, str]:
    """Text of each kind, named after its file."""
    found: dict[str, str] = {}
    for path in paths:
        if path.stem in found:
            raise InputRefusedError(f"--text {path}: two texts are named {path.stem}")
        found[path.stem] = read_text(path) or ""
    return found


def markdown(points: Sequence[Point]) -> str:
    """The points as a Markdown table, by size."""
    texts = list(points[0].texts) if len(points[0].texts) > 1 else []
    header = ["", "bits/weight", "size", "ratio", "MAE", "efficiency", "loss", "KL", "KL 99.9 %",
              "top-1", *(f"loss, KL {name}" for name in texts)]  # fmt: skip
    rows = [_row(p, texts) for p in sorted(points, key=lambda p: p.bits_per_weight)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(point: Point, texts: Sequence[str]) -> list[str]:
    q, error, efficiency = point.quality, point.mean_absolute_error, point.efficiency
    return [
        f"{point.maker} {point.name}",
        f"{point.bits_per_weight:.3f}",
        size_text(point.size_bytes),
        f"{point.compression_ratio:.2f}x",
        "" if error is None else f"{error:.2e}",
        "" if efficiency is None else f"{efficiency:.2f}",
        f"{q.quality_loss:+.3g} ± {q.quality_loss_stderr:.2g} %",
        f"{q.kl_mean:.4f} ± {q.kl_stderr:.4f}",
        f"{q.kl_p999:.3f}",
        f"{100 * q.top1_agreement:.1f} %",
        *(_of_text(point.texts[name]) for name in texts),
    ]


def _of_text(q: Quality) -> str:
    return f"{q.quality_loss:+.3g} %, {q.kl_mean:.4f}"
