"""`lsb estimate`: what a compression or a run would give and take, before any long work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop_singular_bit.cli.options import (
    budget_options,
    codec_options,
    json_flag,
    kv_option,
    threads_option,
)
from loop_singular_bit.cli.show import print_json, print_table, size_text

if TYPE_CHECKING:
    from loop_singular_bit.container import RecordPlan
    from loop_singular_bit.models.spec import ModelSpec


@click.command("estimate")
@click.argument("model")
@budget_options
@codec_options
@click.option("--calibration-tokens", default=16384, show_default=True, help="Tokens to use.")
@click.option("--context", type=click.IntRange(1), help="Positions a run reserves.")
@kv_option
@threads_option
@json_flag
def estimate(model: str, as_json: bool, **flags: Any) -> None:
    """Predict size, memory and speed for MODEL, or for an artefact that is there already.

    Reads headers only, and the disk and the processor are tried for a moment; refuses what cannot
    be met.

    \b
    lsb estimate ./SmolLM2-135M-Instruct --planes 4
    lsb estimate mistralai/Mistral-7B-v0.1 --storage-gb 4 --ram-mb 400
    lsb estimate ./smollm2 --ram-mb 100
    """
    facts = _facts(model, flags)
    if as_json:
        print_json(facts)
        return
    print_table(model, ("predicted", ""), [*_model_rows(facts), *_run_rows(facts)])


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
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE

    directory = Path(model)
    if (directory / WEIGHTS_FILE).is_file():
        return _of_artefact(directory, flags)
    return _of_source(model, flags)


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
    from loop_singular_bit.compress.allocate import CodecOptions
    from loop_singular_bit.compress.estimate import compress_ram, planned_records
    from loop_singular_bit.compress.pipeline import CalibrationOptions, make_plan
    from loop_singular_bit.compress.source import open_source
    from loop_singular_bit.measure.size import size_facts
    from loop_singular_bit.models.spec import parameter_count

    budgets = Budgets(flags["storage_gb"], flags["ram_mb"], flags["max_loss"])
    options = CodecOptions(
        flags["codec"], flags["planes"], flags["window"], flags["block"], flags["outlier_ratio"],
        flags["embedding"],
    )  # fmt: skip
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
