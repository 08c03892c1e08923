"""`lsb estimate`: what a compression or a run would give and take, before any long work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop_singular_bit.cli.options import (
    budget_options,
    codec_from,
    codec_options,
    json_flag,
    kv_option,
    quiet_flag,
    read_text,
    threads_option,
)
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text
from loop_singular_bit.errors import UsageError

if TYPE_CHECKING:
    from loop_singular_bit.container import RecordPlan
    from loop_singular_bit.models.spec import ModelSpec


@click.command("estimate")
@click.argument("model")
@budget_options
@codec_options
@click.option("--calibration-tokens", default=16384, show_default=True, help="Tokens to use.")
@click.option(
    "--curve",
    is_flag=True,
    help="Predict the loss at many sizes: a short look at the weights, minutes for a large model.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the curve looks at the loss on [default: Python's language reference].",
)
@click.option("--context", type=click.IntRange(1), help="Positions a run reserves.")
@kv_option
@threads_option
@quiet_flag
@json_flag
def estimate(model: str, as_json: bool, **flags: Any) -> None:
    """Predict size, memory and speed for MODEL, or for an artefact that is there already.

    Reads headers only, and the disk and the processor are tried for a moment; refuses what cannot
    be met. --curve reads the weights too.

    \b
    lsb estimate ./SmolLM2-135M-Instruct --planes 4
    lsb estimate mistralai/Mistral-7B-v0.1 --storage-gb 4 --ram-mb 400
    lsb estimate ./SmolLM2-135M-Instruct --curve --max-loss 1
    lsb estimate ./smollm2 --ram-mb 100
    """
    if flags["curve"]:
        _refuse_no_curve(model, flags)
    facts = _facts(model, flags)
    if flags["curve"]:
        facts["curve"] = _curve(model, flags)
    if as_json:
        print_json(facts)
        return
    print_table(model, ("predicted", ""), [*_model_rows(facts), *_run_rows(facts)])
    if flags["curve"]:
        _print_curve(facts["curve"])


def _refuse_no_curve(model: str, flags: dict[str, Any]) -> None:
    """UsageError where there are no planes to choose."""
    if is_artefact(Path(model)):
        raise UsageError(f"--curve: {model} is an artefact; name the original model")
    if flags["planes"] is not None or flags["codec"] != "planes":
        raise UsageError("--curve chooses planes by size: leave --planes and --codec out")


def _curve(model: str, flags: dict[str, Any]) -> list[dict[str, float]]:
    from dataclasses import asdict

    from loop_singular_bit import _native
    from loop_singular_bit.compress.curve import loss_curve
    from loop_singular_bit.compress.source import open_source
    from loop_singular_bit.engine.runtime import usable_cores
    from loop_singular_bit.measure.default_text import default_text

    _native.set_threads(flags["threads"] or usable_cores())
    text = read_text(flags["text"]) or default_text()
    with progress_on_stderr(flags["quiet"]) as progress:
        points = loss_curve(
            open_source(model), codec_from(flags), text, flags["max_loss"], progress=progress
        )
    return [asdict(point) for point in points]


def _print_curve(points: list[dict[str, float]]) -> None:
    rows = [
        (
            f"{point['bits_per_weight']:.2f} bits, {size_text(int(point['size_bytes']))}",
            f"{point['loss_percent']:+.2f} % (KL {point['nats']:.4f})",
        )
        for point in points
    ]
    print_table("loss against size", ("size", "predicted loss"), rows)


def _model_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("parameters", f"{facts['parameters']:,}"),
        ("size", f"{size_text(facts['size_bytes'])} ({facts['size_bytes']:,} bytes)"),
        ("bits per weight", f"{facts['bits_per_weight']:.3f}"),
        ("compression ratio", f"{facts['compression_ratio']:.2f}x of 16-bit"),
    ]
    if "planes" in facts:
        planes = ", ".join(f"{k}: {v}" for k, v in facts["planes"].items())
        rows.append(("planes: matrices", planes))
        rows.append(("memory to compress", size_text(facts["compress_ram_bytes"])))
    return rows


def _run_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    run = facts["run"]
    rows = [
        ("memory of a run, all in memory", size_text(facts["ram_resident_bytes"])),
        ("memory of a run, layers streamed", size_text(facts["ram_streamed_bytes"])),
        ("tokens that share a pass over a prompt", str(run["rows"])),
        (
            "memory, kernel",
            f"{run['memory_seconds']:.3f} and {run['kernel_seconds']:.3f} s a token",
        ),
    ]
    if run["disk_bytes_per_second"] is not None:
        rows += [
            ("read for a token", size_text(run["sweep_bytes"])),
            ("checksums", f"{run['verify_seconds']:.3f} s a token"),
            ("disk", f"{run['disk_bytes_per_second'] / 1e9:.2f} GB/s"),
        ]
    return [*rows, ("speed", f"{run['tokens_per_second']:.2f} tokens/s")]


def _facts(model: str, flags: dict[str, Any]) -> dict[str, Any]:
    if is_artefact(Path(model)):
        return _of_artefact(Path(model), flags)
    return _of_source(model, flags)


def is_artefact(path: Path) -> bool:
    """Whether a directory holds an artefact, not a model to compress."""
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE

    return (path / WEIGHTS_FILE).is_file()


def _of_artefact(directory: Path, flags: dict[str, Any]) -> dict[str, Any]:
    from loop_singular_bit.container import ContainerReader
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE, check_records, read_spec
    from loop_singular_bit.engine.memory_plan import as_plans
    from loop_singular_bit.measure.size import size_facts
    from loop_singular_bit.models.spec import parameter_count

    spec = read_spec(directory)
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        check_records(reader, spec)
        records = as_plans(reader.records)
    size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    return {
        "model": str(directory),
        **size_facts(size, parameter_count(spec)),
        **_of_run(spec, records, directory / WEIGHTS_FILE, flags),
    }


def _of_source(model: str, flags: dict[str, Any]) -> dict[str, Any]:
    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.compress.estimate import compress_ram, planned_records
    from loop_singular_bit.compress.pipeline import CalibrationOptions, make_plan
    from loop_singular_bit.compress.source import open_source
    from loop_singular_bit.measure.size import size_facts
    from loop_singular_bit.models.spec import parameter_count

    budgets = Budgets(flags["storage_gb"], flags["ram_mb"], flags["max_loss"])
    options = codec_from(flags)
    calibration = CalibrationOptions(flags["calibration_tokens"])
    source = open_source(model)
    plan = make_plan(source, options, budgets)
    compress = compress_ram(source, calibration.tokens)
    records = planned_records(source, plan)
    return {
        "model": str(source.path),
        **size_facts(plan.size_bytes, parameter_count(source.spec)),
        "planes": {str(k): v for k, v in sorted(plan.planes.items())},
        **_of_run(source.spec, records, _largest_file(source.path), flags),
        "compress_ram_bytes": compress.total_bytes,
        "compress_ram": compress.entries,
    }


def _largest_file(path: Path) -> Path:
    """A file of the original, on whose disk the artefact is taken to be."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def _of_run(
    spec: ModelSpec, records: list[RecordPlan], on_disk: Path, flags: dict[str, Any]
) -> dict[str, Any]:
    """Memory by holder, and speed by what it follows from."""
    from dataclasses import asdict

    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.engine.memory_plan import (
        Setting,
        best_plan,
        resident_plan,
        streamed_plan,
    )
    from loop_singular_bit.engine.runtime import choose_context, usable_cores
    from loop_singular_bit.measure.predict import predict

    ram_bytes = Budgets(ram_mb=flags["ram_mb"]).ram_bytes
    threads = flags["threads"] or usable_cores()
    context = choose_context(spec, flags["context"])
    setting = Setting(context, kv_bits=flags["kv_bits"], threads=threads)
    plan = best_plan(spec, records, setting, ram_bytes)
    resident = resident_plan(spec, records, setting).ledger
    streamed = streamed_plan(spec, records, setting, ram_bytes).ledger
    prediction = predict(records, plan, on_disk, threads)
    return {
        "ram_resident_bytes": resident.total_bytes,
        "ram_streamed_bytes": streamed.total_bytes,
        "ram_resident": resident.entries,
        "ram_streamed": streamed.entries,
        "run": {
            "rows": plan.rows,
            **asdict(prediction),
            "tokens_per_second": prediction.tokens_per_second,
        },
    }
