"""From a model a person has to an artefact, and to the figures measured on that artefact.

source -> plan -> calibration -> encoded layers -> container -> reopen -> evaluate -> report
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
from loop_singular_bit.compress.calibrate import HeadStatistics, LayerStatistics, Tokens
from loop_singular_bit.compress.encode import (
    EncodedInput,
    SharedStatistics,
    encode_input,
    original_matrix,
)
from loop_singular_bit.compress.guidance import Guidance, guidance
from loop_singular_bit.compress.openings import openings
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers, source_text
from loop_singular_bit.compress.sensitivity import sensitivities
from loop_singular_bit.compress.source import Source
from loop_singular_bit.container.writer import ContainerWriter
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, InputSite
from loop_singular_bit.errors import (
    ConfigError,
    InputRefusedError,
    InterruptedRunError,
    UsageError,
)
from loop_singular_bit.models.spec import (
    LINEAR_ROLES,
    ModelSpec,
    Role,
    TensorSpec,
    all_tensors,
    layer_tensors,
)

Floats = npt.NDArray[np.float32]
# (stage, done, total); stages: "fetch", "sample", "guide", "layer", "evaluate"
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
) -> Plan:
    """The plan for a source and its exact size; sensitivity: as in `Calibration`, None before it is
    known; nats: as in `Goal`. Raises BudgetError when storage cannot hold it."""
    dtypes = {t.name: source.dtype(t) for t in all_tensors(source.spec)}
    companions = sum(len(data) for data in source.companion_files().values())
    goal = None if sensitivity is None else Goal(sensitivity, nats)
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

    def statistics(self, network: Network) -> Iterator[LayerStatistics | HeadStatistics]:
        """Of every layer in order, then of the head."""
        return calibrate.statistics(network, self.tokens, self.guidance)


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
    found = guidance(
        network, tokens, options.seed, folder, lambda done, total: progress("guide", done, total)
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


def first_id(files: Mapping[str, bytes], vocab: int) -> int:
    """The token a text starts with: beginning of text, else end of text, else 0.

    Raises ConfigError when config.json names a token that has no row in the embedding.
    """
    config = json.loads(files["config.json"])
    for name in ("bos_token_id", "eos_token_id"):
        found = config.get(name)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            if not 0 <= found < vocab:
                raise ConfigError(f"config.json {name} is {found}: must be 0..{vocab - 1}")
            return found
    return 0


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears at `path` complete or not at all.

    Raises InputRefusedError when `path` exists and is not an empty directory.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputRefusedError(f"output {path} exists and is not an empty directory: name another")
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            "stopped; nothing was left behind, run again to start over"
        ) from error
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def write_artefacts(
    source: Source,
    plans: Sequence[tuple[Plan, Path]],
    calibration: Calibration | None,
    seed: int,
    progress: Progress = silent,
) -> list[Written]:
    """Encodes every tensor and writes weights and companion files, for each (plan, directory).

    All plans share one pass over the calibration tokens. calibration None is enough for the
    baselines, which use no statistics.
    """
    network = OriginalNetwork(source, resident_layers(source))
    known = None if calibration is None else calibration.sensitivity
    results = [Written(plan, directory, sensitivity=known) for plan, directory in plans]
    with ExitStack() as stack:
        jobs = [
            _Job(source, network, stack.enter_context(_writer(w, seed)), seed, w) for w in results
        ]
        for job in jobs:
            job.write_embedding()
        # Kept only for several artefacts at once: one alone frees each factor when it is used.
        shared: SharedStatistics | None = {} if len(jobs) > 1 else None
        stream = _plain(network) if calibration is None else calibration.statistics(network)
        for found in stream:
            for job in jobs:
                job.write(found, shared)
            if shared is not None:
                shared.clear()
            if isinstance(found, LayerStatistics):
                progress("layer", found.index + 1, source.spec.layers)
    for written in results:
        for name, data in source.companion_files().items():
            (written.directory / name).write_bytes(data)
    return results


def _writer(written: Written, seed: int) -> ContainerWriter:
    path = written.directory / WEIGHTS_FILE
    return ContainerWriter(path, allocate.file_meta(seed), expected_bytes=written.plan.size_bytes)


def _plain(network: OriginalNetwork) -> Iterator[LayerStatistics | HeadStatistics]:
    """Layers without statistics."""
    for index in range(network.spec.layers):
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

    @property
    def codecs(self) -> Mapping[str, Codec]:
        return self.written.plan.codecs

    def write(
        self, found: LayerStatistics | HeadStatistics, shared: SharedStatistics | None
    ) -> None:
        """The next part of the network."""
        if isinstance(found, LayerStatistics):
            self._write_layer(found, shared)
        else:
            self._write_top(found, shared)

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
        if not self.source.spec.tied_head:
            self.writer.begin_run()
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
        self.writer.begin_run()
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
        self.writer.begin_run()
        norm, head = file_tensors(self.source.spec)[-2:]
        self._vector(norm)
        known = {} if found.hessian is None else {head.role: found.hessian}
        self._matrices({head: self.network.head}, known, shared)
