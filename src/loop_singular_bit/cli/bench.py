"""`lsb bench`: measured figures beside this machine's own limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from loop_singular_bit.cli.bench_quality import quality
from loop_singular_bit.cli.options import (
    directory_argument,
    json_flag,
    kv_option,
    quiet_flag,
    threads_option,
    unpack_flag,
)
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text
from loop_singular_bit.errors import TargetMissedError, UsageError


@click.group()
def bench() -> None:
    """Measure an artefact on this machine, or a model at many sizes."""


bench.add_command(quality)


@bench.command()
@directory_argument
@click.option("--prompt", default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--generate", default=128, show_default=True, help="Tokens generated after it.")
@click.option("--repeats", default=5, show_default=True, help="Repetitions; medians are shown.")
@kv_option
@unpack_flag
@threads_option
@json_flag
def speed(directory: Path, as_json: bool, threads: int | None, **flags: Any) -> None:
    """Tokens a second, weights in memory, and how near that is to what the machine allows.

    The floor is measured in the same run: reading the weights at the speed of the memory, or
    decoding them at the speed of the kernel in cache, whichever takes longer.

    \b
    lsb bench speed smollm2
    """
    from loop_singular_bit.measure.speed import SpeedOptions, measure_speed

    figures = measure_speed(directory, SpeedOptions(**flags), threads)
    if as_json:
        print_json(asdict(figures))
    else:
        click.echo(_markdown(asdict(figures)))


def _markdown(f: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = [
        ("model", f"{f['model']}, {f['planes']} planes, L = {f['window']}"),
        ("instruction set, threads", f"{f['instruction_set']}, {f['threads']}"),
        (f"prompt of {f['prompt_tokens']}",
         f"{f['prompt_per_second']:.1f} ± {f['prompt_deviation']:.1f} tokens/s"),
        (f"generation of {f['generated_tokens']}",
         f"{f['generated_per_second']:.2f} ± {f['generated_deviation']:.2f} tokens/s"),
        ("weights of a token", f"{f['weight_bytes'] / 1e9:.3f} GB"),
        ("weights read", f"{f['bytes_per_second'] / 1e9:.2f} GB/s"),
        ("weights multiplied", f"{f['weights_per_second'] / 1e9:.2f}e9 a second"),
        ("memory", f"{f['memory_bytes_per_second'] / 1e9:.2f} GB/s"),
        ("kernel in cache", f"{f['kernel_weights_per_second'] / 1e9:.2f}e9 weights/s"),
        ("ratio to the floor", f"{f['ratio_to_floor']:.2f}"),
        ("outside native code", f"{100 * f['python_share']:.1f} % of a token"),
    ]  # fmt: skip
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


@bench.command("make-shape")
@click.argument("shape")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="New directory."
)
@click.option(
    "--bpw",
    type=float,
    default=3.35,
    show_default=True,
    help="Bits per weight at most, every byte counted.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random weights.")
@quiet_flag
@json_flag
def make_shape(shape: str, output: Path, bpw: float, seed: int, quiet: bool, as_json: bool) -> None:
    """Write an artefact with the shapes of a real network and random weights.

    It takes the memory, the disk and the time of the real one, and says nothing about quality.
    SHAPE is mistral-7b, llama-2-7b, llama-3-8b, qwen2.5-1.5b, smollm2-135m, small or tiny.

    \b
    lsb bench make-shape mistral-7b -o mistral-7b-shape
    """
    from loop_singular_bit.compress.synthetic import SyntheticOptions, write_synthetic

    with progress_on_stderr(quiet) as progress:
        report = write_synthetic(SyntheticOptions(shape, bpw, seed), output, progress)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{output}: synthetic {shape}, {size_text(report['size_bytes'])}, "
        f"{report['bits_per_weight']:.3f} bits per weight, {report['seconds']:.0f} s"
    )


@bench.command()
@directory_argument
@click.option(
    "--ram-mb",
    default="400",
    show_default=True,
    help="Limit and budget of the run [10^6 bytes]; 0 or all: none. Several: 192,400,all.",
)
@click.option("--context", default=4096, show_default=True, help="Positions to reserve.")
@click.option("--prompt", default=1500, show_default=True, help="Tokens of the prompt.")
@click.option("--generate", default=200, show_default=True, help="Tokens generated after it.")
@click.option(
    "--cgroup",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Memory control group handed over for this: limit and count there.",
)
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Also write the JSON."
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write speed by budget as SVG."
)
@kv_option
@threads_option
@json_flag
def memory(
    directory: Path, ram_mb: str, cgroup: Path | None, save: Path | None, plot: Path | None,
    as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Run an artefact under a memory limit from a cold page cache: peak, disk, speed, floor.

    Several limits, with commas between, run one after another: one table, and the tokens must be
    the same under each. Without --cgroup, RLIMIT_DATA limits, and resident set and page cache are
    sampled. Exit code 3 when a limit was not kept or tokens differ.

    \b
    lsb bench memory mistral-7b-shape --ram-mb 400
    lsb bench memory mistral-7b-shape --ram-mb 192,400,1000,all --plot speed.svg
    lsb bench memory mistral-7b-shape --ram-mb 400 --cgroup GROUP --save memory.json
    """
    from loop_singular_bit.measure.budgets import check_same_tokens, speed_plot
    from loop_singular_bit.measure.memory_bench import MemoryOptions, measure_memory

    limits = [_ram_bytes(each) for each in ram_mb.split(",")]
    options = [MemoryOptions(ram_bytes=limit, group=cgroup, **flags) for limit in limits]
    figures = [measure_memory(directory, each) for each in options]
    runs = [asdict(each) | {"kept": each.kept} for each in figures]
    values = runs[0] if len(runs) == 1 else {"runs": runs}
    if save is not None:
        save.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    if plot is not None:
        plot.write_text(speed_plot(runs), "utf-8")
    if as_json:
        print_json(values)
    elif len(runs) == 1:
        print_table(figures[0].model, ("measured", ""), _memory_rows(runs[0]))
    else:
        print_table(figures[0].model, _BUDGET_COLUMNS, [_budget_row(run) for run in runs])
    for each, name in zip(figures, ram_mb.split(","), strict=True):
        if not each.kept:
            peak = size_text(each.use.peak_bytes)
            raise TargetMissedError(f"--ram-mb {name}: {each.outcome}, peak {peak}")
    check_same_tokens(runs)


