"""`lsb bench`: measured figures beside this machine's own limits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from loop_singular_bit.cli.options import directory_argument, json_flag, kv_option, threads_option
from loop_singular_bit.cli.show import print_json


@click.group()
def bench() -> None:
    """Measure an artefact on this machine."""


@bench.command()
@directory_argument
@click.option("--prompt", default=512, show_default=True, help="Tokens of the prompt.")
@click.option("--generate", default=128, show_default=True, help="Tokens generated after it.")
@click.option("--repeats", default=5, show_default=True, help="Repetitions; medians are shown.")
@kv_option
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
    ]  # fmt: skip
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)
