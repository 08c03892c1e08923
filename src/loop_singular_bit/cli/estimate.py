"""`lsb estimate`: what a compression would give and take, before any long work."""

from __future__ import annotations

from typing import Any

import click

from loop_singular_bit.cli.options import budget_options, codec_options, json_flag
from loop_singular_bit.cli.show import print_json, print_table, size_text


@click.command("estimate")
@click.argument("model")
@budget_options
@codec_options
@click.option("--calibration-tokens", default=16384, show_default=True, help="Tokens to use.")
@click.option("--context", type=click.IntRange(1), help="Positions a run reserves.")
@json_flag
def estimate(model: str, as_json: bool, **flags: Any) -> None:
    """Predict size, memory and time for MODEL. Reads headers only; refuses what cannot be met.

    \b
    lsb estimate ./SmolLM2-135M-Instruct --planes 4
    lsb estimate mistralai/Mistral-7B-v0.1 --storage-gb 4 --ram-mb 400
    """
    facts = _facts(model, flags)
    if as_json:
        print_json(facts)
        return
    rows = [
        ("parameters", f"{facts['parameters']:,}"),
        ("size", f"{size_text(facts['size_bytes'])} ({facts['size_bytes']:,} bytes)"),
        ("bits per weight", f"{facts['bits_per_weight']:.3f}"),
        ("compression ratio", f"{facts['compression_ratio']:.2f}x of 16-bit"),
        ("planes: matrices", ", ".join(f"{k}: {v}" for k, v in facts["planes"].items())),
        ("memory of a run, all in memory", size_text(facts["ram_resident_bytes"])),
        ("memory of a run, layers streamed", size_text(facts["ram_streamed_bytes"])),
        ("memory to compress", size_text(facts["compress_ram_bytes"])),
    ]
    print_table(model, ("predicted", ""), rows)


def _facts(model: str, flags: dict[str, Any]) -> dict[str, Any]:
    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.compress.allocate import CodecOptions
    from loop_singular_bit.compress.estimate import compress_ram, run_ram
    from loop_singular_bit.compress.pipeline import CalibrationOptions, make_plan
    from loop_singular_bit.compress.source import open_source
    from loop_singular_bit.engine.runtime import choose_context
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
    context = choose_context(source.spec, flags["context"])
    resident, streamed = run_ram(source, plan, context, budgets.ram_bytes)
    if budgets.ram_bytes is not None and resident.total_bytes > budgets.ram_bytes:
        streamed.require(budgets.ram_bytes, f"lower --context {context} or raise --ram-mb")
    compress = compress_ram(source, calibration.tokens)
    return {
        "model": str(source.path),
        **size_facts(plan.size_bytes, parameter_count(source.spec)),
        "planes": {str(k): v for k, v in sorted(plan.planes.items())},
        "ram_resident_bytes": resident.total_bytes,
        "ram_streamed_bytes": streamed.total_bytes,
        "ram_resident": resident.entries,
        "ram_streamed": streamed.entries,
        "compress_ram_bytes": compress.total_bytes,
        "compress_ram": compress.entries,
    }
