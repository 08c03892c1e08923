"""Several artefacts of one model side by side: one calibration, one evaluation of the original."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loop_singular_bit import _native
from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import (
    CompressionResult,
    EvaluationOptions,
    LoopCompressor,
    Measured,
    evaluate_written,
    evaluation_tokens,
)
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import (
    CalibrationOptions,
    Progress,
    make_calibration,
    make_plan,
    new_directory,
    write_artefacts,
)
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.measure.probe import RunRequest, probe_run


def compress_variants(
    model: str,
    variants: Sequence[tuple[CodecOptions, Path]],
    calibration: CalibrationOptions,
    evaluation: EvaluationOptions,
    threads: int | None,
    progress: Progress,
    *,
    runs: bool = True,
) -> list[CompressionResult]:
    """Writes and measures an artefact for each (options, new directory), in order.

    runs: also run each in a process of its own, for its memory and speed.
    """
    started = time.monotonic()
    _native.set_threads(usable_cores() if threads is None else threads)
    source = open_source(model)
    network = OriginalNetwork(source, resident_layers(source))
    windows = evaluation_tokens(source, evaluation)
    with ExitStack() as stack:
        plans = [
            (
                make_plan(source, options, Budgets(), calibration.seed),
                stack.enter_context(new_directory(directory)),
            )
            for options, directory in variants
        ]
        found = make_calibration(source, network, calibration, plans[0][1], progress)
        written = write_artefacts(source, plans, found, calibration.seed, progress)
        qualities = evaluate_written(source, written, windows, progress)
        results = []
        for (options, directory), made, quality in zip(variants, written, qualities, strict=True):
            request = RunRequest(str(made.directory), None, None, threads)
            run = probe_run(request) if runs else None
            reporter = LoopCompressor(options.outlier_ratio, None, None, None, codec=options)
            measured = Measured(made, quality, run, time.monotonic() - started)
            results.append(reporter.report(source, measured, directory))
    return results
