"""Quality against size: one model at many sizes, by our codec, its baselines and llama.cpp's types.

A directory holds the study: settings.json, calibration/ (compress/stages.py), for each point an
artefact NAME/ (ours) and NAME.json (finished). What is finished, or an artefact that is whole, is
not made again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import __version__, _native
from loop_singular_bit.budget import GIGABYTE
from loop_singular_bit.codec.numbers import from_pattern
from loop_singular_bit.compress.allocate import BASELINES, CodecOptions
from loop_singular_bit.compress.checkpoint import calibration_settings, kept_calibration
from loop_singular_bit.compress.compressor import (
    REPORT_FILE,
    EvaluationOptions,
    artefact_size_bytes,
    evaluation_windows,
)
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.compress.importance import importance_matrix
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers, source_text
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    Progress,
    Written,
    write_artefacts,
)
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.compress.stages import open_stages
from loop_singular_bit.compress.study import Variant, guided_plans, variant_plans
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.errors import InputRefusedError, UsageError
from loop_singular_bit.measure import llama_cpp
from loop_singular_bit.measure.default_text import default_text
from loop_singular_bit.measure.quality import (
    NetworkScorer,
    Quality,
    Scorer,
    compare_tokens,
    summary,
)
from loop_singular_bit.measure.size import size_facts
from loop_singular_bit.models.spec import all_tensors, parameter_count

OURS, BASELINE, PEER = "loops", "baseline", "llama.cpp"
OUR_POINTS = ("2.0", "2.5", "3.0", "3.35", "3.9", "4.2", "4.5")
BASELINE_POINTS = ("int8", "uniform1", "outlier1")
PEER_POINTS = ("F16", "IQ2_M", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M")
DEFAULT_TEXT = "language-reference"
SETTINGS_FILE = "settings.json"
CALIBRATION = "calibration"
READ_ROWS = 4096  # rows of the original read at a time


@dataclass(frozen=True)
class PointsOptions:
    """What is measured, and on what.

    points       bits per weight of ours ("3.35", with --window 10: "3.35@10"), baselines ("int8"),
                 llama.cpp's types ("Q4_K_M")
    texts        evaluation text of each kind, by name; empty: measure/default_text.py
    tokens       of each text
    gguf         the same model as a 16-bit GGUF file, which llama.cpp's types are made of
    """

    points: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    context: int = 1024
    tokens: int = 8192
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    gguf: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in self.points:
            if (maker := maker_of(name)) == PEER:
                llama_cpp.require_type(name)
            if maker == PEER and self.gguf is None:
                raise UsageError(f"{name} is made of a 16-bit GGUF file of the model: add --gguf")


@dataclass(frozen=True)
class Point:
    """One size and what it costs.

    mean_absolute_error  of all weights, None where it was not measured
    efficiency           bits of precision, log2(mean |W| / mean absolute error), for each bit of
                         size
    quality, texts       over all texts, and over each
    """

    name: str
    maker: str
    size_bytes: int
    bits_per_weight: float
    compression_ratio: float
    mean_absolute_error: float | None
    efficiency: float | None
    quality: Quality
    texts: Mapping[str, Quality]


def maker_of(name: str) -> str:
    """Who makes the point of that name. Raises UsageError for bits per weight or a window that are
    none."""
    if name in BASELINES:
        return BASELINE
    try:
        _, options = _bits_and_options(name)
    except ValueError:
        return PEER
    return OURS if options == CodecOptions() else f"{OURS} L={options.window}"


def _bits_and_options(name: str) -> tuple[float, CodecOptions]:
    """Of one of our points. Raises ValueError for another's."""
    text, at, window = name.partition("@")
    bits, options = float(text), CodecOptions()
    if at:
        options = replace(options, window=int(window))
    if not 0 < bits <= 16:
        raise UsageError(f"--points {name}: must be more than 0 and at most 16 bits per weight")
    return bits, options


def measure_points(
    model: str, directory: Path, options: PointsOptions, progress: Progress
) -> list[Point]:
    """Every point asked for, in order; those not yet finished in `directory` are measured.

    Raises InputRefusedError when the directory holds a study with other settings.
    """
    _native.set_threads(usable_cores() if options.threads is None else options.threads)
    source = open_source(model)
    directory.mkdir(parents=True, exist_ok=True)
    _settle(directory, _settings(source, options))
    study = _Study(source, directory, options, progress)
    missing = [name for name in options.points if not study.file(name).is_file()]
    study.encode([name for name in missing if maker_of(name) != PEER])
    for index, name in enumerate(missing):
        point = study.measure(name)
        study.file(name).write_text(json.dumps(asdict(point), indent=1) + "\n", "utf-8")
        progress("point", index + 1, len(missing))
    return [load_point(study.file(name)) for name in options.points]


def load_point(path: Path) -> Point:
    """A finished point."""
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    quality = Quality(**values.pop("quality"))
    texts = {name: Quality(**found) for name, found in values.pop("texts").items()}
    return Point(**values, quality=quality, texts=texts)


def _settings(source: Source, options: PointsOptions) -> dict[str, Any]:
    """What every point of a study shares."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    calibration = asdict(options.calibration)
    text = options.calibration.text
    return {
        "version": __version__,
        "model": source.path.resolve().name,
        "parameters": parameter_count(source.spec),
        "context": options.context,
        "tokens": options.tokens,
        "texts": {name: digest(found) for name, found in options.texts.items()},
        "calibration": calibration | {"text": None if text is None else digest(text)},
    }


def _settle(directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new study, or compares them with those of the one that is there."""
    path = directory / SETTINGS_FILE
    if not path.exists():
        if any(directory.iterdir()):
            raise InputRefusedError(f"output {directory} holds no study: name another")
        path.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    found = json.loads(path.read_text("utf-8"))
    other = [name for name in settings if found.get(name) != settings[name]]
    if other:
        raise InputRefusedError(
            f"{directory} holds a study with another {' and '.join(other)}: name another directory"
        )


