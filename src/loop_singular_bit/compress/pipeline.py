"""From a model a person has to an artefact, and to the figures measured on that artefact.

source -> plan -> calibration -> encoded layers -> container -> reopen -> evaluate -> report
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from loop_singular_bit.budget import Budgets
from loop_singular_bit.codec.codecs import Codec
from loop_singular_bit.codec.planes import EncodeReport
from loop_singular_bit.codec.records import Payload, pack_transform, pack_vector, pack_weight
from loop_singular_bit.codec.weights import Weight
from loop_singular_bit.compress import allocate, calibrate
from loop_singular_bit.compress.allocate import (
    CodecOptions,
    Goal,
    Plan,
    file_tensors,
    input_name,
)
from loop_singular_bit.compress.calibrate import HeadStatistics, LayerStatistics
from loop_singular_bit.compress.encode import (
    EncodedInput,
    SharedStatistics,
    encode_input,
    original_matrix,
)
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.compress.guidance import Guidance, guidance
from loop_singular_bit.compress.journal import EMBEDDING, Journal, Part
from loop_singular_bit.compress.openings import first_id, openings
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers, source_text
from loop_singular_bit.compress.sensitivity import sensitivities
from loop_singular_bit.compress.source import Source
from loop_singular_bit.compress.spend import Kept
from loop_singular_bit.container.writer import ContainerWriter
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, InputSite
from loop_singular_bit.errors import InputRefusedError, ResourceError, UsageError
from loop_singular_bit.models.spec import (
    LINEAR_ROLES,
    ModelSpec,
    Role,
    TensorSpec,
    all_tensors,
    layer_tensors,
)

Floats = npt.NDArray[np.float32]
# (stage, done, total); stages: "fetch", "sample", "guide", "layer", "evaluate", and "kept sample",
# "kept guide", "kept layer" for what a stopped run had finished
Progress = Callable[[str, int, int], None]

SEQUENCE_TOKENS = 256
SEED_MAX = (1 << 32) - 1


def silent(stage: str, done: int, total: int) -> None:
    """Progress that says nothing."""


@dataclass(frozen=True)
class CalibrationOptions:
    """tokens in all; text None: sampled from the model itself; seed: of signs and sampling.

    guided  tokens count as much as the loss cares (compress/guidance.py)
    """

    tokens: int = 16384
    text: str | None = None
    seed: int = 0
    guided: bool = True

    def __post_init__(self) -> None:
        if self.tokens < SEQUENCE_TOKENS:
            raise UsageError(
                f"--calibration-tokens {self.tokens}: must be at least {SEQUENCE_TOKENS}"
            )
        if not 0 <= self.seed <= SEED_MAX:
            raise UsageError(f"--seed {self.seed}: must be 0..{SEED_MAX}")


@dataclass
class Written:
    """What the encoder reports of a written artefact.

    absolute_errors: sum of |W - W'| of each matrix
    sensitivity: as in `Calibration`
    """

    plan: Plan
    directory: Path
    reports: dict[str, EncodeReport] = field(default_factory=dict)
    absolute_errors: dict[str, float] = field(default_factory=dict)
    sensitivity: Mapping[str, float] | None = None

    def restore(self, journal: Journal, spec: ModelSpec) -> None:
        """Takes over what a stopped run reported; clears a journal whose file is gone.

        Raises ResourceError for finished weights that the journal does not have.
        """
        path = self.directory / WEIGHTS_FILE
        if path.exists() and journal.next <= spec.layers:
            raise ResourceError(
                f"{path} is finished, but only {len(journal.parts)} parts of it are in its "
                "journal; start over with --restart"
            )
        if not path.exists() and not path.with_name(f"{path.name}.partial").exists():
            journal.clear()
        for part in journal.parts:
            self.reports |= part.reports
            self.absolute_errors |= part.absolute_errors

    def mean_absolute_error(self, spec: ModelSpec) -> float:
        """Mean |W - W'| over all matrices, embedding and head included."""
        counts = {t.name: t.count for t in all_tensors(spec)}
        total = sum(counts[name] for name in self.absolute_errors)
        return sum(self.absolute_errors.values()) / total


def make_plan(
    source: Source,
    options: CodecOptions,
    budgets: Budgets,
    seed: int = 0,
    sensitivity: Mapping[str, float] | None = None,
    nats: float = 0.0,
    kept: Kept | None = None,
) -> Plan:
    """The plan for a source and its exact size; sensitivity: as in `Calibration`, None before it is
    known; nats, kept: as in `Goal`. Raises BudgetError when storage cannot hold it."""
    dtypes = {t.name: source.dtype(t) for t in all_tensors(source.spec)}
    companions = sum(len(data) for data in source.companion_files().values())
    goal = None if sensitivity is None else Goal(sensitivity, nats, kept or {})
    return allocate.plan(
        source.spec, dtypes, companions, options, budgets.storage_bytes, seed, goal
    )


