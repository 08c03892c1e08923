"""Several artefacts of one model side by side: one calibration, one evaluation of the original."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
)
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import (
    CalibrationOptions,
    Progress,
    calibration_tokens,
    make_plan,
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
) -> list[CompressionResult]:
    """Writes and measures an artefact for each (options, new directory), in order."""
    started = time.monotonic()
    _native.set_threads(usable_cores() if threads is None else threads)
    source = open_source(model)
    network = OriginalNetwork(source, resident_layers(source))
    plans = []
    for options, directory in variants:
        directory.mkdir(parents=True)
        plans.append((make_plan(source, options, Budgets()), directory))
    tokens = calibration_tokens(source, network, calibration, progress)
    written = write_artefacts(source, plans, tokens, calibration.seed, progress)
    results = []
    for (options, directory), made, quality in zip(
        variants, written, evaluate_written(source, written, evaluation, progress), strict=True
    ):
        run = probe_run(RunRequest(str(directory), None, None, threads))
        reporter = LoopCompressor(options.outlier_ratio, None, None, None, codec=options)
        measured = Measured(made, quality, run, time.monotonic() - started)
        results.append(reporter.report(source, measured, directory))
    return results