_BUDGET_COLUMNS = (
    "--ram-mb", "peak", "prompt tokens/s", "tokens/s", "predicted", "floor", "read for a token",
)  # fmt: skip


def _budget_row(run: dict[str, Any]) -> list[str]:
    from loop_singular_bit.measure.budgets import budget_name

    name, peak, tokens = budget_name(run["limit_bytes"]), run["use"]["peak_bytes"], run["tokens"]
    if tokens is None:
        return [name, size_text(peak), run["outcome"], "", "", "", ""]
    return [
        name, size_text(peak), f"{tokens['prompt_per_second']:.2f}",
        f"{tokens['generated_per_second']:.3f}", f"{1 / run['predicted']['seconds']:.3f}",
        f"{1 / tokens['floor_seconds']:.3f}", size_text(tokens["token_read_bytes"]),
    ]  # fmt: skip


def _ram_bytes(ram_mb: str) -> int | None:
    from loop_singular_bit.budget import Budgets

    if ram_mb in ("0", "all"):
        return None
    try:
        return Budgets(ram_mb=float(ram_mb)).ram_bytes
    except ValueError as error:
        raise UsageError(f"--ram-mb {ram_mb!r}: must be a number or all") from error


def _memory_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    use, limit, cached = values["use"], values["limit_bytes"], values["cached_before_bytes"]
    rows = [
        ("limit", "none" if limit is None else size_text(limit)),
        ("outcome", values["outcome"]),
        ("counted by", use["method"]),
        ("page cache before", "cold" if cached == 0 else f"{size_text(cached)} NOT DROPPED"),
        ("peak with page cache", size_text(use["peak_bytes"])),
        ("most anonymous, most of files",
         f"{size_text(use['anonymous_bytes'])}, {size_text(use['file_bytes'])}"),
        ("lsb estimate", size_text(values["estimated_bytes"])),
        ("major faults, kills", f"{use['major_faults']}, {use['oom_kills']}"),
        ("read from disk", size_text(use["read_bytes"])),
    ]  # fmt: skip
    tokens = values["tokens"]
    return rows if tokens is None else rows + _token_rows(values, tokens)


def _token_rows(values: dict[str, Any], f: dict[str, Any]) -> list[tuple[str, str]]:
    ledger = ", ".join(f"{name} {size_text(size)}" for name, size in f["ledger"].items())
    return [
        ("ledger", f"{size_text(sum(f['ledger'].values()))}: {ledger}"),
        ("resident set, shared libraries too", size_text(f["resident_bytes"])),
        ("growth after the first token", size_text(f["growth_bytes"])),
        ("reader, threads", f"{f['reader']}, {f['threads']}"),
        ("open, first token", f"{f['open_seconds']:.2f} s, {f['first_token_seconds']:.2f} s"),
        (f"prompt of {values['prompt_tokens']}", f"{f['prompt_per_second']:.2f} tokens/s"),
        (f"generation of {values['generated_tokens']}",
         f"{f['generated_per_second']:.3f} ± {f['generated_deviation']:.3f} tokens/s"),
        ("predicted", f"{1 / values['predicted']['seconds']:.3f} tokens/s"),
        ("read for a token", size_text(f["token_read_bytes"])),
        ("disk while generating", f"{f['disk_bytes_per_second'] / 1e9:.3f} GB/s"),
        ("reader alone, taking turns", _seconds_text(f["reader_seconds"])),
        ("kernel alone", _seconds_text(f["kernel_seconds"])),
        ("ratio to the floor", f"{f['ratio_to_floor']:.2f} of {f['floor_seconds']:.3f} s"),
    ]  # fmt: skip


def _seconds_text(seconds: float | None) -> str:
    return "nothing to read" if seconds is None else f"{seconds:.3f} s a token"
