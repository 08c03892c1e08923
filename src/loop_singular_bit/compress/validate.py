"""Is an artefact what it should be: bytes, every tensor, the whole model, a run, the targets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, MEGABYTE, Budgets
from loop_singular_bit.compress.compressor import (
    EvaluationOptions,
    Target,
    artefact_size_bytes,
    evaluation_windows,
)
from loop_singular_bit.compress.original import open_original
from loop_singular_bit.compress.pipeline import Progress, silent
from loop_singular_bit.compress.tensor_errors import (
    TensorError,
    checked_tensors,
    compared_tensors,
)
from loop_singular_bit.engine.artefact import ArtefactNetwork
from loop_singular_bit.engine.memory_plan import Setting
from loop_singular_bit.engine.runtime import choose_context, open_model, plan_run, usable_cores
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import BudgetError, InputRefusedError
from loop_singular_bit.measure.memory_bench import MemoryFigures, MemoryOptions, measure_memory
from loop_singular_bit.measure.quality import (
    EngineScorer,
    NetworkScorer,
    Perplexity,
    Quality,
    compare_tokens,
    perplexity,
    summary,
)
from loop_singular_bit.measure.size import size_facts
from loop_singular_bit.models.spec import ModelSpec, all_tensors, parameter_count

Windows = npt.NDArray[np.int64]

STATISTICS_TOKENS = 4096  # of the evaluation text that make H
RUN_PROMPT, RUN_GENERATE = 64, 32


@dataclass(frozen=True)
class ValidationOptions:
    """against: the original; None checks the artefact alone. budgets: the targets."""

    against: str | None = None
    budgets: Budgets = field(default_factory=lambda: Budgets(4.0, 400.0, 1.0))
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    threads: int | None = None


@dataclass(frozen=True)
class Validation:
    """Everything found.

    quality  against the original, or the perplexity of the artefact alone
    run      figures of a run under the memory target, or why it was refused
    targets  by name; a quality target is only among them where there is an original
    """

    artefact: str
    against: str | None
    size: dict[str, int | float]
    tensors: list[TensorError]
    quality: Quality | Perplexity
    run: MemoryFigures | BudgetError
    targets: dict[str, Target]
    seconds: float

    @property
    def sound(self) -> bool:
        """Every value of every tensor and every prediction is a finite number."""
        finite = bool(np.isfinite(self.quality.perplexity))
        return finite and all(tensor.finite for tensor in self.tensors)

    @property
    def passed(self) -> bool:
        return self.sound and all(target.met for target in self.targets.values())

    def values(self) -> dict[str, Any]:
        """As `lsb validate --json` prints it."""
        run = {"refused": str(self.run)} if isinstance(self.run, BudgetError) else asdict(self.run)
        return {
            "artefact": self.artefact, "against": self.against, **self.size,
            "quality": asdict(self.quality), "run": run, "sound": self.sound,
            "targets": {name: asdict(target) for name, target in self.targets.items()},
            "all_targets_achieved": self.passed, "seconds": self.seconds,
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }  # fmt: skip


def validate(
    directory: Path, options: ValidationOptions, progress: Progress = silent
) -> Validation:
    """Checks everything; a missed target is reported, not raised.

    Raises ResourceError for a damaged file, FormatError for one that is not what config.json says,
    InputRefusedError where `against` is another model.
    """
    started = time.monotonic()
    _native.set_threads(usable_cores() if options.threads is None else options.threads)
    text = Text.open(directory)
    with closing(ArtefactNetwork(directory)) as network:
        network.reader.verify_all(lambda done, total: progress("verify", done, total))
        spec = network.spec
        windows = evaluation_windows(text, options.evaluation, spec)
        tensors, quality = _measured(directory, network, options, windows, progress)
    size = size_facts(artefact_size_bytes(directory), parameter_count(spec))
    run = _run(directory, spec, options)
    targets = _targets(options.budgets, size["size_bytes"], run, quality)
    return Validation(
        str(directory), options.against, size, tensors, quality, run, targets,
        time.monotonic() - started,
    )  # fmt: skip


def _measured(
    directory: Path,
    network: ArtefactNetwork,
    options: ValidationOptions,
    windows: Windows,
    progress: Progress,
) -> tuple[list[TensorError], Quality | Perplexity]:
    count, context = len(list(all_tensors(network.spec))), windows.shape[1] - 1
    tensors: list[TensorError] = []

    def evaluated(done: int, total: int) -> None:
        progress("evaluate", done, total)

    def take(found: Iterator[TensorError]) -> None:
        for tensor in found:
            tensors.append(tensor)
            progress("tensor", len(tensors), count)

    if options.against is None:
        take(checked_tensors(network))
        with _scorer(directory, context, options) as scorer:
            return tensors, perplexity(scorer, windows, evaluated)
    with open_original(options.against) as (original, _):
        same_sizes(network.spec, original.spec, options.against)
        sequences = max(1, STATISTICS_TOKENS // context)
        take(compared_tensors(network, original, np.ascontiguousarray(windows[:sequences, :-1])))
        with _scorer(directory, context, options) as scorer:
            reference = NetworkScorer(original, context)
            (found,) = compare_tokens([scorer], reference, windows, evaluated)
        return tensors, summary(found)


@contextmanager
def _scorer(directory: Path, context: int, options: ValidationOptions) -> Iterator[EngineScorer]:
    """The artefact, within the RAM target where a run can be: the report says where it cannot."""
    ram_bytes = options.budgets.ram_bytes
    try:
        plan_run(directory, Setting(context, 1, "16", _native.threads()), ram_bytes)
    except BudgetError:
        ram_bytes = None
    with open_model(
        directory, ram_bytes=ram_bytes, context=context, threads=options.threads, kv_bits="16"
    ) as model:
        yield EngineScorer(model.engine)


def same_sizes(mine: ModelSpec, theirs: ModelSpec, against: str) -> None:
    """Raises InputRefusedError for the first tensor that is not the original's."""
    shapes = {tensor.name: tensor.shape for tensor in all_tensors(theirs)}
    for tensor in all_tensors(mine):
        found = shapes.pop(tensor.name, None)
        if found != tensor.shape:
            raise InputRefusedError(
                f"--against {against}: tensor {tensor.name!r} has shape {found}, the artefact's is "
                f"{tensor.shape}: name the model it was made from"
            )
    if shapes:
        raise InputRefusedError(
            f"--against {against}: has tensor {min(shapes)!r}, which the artefact lacks: "
            "name the model it was made from"
        )


