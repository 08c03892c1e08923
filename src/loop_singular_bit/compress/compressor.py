"""`LoopCompressor`: budgets in, a measured artefact out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, MEGABYTE, Budgets
from loop_singular_bit.compress.allocate import AUTO, CodecOptions, Plan
from loop_singular_bit.compress.card import NOT_RUN, model_card
from loop_singular_bit.compress.checkpoint import (
    Work,
    compress_settings,
    kept_calibration,
    work_directory,
)
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers, source_text
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    Progress,
    Written,
    make_plan,
    silent,
    write_artefacts,
)
from loop_singular_bit.compress.rounds import Made, Round, close_loop
from loop_singular_bit.compress.sensitivity import worth_keeping
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.compress.spend import predicted_nats
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ResidentNetwork
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import BudgetError, FormatError, InputRefusedError, UsageError
from loop_singular_bit.measure.default_text import default_text
from loop_singular_bit.measure.probe import RunFigures, RunRequest, probe_run
from loop_singular_bit.measure.quality import Quality, compare, windows
from loop_singular_bit.measure.size import size_facts
from loop_singular_bit.memory import peak_rss_bytes
from loop_singular_bit.models.spec import ModelSpec, parameter_count

REPORT_FILE = "report.json"
CARD_FILE = "README.md"
THREADS_MAX = 256
CUT_TOKENS = 64  # tokens at the end of a cut text that the cut may have changed


@dataclass(frozen=True)
class EvaluationOptions:
    """text None: measure/default_text.py. context and tokens as in `lsb eval`."""

    text: str | None = None
    context: int = 1024
    tokens: int = 4096

    def __post_init__(self) -> None:
        if self.context < 2:
            raise UsageError(f"--context {self.context}: must be at least 2")
        if self.tokens < 1:
            raise UsageError(f"--tokens {self.tokens}: must be at least 1")


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

    outlier_ratio      share of weights of each matrix kept exactly, 0..0.5; "auto": in each as many
                       as are worth their bytes
    target_storage_gb  10^9 bytes on disk; picks the planes
    target_ram_mb      10^6 bytes of a process that runs the artefact
    """

    outlier_ratio: float | Literal["auto"] = 0.02
    target_ram_mb: float | None = 400
    target_storage_gb: float | None = 4.0
    quality_threshold: float | None = 1.0
    planes: int | None = None
    codec: CodecOptions | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    threads: int | None = None
    progress: Progress = silent
    restart: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= THREADS_MAX:
            raise UsageError(f"threads is {self.threads}: must be 1..{THREADS_MAX}")
        self.budgets = Budgets(self.target_storage_gb, self.target_ram_mb, self.quality_threshold)
        self._options = self.codec or CodecOptions(
            planes=self.planes, outlier_ratio=self.outlier_ratio
        )

        if self._options.outlier_ratio == AUTO and not self.calibration.guided:
            raise UsageError(
                f"--outlier-ratio {AUTO} needs to know what the loss depends on: "
                "leave out --no-guidance"
            )

    def compress_model(
        self, model: str | Path, output_dir: str | Path | None = None
    ) -> CompressionResult:
        """Compresses a directory, GGUF file or hub id into `output_dir` (default: in the working
        directory, named after the model with "-lsb"). What a stopped call has finished is kept.

        Raises BudgetError when the storage budget cannot hold the model, and InputRefusedError
        when the evaluation text is too short, before any long work; a missed quality or RAM
        target does not raise: see `all_targets_achieved`.
        """
        started = time.monotonic()
        _native.set_threads(usable_cores() if self.threads is None else self.threads)
        source = open_source(str(model))
        make_plan(source, self._options, self.budgets, self.calibration.seed)  # refuses early
        evaluated = evaluation_tokens(source, self.evaluation)
        directory = Path(output_dir) if output_dir else default_directory(str(model), source)
        refuse_inside(directory, source.path)
        settings = compress_settings(
            source, self._options, self.budgets, self.calibration, evaluated
        )
        with work_directory(directory, settings, restart=self.restart) as work:
            calibration = self._calibration(source, work)
            made, rounds = self._made(source, calibration, evaluated, work)
            place = work.finished(made.written.directory)
            figures = probed(RunRequest(str(place), self.budgets.ram_bytes, None, self.threads))
            seconds = time.monotonic() - started
            measured = Measured(made.written, made.quality, figures, seconds, tuple(rounds))
            return self.report(source, measured, directory)

    def _calibration(self, source: Source, work: Work) -> Calibration | None:
        """None for codecs that need none."""
        if self._options.codec != "planes":
            return None
        network = OriginalNetwork(source, resident_layers(source))
        return kept_calibration(source, network, self.calibration, work.stages, self.progress)

    def _made(
        self,
        source: Source,
        calibration: Calibration | None,
        windows: npt.NDArray[np.int64],
        work: Work,
    ) -> tuple[Made, list[Round]]:
        """The artefact; where a loss is allowed and planes are free, the best of some rounds."""
        seed, limit = self.calibration.seed, self.budgets.loss_percent
        sensitivity = calibration.sensitivity if calibration else None
        kept = worth_keeping(source, self._options)

        def planned(nats: float) -> Plan:
            return make_plan(source, self._options, self.budgets, seed, sensitivity, nats, kept)

        def make(plan: Plan, place: Path) -> Made:
            quality = work.quality(plan, windows)
            if quality is not None and not (place / WEIGHTS_FILE).exists():
                return Made(Written(plan, place), quality)  # given up for a better one
            journals = [work.journal(plan)]
            written = write_artefacts(
                source, [(plan, place)], calibration, seed, self.progress, journals
            )
            if quality is None:
                quality = evaluate_written(source, written, windows, self.progress)[0]
                work.keep_quality(plan, windows, quality)
            return Made(written[0], quality)

        if limit is None or sensitivity is None or self._options.planes is not None:
            return make(planned(0.0), work.artefact), []

        def predicted(plan: Plan) -> float:
            return predicted_nats(plan.codecs, sensitivity, kept)

        return close_loop(limit, predicted, planned, make, work.stages.folder)

    def report(self, source: Source, measured: Measured, directory: Path) -> CompressionResult:
        """What `compress --json` prints; also written as report.json and the model card."""
        values = measured_facts(source.spec, str(source.path), measured, directory)
        values["outlier_ratio"] = self._options.outlier_ratio
        tensors = {name: asdict(report) for name, report in measured.written.reports.items()}
        return write_report(measured, values | target_facts(self.budgets, measured), tensors)


