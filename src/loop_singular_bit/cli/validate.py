"""`lsb validate`: bytes, tensors, the whole model and the targets, in one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop_singular_bit.cli.options import (
    directory_argument,
    evaluation_options,
    json_flag,
    quiet_flag,
    read_text,
    threads_option,
)
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text
from loop_singular_bit.errors import TargetMissedError

if TYPE_CHECKING:
    from loop_singular_bit.compress.tensor_errors import TensorError
    from loop_singular_bit.compress.validate import Validation

_UNITS = {"storage": "GB", "ram": "MB", "quality": "%"}


@click.command("validate")
@directory_argument
@click.option("--against", metavar="MODEL", help="The original it was made from.")
@click.option("--storage-gb", default=4.0, show_default=True, help="Target [10^9 bytes].")
@click.option("--ram-mb", default=400.0, show_default=True, help="Target of a run [10^6 bytes].")
@click.option("--max-loss", default=1.0, show_default=True, help="Target [percent].")
@evaluation_options
@threads_option
@quiet_flag
@json_flag
def validate(
    directory: Path, against: str | None, storage_gb: float, ram_mb: float, max_loss: float,
    text: Path | None, context: int, tokens: int, threads: int | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Check the artefact in DIRECTORY: checksums, every tensor, the whole model, the targets.

    With --against, every tensor is compared with the original's weights, plainly and as its inputs
    weigh it, and the model with the original. Without, there is no quality target. Exit code 3 when
    a target is missed.

    \b
    lsb validate smol --against ./SmolLM2-135M-Instruct
    lsb validate smol --ram-mb 192 --json
    """
    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.compress.compressor import EvaluationOptions
    from loop_singular_bit.compress.validate import ValidationOptions
    from loop_singular_bit.compress.validate import validate as run_validation

    options = ValidationOptions(
        against, Budgets(storage_gb, ram_mb, max_loss),
        EvaluationOptions(read_text(text), context, tokens), threads,
    )  # fmt: skip
    with progress_on_stderr(quiet) as progress:
        found = run_validation(directory, options, progress)
    if as_json:
        print_json(found.values())
    else:
        _print(found)
    if not found.passed:
        missed = [name for name, target in found.targets.items() if not target.met]
        wrong = [] if found.sound else ["values that are not finite numbers"]
        raise TargetMissedError(f"{directory}: missed: {', '.join([*missed, *wrong])}")


def _print(found: Validation) -> None:
    header = ("tensors", "planes", "relative error", "weighted by inputs", "finite")
    print_table(f"{found.artefact}, layer by layer", header, _layer_rows(found.tensors))
    print_table("the whole model", ("measured", ""), _model_rows(found))
    rows = [
        (name, f"{target.limit:g} {_UNITS[name]}", _number(target.measured, name),
         "met" if target.met else "MISSED")
        for name, target in found.targets.items()
    ]  # fmt: skip
    print_table("targets", ("target", "limit", "measured", ""), rows)


def _number(value: float | None, name: str) -> str:
    return "refused" if value is None else f"{value:.4g} {_UNITS[name]}"


def _layer_rows(tensors: list[TensorError]) -> list[tuple[str, ...]]:
    """A row for each layer: means over its matrices; and one for each tensor outside layers."""
    groups: dict[str, list[TensorError]] = {}
    for tensor in tensors:
        label = tensor.name if tensor.layer is None else f"layer {tensor.layer}"
        groups.setdefault(label, []).append(tensor)
    return [(label, *_group_row(group)) for label, group in groups.items()]


def _group_row(group: list[TensorError]) -> tuple[str, ...]:
    matrices = [tensor for tensor in group if tensor.encoding != "vector"] or group
    planes = sorted({tensor.planes for tensor in matrices})
    return (
        "-" if planes == [0] else " ".join(map(str, planes)),
        _mean([tensor.relative_error for tensor in matrices]),
        _mean([tensor.proxy_loss for tensor in matrices]),
        "yes" if all(tensor.finite for tensor in group) else "NO",
    )


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.5f}" if known else "-"


def _model_rows(found: Validation) -> list[tuple[str, str]]:
    from loop_singular_bit.cli.compress import quality_rows
    from loop_singular_bit.errors import BudgetError
    from loop_singular_bit.measure.quality import Quality

    values: dict[str, Any] = found.values()
    quality = found.quality
    rows = [("perplexity", f"{quality.perplexity:.3f} ± {quality.perplexity_stderr:.3f}")]
    if isinstance(quality, Quality):
        rows = quality_rows(values["quality"] | {"eval_tokens": quality.tokens})
    rows.append(("size", size_text(found.size["size_bytes"])))
    rows.append(("bits per weight", f"{found.size['bits_per_weight']:.3f}"))
    if isinstance(found.run, BudgetError):
        return [*rows, ("run", str(found.run))]
    rows.append(("run", found.run.outcome))
    rows.append(("peak with page cache", size_text(found.run.use.peak_bytes)))
    if found.run.tokens is not None:
        rows.append(("generation", f"{found.run.tokens.generated_per_second:.2f} tokens/s"))
    return rows
