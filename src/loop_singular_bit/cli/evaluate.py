"""`lsb eval`: perplexity, divergence, agreement, size, memory and speed of an artefact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loop_singular_bit.cli.compress import quality_rows
from loop_singular_bit.cli.options import (
    evaluation_options,
    exact_kv_option,
    json_flag,
    quiet_flag,
    ram_option,
    read_text,
    threads_option,
)
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text

if TYPE_CHECKING:
    from loop_singular_bit.compress.pipeline import Progress
    from loop_singular_bit.engine.network import Network
    from loop_singular_bit.engine.text import Text


@click.command("eval")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, path_type=Path))
@click.option("--against", metavar="MODEL", help="Original to compare with, or another artefact.")
@evaluation_options
@exact_kv_option
@ram_option
@threads_option
@quiet_flag
@json_flag
def evaluate(
    directory: Path, against: str | None, text: Path | None, context: int, tokens: int,
    kv_bits: str, ram_mb: float | None, threads: int | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure the artefact in DIR (or an original model), alone or --against another.

    \b
    lsb eval smol --against ./SmolLM2-135M-Instruct
    lsb eval smol --against ./SmolLM2-135M-Instruct --text wiki.txt --tokens 16384 --json
    """
    with progress_on_stderr(quiet) as progress:
        options = read_text(text), context, tokens
        result = _measure(directory, against, options, ram_mb, threads, kv_bits, progress)
    if as_json:
        print_json(result)
        return
    rows = [("perplexity", f"{result['perplexity']:.3f} ± {result['perplexity_stderr']:.3f}")]
    if against is not None:
        rows = quality_rows(result)
    if "size_bytes" in result:
        rows.append(("size", size_text(result["size_bytes"])))
        rows.append(("bits per weight", f"{result['bits_per_weight']:.3f}"))
        rows.append(("peak memory of a run", size_text(result["ram_peak_bytes"])))
        rows.append(("generation", f"{result['run']['generated_per_second']:.1f} tokens/s"))
    print_table(str(directory), ("measured", ""), rows)


def _measure(
    directory: Path, against: str | None, text: tuple[str | None, int, int],
    ram_mb: float | None, threads: int | None, kv_bits: str, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    from loop_singular_bit import _native
    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.compress.compressor import EvaluationOptions, evaluation_windows
    from loop_singular_bit.engine.runtime import usable_cores
    from loop_singular_bit.measure.quality import compare, perplexity

    started = time.monotonic()
    budgets = Budgets(ram_mb=ram_mb)
    _native.set_threads(usable_cores() if threads is None else threads)

    def done(part: int, total: int) -> None:
        progress("evaluate", part, total)

    with _opened(str(directory)) as (network, reader_text):
        tokens = evaluation_windows(reader_text, EvaluationOptions(*text), network.spec)
        if against is None:
            alone = perplexity(network, tokens, done, kv_bits)
            result: dict[str, Any] = asdict(alone)
        else:
            with _opened(against) as (original, _):
                result = asdict(compare([network], original, tokens, done, kv_bits)[0])
    result["eval_tokens"] = result.pop("tokens")
    result |= _artefact_facts(directory, budgets, threads, kv_bits)
    result["seconds"] = time.monotonic() - started
    result["artefact"] = str(directory)
    return result


@contextmanager
def _opened(model: str) -> Iterator[tuple[Network, Text]]:
    """An artefact or an original, with its text."""
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ResidentNetwork
    from loop_singular_bit.engine.text import Text

    if (Path(model) / WEIGHTS_FILE).is_file():
        network = ResidentNetwork(Path(model))
        try:
            yield network, Text.open(Path(model))
        finally:
            network.close()
        return
    from loop_singular_bit.compress.original import open_original

    with open_original(model) as found:
        yield found


def _artefact_facts(
    directory: Path, budgets: Any, threads: int | None, kv_bits: str
) -> dict[str, Any]:
    """Size and a measured run, for an artefact; nothing for an original."""
    from loop_singular_bit.compress.compressor import artefact_size_bytes
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
    from loop_singular_bit.measure.probe import RunRequest, probe_run
    from loop_singular_bit.measure.size import size_facts
    from loop_singular_bit.models.spec import parameter_count

    if not (directory / WEIGHTS_FILE).is_file():
        return {}
    run = probe_run(RunRequest(str(directory), budgets.ram_bytes, None, threads, kv_bits))
    return {
        **size_facts(artefact_size_bytes(directory), parameter_count(read_spec(directory))),
        "ram_peak_bytes": run.ram_peak_bytes,
        "run": asdict(run),
    }