@dataclass(frozen=True)
class Measured:
    """One artefact and everything measured on it.

    quality: None where there was no original to compare with; run: figures, why it was refused, or
    None where no run was asked for
    """

    written: Written
    quality: Quality | None
    run: RunFigures | BudgetError | None
    seconds: float
    rounds: tuple[Round, ...] = ()

    @property
    def size_bytes(self) -> int:
        return artefact_size_bytes(self.written.directory)


def read_report(path: Path) -> dict[str, Any] | None:
    """A report.json, None where there is none. Raises FormatError for what is no report."""
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: not JSON ({error})") from error
    if not isinstance(report, dict):
        raise FormatError(f"{path}: found {type(report).__name__}, expected an object")
    return report


def write_report(
    measured: Measured, values: Mapping[str, Any], tensors: Mapping[str, Any]
) -> CompressionResult:
    """Writes report.json, `values` and every matrix, and the model card beside the weights."""
    folder, result = measured.written.directory, CompressionResult(values)
    matrices = {"sensitivity": measured.written.sensitivity, "tensors": tensors}
    (folder / REPORT_FILE).write_text(json.dumps({**values, **matrices}, indent=1), "utf-8")
    (folder / CARD_FILE).write_text(model_card(result), "utf-8")
    return result


def target_facts(budgets: Budgets, measured: Measured) -> dict[str, Any]:
    """Every budget asked for in its own unit, and whether all were kept."""
    found: dict[str, Target] = {}
    if (limit := budgets.storage_gb) is not None:
        size_gb = measured.size_bytes / GIGABYTE
        found["storage"] = Target(limit, size_gb, size_gb <= limit)
    if (limit := budgets.ram_mb) is not None:
        run = measured.run
        ram_mb = run.ram_peak_bytes / MEGABYTE if isinstance(run, RunFigures) else None
        found["ram"] = Target(limit, ram_mb, ram_mb is not None and ram_mb <= limit)
    if (limit := budgets.loss_percent) is not None and measured.quality is not None:
        loss = measured.quality.quality_loss
        found["quality"] = Target(limit, loss, loss <= limit)
    return {
        "targets": {name: asdict(target) for name, target in found.items()},
        "all_targets_achieved": all(target.met for target in found.values()),
    }