class _Study:
    """What points share: each is there when it is first asked for."""

    def __init__(
        self, source: Source, directory: Path, options: PointsOptions, progress: Progress
    ) -> None:
        self.source, self.directory = source, directory
        self.options, self.progress = options, progress
        self.parameters = parameter_count(source.spec)
        self.original = OriginalNetwork(source, resident_layers(source))

    def file(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    @cached_property
    def calibration(self) -> Calibration:
        options = self.options.calibration
        settings = calibration_settings(self.source, options)
        folder = self.directory / CALIBRATION
        with open_stages(folder, settings, "name another directory") as stages:
            return kept_calibration(self.source, self.original, options, stages, self.progress)

    @cached_property
    def windows(self) -> dict[str, Tokens]:
        """Token windows of each text."""
        options = self.options
        texts = options.texts or {DEFAULT_TEXT: default_text()}
        with source_text(self.source) as text:
            return {
                name: evaluation_windows(
                    text, EvaluationOptions(found, options.context, options.tokens),
                    self.source.spec,
                )
                for name, found in texts.items()
            }  # fmt: skip

    @property
    def context(self) -> int:
        tokens = next(iter(self.windows.values()))
        return int(tokens.shape[1]) - 1

    @cached_property
    def reference(self) -> Scorer:
        return NetworkScorer(self.original, self.context, keep=True)

    @cached_property
    def importance(self) -> dict[str, npt.NDArray[np.float32]]:
        return importance_matrix(self.original, self.calibration.tokens)

    @cached_property
    def mean_magnitude(self) -> float:
        return mean_magnitude(self.source)

    def encode(self, names: Sequence[str]) -> None:
        """Artefacts of all points that have none, in one pass over the calibration tokens."""
        _ = self.windows  # a text that is too short is refused before any long work
        variants = [self._variant(name) for name in names if not (self.directory / name).is_dir()]
        if not variants:
            return
        seed = self.options.calibration.seed
        with ExitStack() as stack:
            plans = variant_plans(self.source, variants, seed, stack)
            plans = guided_plans(self.source, variants, plans, seed, self.calibration)
            for written in write_artefacts(
                self.source, plans, self.calibration, seed, self.progress
            ):
                _report(written, self.source)

    def _variant(self, name: str) -> Variant:
        if maker_of(name) == BASELINE:
            return Variant(CodecOptions(name), self.directory / name)
        bits, options = _bits_and_options(name)
        storage = bits * self.parameters / 8 / GIGABYTE
        return Variant(options, self.directory / name, storage)

    def measure(self, name: str) -> Point:
        if maker_of(name) == PEER:
            with self._peer(name) as (path, scorer):
                return self._point(name, path.stat().st_size, None, scorer)
        artefact = self.directory / name
        report = json.loads((artefact / REPORT_FILE).read_text("utf-8"))
        with closing(ResidentNetwork(artefact)) as network:
            scorer = NetworkScorer(network, self.context)
            size, error = artefact_size_bytes(artefact), report["mean_absolute_error"]
            return self._point(name, size, error, scorer)

    @contextmanager
    def _peer(self, name: str) -> Iterator[tuple[Path, Scorer]]:
        """A GGUF file of type `name` and what runs it, for the time it is measured."""
        assert self.options.gguf is not None
        path, threads = self.options.gguf, _native.threads()
        made = self.directory / f"{name}.gguf"
        try:
            if name != llama_cpp.EXACT:
                llama_cpp.quantize(path, made, name, self.importance, threads)
                path = made
            vocab = self.source.spec.vocab
            with closing(llama_cpp.LlamaCppScorer(path, self.context, vocab, threads)) as scorer:
                yield path, scorer
        finally:
            made.unlink(missing_ok=True)

    def _point(self, name: str, size: int, error: float | None, scorer: Scorer) -> Point:
        found = {
            kind: compare_tokens([scorer], self.reference, tokens, self._evaluated)[0]
            for kind, tokens in self.windows.items()
        }
        facts = size_facts(size, self.parameters)
        bits = facts["bits_per_weight"]
        return Point(
            name, maker_of(name), size, bits, facts["compression_ratio"], error,
            math.log2(self.mean_magnitude / error) / bits if error else None,
            summary(np.concatenate(list(found.values()), axis=1)),
            {kind: summary(figures) for kind, figures in found.items()},
        )  # fmt: skip

    @property
    def _evaluated(self) -> Callable[[int, int], None]:
        return lambda done, total: self.progress("evaluate", done, total)


def _report(written: Written, source: Source) -> None:
    """What the encoder knows and the file does not say."""
    values = {
        "mean_absolute_error": written.mean_absolute_error(source.spec),
        "planes": {str(k): v for k, v in sorted(written.plan.planes.items())},
        "sensitivity": written.sensitivity,
        "tensors": {name: asdict(report) for name, report in written.reports.items()},
    }
    (written.directory / REPORT_FILE).write_text(json.dumps(values, indent=1), "utf-8")


def mean_magnitude(source: Source) -> float:
    """Mean |w| over all matrices, embedding and head included."""
    total, count = 0.0, 0
    for tensor in all_tensors(source.spec):
        if len(tensor.shape) < 2:
            continue
        for start in range(0, tensor.shape[0], READ_ROWS):
            part = source.read(tensor, start, min(start + READ_ROWS, tensor.shape[0]))
            W = from_pattern(part.data, part.dtype)
            total += float(np.abs(W).sum(dtype=np.float64))
            count += W.size
    return total / count
