"""`lsb run`: one prompt, one answer."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from loop_singular_bit.cli.options import (
    directory_argument,
    draft_option,
    json_flag,
    kv_option,
    ram_option,
    threads_option,
    unpack_flag,
)


@click.command("run")
@directory_argument
@click.argument("prompt")
@click.option("--raw", is_flag=True, help="Continue PROMPT as plain text, no chat template.")
@click.option("--max-tokens", default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", default=1.0, show_default=True, help="Nucleus sampling.")
@click.option("--top-k", default=0, show_default=True, help="Keep k tokens; 0 keeps all.")
@click.option("--min-p", default=0.0, show_default=True, help="Least share of the likeliest.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, help="End before this string; may be given again.")
@click.option("--context", type=click.IntRange(1), help="Positions to reserve.")
@draft_option
@kv_option
@unpack_flag
@ram_option
@threads_option
@json_flag
def run(directory: Path, prompt: str, raw: bool, as_json: bool, **flags: Any) -> None:
    """Answer PROMPT with the artefact in DIRECTORY.

    \b
    lsb run smol "What is the capital of France?"
    lsb run smol --raw "Once upon a time" --max-tokens 64 --temperature 0.8 --seed 1
    """
    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.engine.generate import Finish, GenerateOptions, generate
    from loop_singular_bit.engine.runtime import open_model
    from loop_singular_bit.engine.sampler import SamplingOptions

    sampling = SamplingOptions(
        flags["temperature"], flags["top_k"], flags["top_p"], flags["min_p"], flags["seed"]
    )
    options = GenerateOptions(flags["max_tokens"], sampling, tuple(flags["stop"]), flags["draft"])
    ram_bytes = Budgets(ram_mb=flags["ram_mb"]).ram_bytes
    with open_model(
        directory, ram_bytes=ram_bytes, context=flags["context"], threads=flags["threads"],
        kv_bits=flags["kv_bits"],
        unpack=flags["unpack"],
    ) as model, model.session() as session:  # fmt: skip
        if model.plan.spilled and not as_json:
            click.echo(_spill_notice(model), err=True)
        text = model.text
        ids = text.encode(prompt, special=True) if raw else text.encode_prompt(prompt)
        parts = []
        for event in generate(model, session, ids, options):
            parts.append(event.text)
            if not as_json:
                click.echo(event.text, nl=False)
                sys.stdout.flush()
            if isinstance(event, Finish):
                _report(event, "".join(parts), as_json)


def _spill_notice(model: Any) -> str:
    spilled, layers = model.plan.spilled, model.engine.network.spec.layers
    size_mb = model.engine.cache.on_disk_bytes / 1e6
    return (
        f"[keys and values of {spilled} of {layers} layers are on disk ({size_mb:.1f} MB): "
        "more --ram-mb or less --context keeps them in memory]"
    )


def _report(finish: Any, text: str, as_json: bool) -> None:
    """Speed and memory of the run, after the answer."""
    from loop_singular_bit.cli.show import print_json
    from loop_singular_bit.memory import peak_rss_bytes

    prompt_rate = finish.prompt_tokens / max(finish.prompt_seconds, 1e-9)
    rate = finish.completion_tokens / max(finish.generation_seconds, 1e-9)
    speculation = finish.speculation
    if as_json:
        print_json(
            {
                "text": text, "finish_reason": finish.reason, "prompt_tokens": finish.prompt_tokens,
                "completion_tokens": finish.completion_tokens, "prompt_per_second": prompt_rate,
                "generated_per_second": rate, "ram_peak_bytes": peak_rss_bytes(),
                "speculation": None if speculation is None else asdict(speculation),
            }
        )  # fmt: skip
        return
    drafts = ""
    if speculation is not None:
        drafts = f"{speculation.accepted} of {speculation.drafted} drafted tokens accepted in "
        drafts += f"{speculation.sweeps} sweeps, "
    click.echo()
    click.echo(
        f"[{finish.prompt_tokens} + {finish.completion_tokens} tokens, {prompt_rate:.0f} and "
        f"{rate:.1f} tokens/s, {drafts}peak {peak_rss_bytes() / 1e6:.0f} MB]",
        err=True,
    )