@dataclass(frozen=True)
class Calibration:
    """Tokens [sequences, length], what each of them counts, and what each matrix costs
    (compress/sensitivity.py); the last two None where nothing guides."""

    tokens: Tokens
    guidance: Guidance | None = None
    sensitivity: Mapping[str, float] | None = None

    def statistics(
        self, network: Network, start: int = 0
    ) -> Iterator[LayerStatistics | HeadStatistics]:
        """Of every layer from `start` on, then of the head."""
        return calibrate.statistics(network, self.tokens, self.guidance, start, shrunk=True)


def make_calibration(
    source: Source,
    network: OriginalNetwork,
    options: CalibrationOptions,
    folder: Path,
    progress: Progress,
) -> Calibration:
    """Tokens sampled or read, and guided if asked for; `folder` holds hidden states meanwhile."""
    tokens = calibration_tokens(source, network, options, progress)
    if not options.guided:
        return Calibration(tokens)
    return guided_calibration(network, tokens, options.seed, folder, progress)


def guided_calibration(
    network: OriginalNetwork, tokens: Tokens, seed: int, folder: Path, progress: Progress
) -> Calibration:
    """The same of tokens [sequences, length] that are there."""
    found = guidance(
        network, tokens, seed, folder, lambda done, total: progress("guide", done, total)
    )
    return Calibration(tokens, found, sensitivities(network, found))