def probed(request: RunRequest) -> RunFigures | BudgetError:
    """A run in a process of its own, or why the budget cannot hold it."""
    try:
        return probe_run(request)
    except BudgetError as error:
        return error


def evaluate_written(
    source: Source, written: Sequence[Written], tokens: npt.NDArray[np.int64], progress: Progress
) -> list[Quality]:
    """Written artefacts, read back, against the original through the same engine, over windows
    of `evaluation_tokens`."""
    original = OriginalNetwork(source, resident_layers(source))
    with ExitStack() as stack:
        networks = [stack.enter_context(closing(ResidentNetwork(w.directory))) for w in written]
        return compare(
            networks, original, tokens, lambda done, total: progress("evaluate", done, total)
        )


def measured_facts(
    spec: ModelSpec, model: str | None, measured: Measured, directory: Path
) -> dict[str, Any]:
    """What was measured, by its public names. directory: where the artefact will be. Raises
    FormatError when its size is not the one that was planned."""
    size, plan = measured.size_bytes, measured.written.plan
    planned, most = plan.size_bytes, plan.size_bytes_max
    if size > most or (most == planned and size != planned):
        raise FormatError(f"the artefact has {size} bytes, planned were {planned}, at most {most}")
    run = measured.run
    return {
        "artefact": str(directory),
        "model": model,
        **size_facts(size, parameter_count(spec)),
        "size_bytes_planned": planned,
        **_quality_facts(spec, measured),
        "ram_peak_bytes": run.ram_peak_bytes if isinstance(run, RunFigures) else None,
        "run": asdict(run) if isinstance(run, RunFigures) else {"refused": str(run or NOT_RUN)},
        "seconds": measured.seconds,
        "compress_ram_peak_bytes": peak_rss_bytes(),
        "planes": {str(k): v for k, v in sorted(measured.written.plan.planes.items())},
        "outliers": {f"{k:g}": v for k, v in measured.written.plan.outliers.items()},
        "rounds": [asdict(each) for each in measured.rounds],
    }


def _quality_facts(spec: ModelSpec, measured: Measured) -> dict[str, Any]:
    """Nothing where nothing was compared: a figure that was not measured has no name."""
    if measured.quality is None:
        return {}
    quality = asdict(measured.quality)
    return {
        "mean_absolute_error": measured.written.mean_absolute_error(spec),
        "eval_tokens": quality.pop("tokens"),
        **quality,
    }


def evaluation_windows(
    text: Text, options: EvaluationOptions, spec: ModelSpec
) -> npt.NDArray[np.int64]:
    """Token windows [count, context + 1] of the evaluation text."""
    whole = options.text if options.text is not None else default_text()
    context = min(options.context, spec.context_max)
    wanted = options.tokens + context + CUT_TOKENS
    chars = 4 * wanted
    ids = text.encode(whole[:chars], special=False)
    while len(ids) < wanted and chars < len(whole):
        chars *= 2
        ids = text.encode(whole[:chars], special=False)
    return windows(ids, context, options.tokens)


def evaluation_tokens(source: Source, options: EvaluationOptions) -> npt.NDArray[np.int64]:
    """As `evaluation_windows`, for a model that is not written yet."""
    with source_text(source) as text:
        return evaluation_windows(text, options, source.spec)


def default_directory(model: str, source: Source) -> Path:
    """Named after the model, in the working directory."""
    if not Path(model).exists():  # a hub id: its local path ends in a commit
        return Path(f"{model.partition('@')[0].rpartition('/')[2]}-lsb")
    path = source.path.resolve()
    return Path(f"{path.name if path.is_dir() else path.stem}-lsb")


def refuse_inside(directory: Path, model: Path) -> None:
    """Raises InputRefusedError for an output inside the directory it is made from."""
    if model.is_dir() and directory.resolve().is_relative_to(model.resolve()):
        raise InputRefusedError(
            f"output {directory} is inside the model directory {model}: name another"
        )
