"""`lsb eval`: perplexity, divergence, agreement, size, memory and speed of an artefact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
    import numpy as np
    import numpy.typing as npt

    from loop_singular_bit.compress.compressor import EvaluationOptions
    from loop_singular_bit.compress.pipeline import Progress
    from loop_singular_bit.measure.quality import Perplexity, Quality, Scorer

    Windows = npt.NDArray[np.int64]


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

    With --ram-mb the artefact streams where it takes more; the original and what the comparison
    itself needs come on top.

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
    from loop_singular_bit.compress.compressor import EvaluationOptions
    from loop_singular_bit.engine.runtime import usable_cores

    started = time.monotonic()
    budgets = Budgets(ram_mb=ram_mb)
    _native.set_threads(usable_cores() if threads is None else threads)
    options = EvaluationOptions(*text)
    with _opened(str(directory), options, budgets.ram_bytes, kv_bits) as opened:
        result = asdict(_quality(opened, against, options, progress))
    result["eval_tokens"] = result.pop("tokens")
    result |= _artefact_facts(directory, budgets, threads, kv_bits)
    result["seconds"] = time.monotonic() - started
    result["artefact"] = str(directory)
    return result


@dataclass(frozen=True)
class _Opened:
    """What predicts the tokens of windows [count, context + 1], and its vocabulary's size."""

    scorer: Scorer
    windows: Windows
    vocab: int


def _quality(
    mine: _Opened, against: str | None, options: EvaluationOptions, progress: Progress
) -> Quality | Perplexity:
    from loop_singular_bit.measure import quality

    def done(part: int, total: int) -> None:
        progress("evaluate", part, total)

    if against is None:
        return quality.perplexity(mine.scorer, mine.windows, done)
    with _opened(against, options) as original:
        quality.check_vocabulary(mine.vocab, original.vocab)
        (found,) = quality.compare_tokens([mine.scorer], original.scorer, mine.windows, done)
        return quality.summary(found)


@contextmanager
def _opened(
    model: str, options: EvaluationOptions, ram_bytes: int | None = None, kv_bits: str = "16"
) -> Iterator[_Opened]:
    """An artefact, streamed where `ram_bytes` are less than it takes, or an original."""
    from loop_singular_bit import _native
    from loop_singular_bit.compress.compressor import evaluation_windows
    from loop_singular_bit.compress.original import open_original
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
    from loop_singular_bit.engine.runtime import open_model
    from loop_singular_bit.measure.quality import EngineScorer, NetworkScorer

    if (Path(model) / WEIGHTS_FILE).is_file():
        spec = read_spec(Path(model))
        with open_model(
            Path(model), ram_bytes=ram_bytes, context=min(options.context, spec.context_max),
            kv_bits=kv_bits, threads=_native.threads(),
        ) as artefact:  # fmt: skip
            windows = evaluation_windows(artefact.text, options, spec)
            yield _Opened(EngineScorer(artefact.engine), windows, spec.vocab)
        return
    with open_original(model) as (network, text):
        windows = evaluation_windows(text, options, network.spec)
        scorer = NetworkScorer(network, windows.shape[1] - 1, kv_bits)
        yield _Opened(scorer, windows, network.spec.vocab)


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
