"""Several artefacts of one model side by side: one calibration, one evaluation of the original."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loop_singular_bit import _native
from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions, Plan
from loop_singular_bit.compress.compressor import (
    CompressionResult,
    EvaluationOptions,
    LoopCompressor,
    Measured,
    evaluate_written,
    evaluation_tokens,
)
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.output import new_directory
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    Progress,
    make_calibration,
    make_plan,
    write_artefacts,
)
from loop_singular_bit.compress.sensitivity import worth_keeping
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.measure.probe import RunRequest, probe_run


@dataclass(frozen=True)
class Variant:
    """An artefact to make, in a new directory; storage_gb: what it may take [10^9 bytes]."""

    codec: CodecOptions
    directory: Path
    storage_gb: float | None = None


def compress_variants(
    model: str,
    variants: Sequence[Variant],
    calibration: CalibrationOptions,
    evaluation: EvaluationOptions,
    threads: int | None,
    progress: Progress,
    *,
    runs: bool = True,
) -> list[CompressionResult]:
    """Writes and measures an artefact for each variant, in order.

    runs: also run each in a process of its own, for its memory and speed.
    """
    started = time.monotonic()
    _native.set_threads(usable_cores() if threads is None else threads)
    source = open_source(model)
    network = OriginalNetwork(source, resident_layers(source))
    windows = evaluation_tokens(source, evaluation)
    with ExitStack() as stack:
        plans = variant_plans(source, variants, calibration.seed, stack)
        found = make_calibration(source, network, calibration, plans[0][1], progress)
        plans = guided_plans(source, variants, plans, calibration.seed, found)
        written = write_artefacts(source, plans, found, calibration.seed, progress)
        qualities = evaluate_written(source, written, windows, progress)
        results = []
        for variant, made, quality in zip(variants, written, qualities, strict=True):
            request = RunRequest(str(made.directory), None, None, threads)
            run = probe_run(request) if runs else None
            options = variant.codec
            reporter = LoopCompressor(
                options.outlier_ratio, None, variant.storage_gb, None, codec=options
            )
            measured = Measured(made, quality, run, time.monotonic() - started)
            results.append(reporter.report(source, measured, variant.directory))
    return results


def variant_plans(
    source: Source, variants: Sequence[Variant], seed: int, stack: ExitStack
) -> list[tuple[Plan, Path]]:
    """The plan of each variant and a directory that appears under its name when `stack` ends.

    Raises BudgetError when a storage budget cannot hold the model.
    """
    return [
        (
            make_plan(source, variant.codec, Budgets(variant.storage_gb), seed),
            stack.enter_context(new_directory(variant.directory)),
        )
        for variant in variants
    ]


def guided_plans(
    source: Source,
    variants: Sequence[Variant],
    plans: Sequence[tuple[Plan, Path]],
    seed: int,
    calibration: Calibration,
) -> list[tuple[Plan, Path]]:
    """The same, with storage budgets spent as the calibration says."""
    return [
        (
            make_plan(
                source,
                variant.codec,
                Budgets(variant.storage_gb),
                seed,
                calibration.sensitivity,
                kept=worth_keeping(source, variant.codec),
            ),
            directory,
        )
        for variant, (_before, directory) in zip(variants, plans, strict=True)
    ]
