"""`LoopCompressor`: budgets in, a measured artefact out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, MEGABYTE, Budgets
from loop_singular_bit.compress.allocate import CodecOptions, Plan
from loop_singular_bit.compress.card import model_card
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.pipeline import (
    CalibrationOptions,
    Progress,
    Written,
    calibration_tokens,
    make_plan,
    new_directory,
    resident_layers,
    silent,
    write_artefact,
)
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import BudgetError, FormatError
from loop_singular_bit.measure.default_text import default_text
from loop_singular_bit.measure.probe import RunFigures, RunRequest, probe_run
from loop_singular_bit.measure.quality import Quality, compare, windows
from loop_singular_bit.memory import peak_rss_bytes
from loop_singular_bit.models.spec import ModelSpec, parameter_count

REPORT_FILE = "report.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class EvaluationOptions:
    """text None: measure/default_text.py. context and tokens as in `lsb eval`."""

    text: str | None = None
    context: int = 1024
    tokens: int = 4096


@dataclass(frozen=True)
class Target:
    """A budget and what came of it; `measured` None where nothing could be measured."""

    limit: float
    measured: float | None
    met: bool


class CompressionResult(Mapping[str, Any]):
    """Everything measured on a written artefact, by the names of `lsb compress --json`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"CompressionResult({self._values!r})"


def artefact_size_bytes(directory: Path) -> int:
    """All bytes of the directory that inference needs: all but the report and the model card."""
    return sum(
        path.stat().st_size
        for path in sorted(directory.iterdir())
        if path.name not in (REPORT_FILE, CARD_FILE)
    )


@dataclass
class LoopCompressor:
    """Compresses a model under budgets and measures what it wrote.

    outlier_ratio      share of weights of each matrix kept exactly, 0..0.5
    target_storage_gb  10^9 bytes on disk; picks the planes
    target_ram_mb      10^6 bytes of a process that runs the artefact
    quality_threshold  percent of quality loss
    A target of None is not asked for. `planes` fixes the loops instead of the storage budget.
    """

    outlier_ratio: float = 0.02
    target_ram_mb: float | None = 400
    target_storage_gb: float | None = 4.0
    quality_threshold: float | None = 1.0
    planes: int | None = None
    codec: CodecOptions | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    threads: int | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        self.budgets = Budgets(self.target_storage_gb, self.target_ram_mb, self.quality_threshold)
        self._options = self.codec or CodecOptions(
            planes=self.planes, outlier_ratio=self.outlier_ratio
        )

    def compress_model(
        self, model: str | Path, output_dir: str | Path | None = None
    ) -> CompressionResult:
        """Compresses a directory, GGUF file or hub id into `output_dir` (default: beside it, in the
        working directory, named after the model with "-lsb").

        Raises BudgetError when the storage budget cannot hold the model, before any long work;
        a missed quality or RAM target does not raise: see `all_targets_achieved`.
        """
        started = time.monotonic()
        _native.set_threads(usable_cores() if self.threads is None else self.threads)
        source = open_source(str(model))
        plan = make_plan(source, self._options, self.budgets)
        directory = Path(output_dir) if output_dir else Path(f"{source.path.stem}-lsb")
        with new_directory(directory) as partial:
            written = self._write(source, plan, partial)
            quality = self._evaluate(source, partial)
            figures = self._run(partial)
            seconds = time.monotonic() - started
            result = self._result(directory, partial, source, written, quality, figures, seconds)
            (partial / CARD_FILE).write_text(model_card(result), "utf-8")
        return result

    def _write(self, source: Source, plan: Plan, directory: Path) -> Written:
        tokens = None
        if self._options.codec == "planes":
            network = OriginalNetwork(source, resident_layers(source))
            tokens = calibration_tokens(source, network, self.calibration, self.progress)
        return write_artefact(source, plan, tokens, directory, self.calibration.seed, self.progress)

    def _evaluate(self, source: Source, directory: Path) -> Quality:
        """The written file against the original, through the same engine."""
        network = ResidentNetwork(directory)
        try:
            original = OriginalNetwork(source, resident_layers(source))
            text = Text.open(directory)
            tokens = evaluation_windows(text, self.evaluation, source.spec)
            return compare(
                network, original, tokens, lambda done, total: self.progress("evaluate", done, total)
            )
        finally:
            network.close()

    def _run(self, directory: Path) -> RunFigures | BudgetError:
        request = RunRequest(str(directory), self.budgets.ram_bytes, None, self.threads)
        try:
            return probe_run(request)
        except BudgetError as error:
            return error

    def _result(
        self,
        directory: Path,
        written_to: Path,
        source: Source,
        written: Written,
        quality: Quality,
        figures: RunFigures | BudgetError,
        seconds: float,
    ) -> CompressionResult:
        size, parameters = artefact_size_bytes(written_to), parameter_count(source.spec)
        if written.plan.size_bytes and abs(size / written.plan.size_bytes - 1) > 0.005:
            raise FormatError(f"the artefact has {size} bytes, planned were {written.plan.size_bytes}")
        run = None if isinstance(figures, BudgetError) else figures
        targets = self._targets(size, quality, run)
        values: dict[str, Any] = {
            "artefact": str(directory),
            "model": str(source.path),
            "size_bytes": size,
            "size_bytes_planned": written.plan.size_bytes,
            "original_bytes_16bit": 2 * parameters,
            "parameters": parameters,
            "bits_per_weight": 8 * size / parameters,
            "compression_ratio": 2 * parameters / size,
            **{k: v for k, v in asdict(quality).items() if k != "tokens"},
            "eval_tokens": quality.tokens,
            "ram_peak_bytes": run.ram_peak_bytes if run else None,
            "run": asdict(run) if run else {"refused": str(figures)},
            "seconds": seconds,
            "compress_ram_peak_bytes": peak_rss_bytes(),
            "planes": {str(k): v for k, v in sorted(written.plan.planes.items())},
            "outlier_ratio": self._options.outlier_ratio,
            "targets": {name: asdict(target) for name, target in targets.items()},
            "all_targets_achieved": all(target.met for target in targets.values()),
        }
        tensors = {name: asdict(report) for name, report in written.reports.items()}
        report = values | {"tensors": tensors}
        (written_to / REPORT_FILE).write_text(json.dumps(report, indent=1), "utf-8")
        return CompressionResult(values)

    def _targets(
        self, size_bytes: int, quality: Quality, run: RunFigures | None
    ) -> dict[str, Target]:
        """Every budget asked for, in its own unit."""
        found: dict[str, Target] = {}
        if self.budgets.storage_gb is not None:
            size_gb = size_bytes / GIGABYTE
            found["storage"] = Target(self.budgets.storage_gb, size_gb, size_gb <= self.budgets.storage_gb)
        if self.budgets.ram_mb is not None:
            ram_mb = run.ram_peak_bytes / MEGABYTE if run else None
            met = ram_mb is not None and ram_mb <= self.budgets.ram_mb
            found["ram"] = Target(self.budgets.ram_mb, ram_mb, met)
        if self.budgets.loss_percent is not None:
            met = quality.quality_loss <= self.budgets.loss_percent
            found["quality"] = Target(self.budgets.loss_percent, quality.quality_loss, met)
        return found


def evaluation_windows(
    text: Text, options: EvaluationOptions, spec: ModelSpec
) -> npt.NDArray[np.int64]:
    """Token windows [count, context + 1] of the evaluation text."""
    ids = text.encode(options.text if options.text is not None else default_text(), special=False)
    return windows(ids, min(options.context, spec.context_max), options.tokens)