def _run(
    directory: Path, spec: ModelSpec, options: ValidationOptions
) -> MemoryFigures | BudgetError:
    context = choose_context(spec, None)
    generate = min(RUN_GENERATE, context - 1)
    prompt = min(RUN_PROMPT, context - generate)
    request = MemoryOptions(
        options.budgets.ram_bytes, context, prompt, generate, threads=options.threads
    )
    try:
        return measure_memory(directory, request)
    except BudgetError as error:
        return error


def _targets(
    budgets: Budgets,
    size_bytes: float,
    run: MemoryFigures | BudgetError,
    quality: Quality | Perplexity,
) -> dict[str, Target]:
    """Every budget asked for that could be looked at, in its own unit."""
    found: dict[str, Target] = {}
    if (limit := budgets.storage_gb) is not None:
        size_gb = size_bytes / GIGABYTE
        found["storage"] = Target(limit, size_gb, size_gb <= limit)
    if (limit := budgets.ram_mb) is not None:
        if isinstance(run, BudgetError):
            found["ram"] = Target(limit, None, False)
        else:
            found["ram"] = Target(limit, run.use.peak_bytes / MEGABYTE, run.kept)
    if (limit := budgets.loss_percent) is not None and isinstance(quality, Quality):
        loss = quality.quality_loss
        found["quality"] = Target(limit, loss, loss <= limit)
    return found