def calibration_tokens(
    source: Source, network: OriginalNetwork, options: CalibrationOptions, progress: Progress
) -> Tokens:
    """[sequences, length] token ids: from the text given, or sampled from the model."""
    length = min(SEQUENCE_TOKENS, source.spec.context_max)
    sequences = max(1, options.tokens // length)
    files = source.companion_files()
    if options.text is None:
        first = first_id(files, source.spec.vocab)
        with source_text(source) as text:
            starts = openings(text, first, sequences)
        return calibrate.sample_sequences(
            network, starts, length, options.seed,
            lambda done, total: progress("sample", done, total),
        )  # fmt: skip
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
    ids = tokenizer.encode(options.text, add_special_tokens=False).ids
    if len(ids) < length:
        raise InputRefusedError(
            f"--calibration: the text has {len(ids)} tokens, at least {length} are needed"
        )
    sequences = min(sequences, len(ids) // length)
    return np.asarray(ids[: sequences * length], np.int64).reshape(sequences, length)


def write_artefacts(
    source: Source,
    plans: Sequence[tuple[Plan, Path]],
    calibration: Calibration | None,
    seed: int,
    progress: Progress = silent,
    journals: Sequence[Journal] = (),
) -> list[Written]:
    """Encodes every tensor and writes weights and companion files, for each (plan, directory).

    All plans share one pass over the calibration tokens. calibration None is enough for the
    baselines, which use no statistics. journals: one for each plan, or none; an artefact goes on
    behind what its journal says is finished, and leaves what it has when it is stopped.
    """
    network = OriginalNetwork(source, resident_layers(source))
    known = None if calibration is None else calibration.sensitivity
    results = [Written(plan, directory, sensitivity=known) for plan, directory in plans]
    for written, journal in zip(results, journals, strict=False):
        written.restore(journal, source.spec)
    with ExitStack() as stack:
        jobs = [
            _Job(source, network, stack.enter_context(_writer(w, seed, j)), seed, w, j)
            for w, j in zip_longest(results, journals)
            if j is None or not (w.directory / WEIGHTS_FILE).exists()
        ]
        _write(jobs, network, calibration, progress)
    for written in results:
        for name, data in source.companion_files().items():
            (written.directory / name).write_bytes(data)
    return results


def _write(
    jobs: Sequence[_Job],
    network: OriginalNetwork,
    calibration: Calibration | None,
    progress: Progress,
) -> None:
    """What is missing of each artefact, in one pass."""
    layers = network.spec.layers
    for job in jobs:
        job.write_embedding()
    start = min((job.next for job in jobs), default=layers + 1)
    if start > 0:
        progress("kept layer", min(start, layers), layers)
    if start > layers:
        return
    # Kept only for several artefacts at once: one alone frees each factor when it is used.
    shared: SharedStatistics | None = {} if len(jobs) > 1 else None
    stream = calibration.statistics(network, start) if calibration else _plain(network, start)
    for found in stream:
        for job in jobs:
            job.write(found, shared)
        if shared is not None:
            shared.clear()
        if isinstance(found, LayerStatistics):
            progress("layer", found.index + 1, layers)


def _writer(written: Written, seed: int, journal: Journal | None) -> ContainerWriter:
    path = written.directory / WEIGHTS_FILE
    marks = None if journal is None else [part.mark for part in journal.parts]
    return ContainerWriter(
        path, allocate.file_meta(seed), expected_bytes=written.plan.size_bytes, marks=marks
    )


def _plain(network: OriginalNetwork, start: int) -> Iterator[LayerStatistics | HeadStatistics]:
    """Layers from `start` on without statistics, and the head."""
    for index in range(start, network.spec.layers):
        yield LayerStatistics(index, network.layer(index), {})
    yield HeadStatistics(None)


@dataclass
class _Job:
    """One artefact being written."""

    source: Source
    network: OriginalNetwork
    writer: ContainerWriter
    seed: int
    written: Written
    journal: Journal | None = None

    @property
    def codecs(self) -> Mapping[str, Codec]:
        return self.written.plan.codecs

    @property
    def next(self) -> int:
        """The first layer that is missing, or their number for the head."""
        return max(0, self.journal.next) if self.journal else 0

    def write(
        self, found: LayerStatistics | HeadStatistics, shared: SharedStatistics | None
    ) -> None:
        """The next part of the network, unless it is there."""
        layers = self.source.spec.layers
        index = found.index if isinstance(found, LayerStatistics) else layers
        if index < self.next:
            return
        with self._part(index):
            if isinstance(found, LayerStatistics):
                self._write_layer(found, shared)
            else:
                self._write_top(found, shared)

    @contextmanager
    def _part(self, index: int) -> Iterator[None]:
        """A run of the file; the journal has it once it is durable."""
        self.writer.begin_run()
        before = set(self.written.reports)
        yield
        if self.journal is not None:
            reports = {k: v for k, v in self.written.reports.items() if k not in before}
            errors = {name: self.written.absolute_errors[name] for name in reports}
            self.journal.add(Part(index, self.writer.mark(), reports, errors))

    def _add(self, name: str, payload: Payload) -> None:
        self.writer.add(name, payload.kind, payload.attributes, payload.extents)

    def _vector(self, tensor: TensorSpec) -> None:
        stored = self.source.read(tensor)
        self._add(tensor.name, pack_vector(stored.data, stored.dtype))

    def _encoded(self, encoded: EncodedInput) -> None:
        if encoded.transform is not None:
            self._add(encoded.name, pack_transform(encoded.transform))
        for name, weight in encoded.weights.items():
            self._add(name, pack_weight(weight, encoded.name))
        self.written.reports |= encoded.reports
        self.written.absolute_errors |= encoded.absolute_errors

    def write_embedding(self) -> None:
        """An embedding that is only looked up has no input, hence no statistics. A tied one is the
        head, and is written as such."""
        if self.source.spec.tied_head or (self.journal and self.journal.next > EMBEDDING):
            return
        with self._part(EMBEDDING):
            embedding = file_tensors(self.source.spec)[0]
            self._matrices({embedding: self.network.embedding}, {}, None)

    def _matrices(
        self,
        originals: Mapping[TensorSpec, Weight],
        hessians: Mapping[Role, Floats],
        shared: SharedStatistics | None,
    ) -> None:
        """Matrices that share an input."""
        matrices = [
            original_matrix(t.name, weight, hessians.get(t.role)) for t, weight in originals.items()
        ]
        name = input_name(next(iter(originals)))
        self._encoded(encode_input(name, matrices, self.codecs, self.seed, shared))

    def _write_layer(self, found: LayerStatistics, shared: SharedStatistics | None) -> None:
        """One layer in sweep order."""
        tensors = layer_tensors(self.source.spec, found.index)
        done: set[InputSite] = set()
        for tensor in tensors:
            if tensor.role not in LINEAR_ROLES:
                self._vector(tensor)
                continue
            site = SITE_OF_ROLE[tensor.role]
            if site in done:
                continue
            done.add(site)
            group = {
                t: getattr(found.weights, t.role.value)
                for t in tensors
                if SITE_OF_ROLE.get(t.role) is site
            }
            self._matrices(group, found.hessians, shared)

    def _write_top(self, found: HeadStatistics, shared: SharedStatistics | None) -> None:
        """Final norm, and the head."""
        norm, head = file_tensors(self.source.spec)[-2:]
        self._vector(norm)
        known = {} if found.hessian is None else {head.role: found.hessian}
        self._matrices({head: self.network.head}, known, shared)
