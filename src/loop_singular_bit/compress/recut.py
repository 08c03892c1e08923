"""A written artefact cut to a smaller size: `lsb compress --from`.

Every plane encodes what those before it left over, so a matrix without its last planes is a weight
with fewer. Nothing is encoded again and the original is not needed. Error feedback counted on the
planes that go, so an artefact that is encoded at the smaller size loses less.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, Budgets
from loop_singular_bit.codec.codecs import Codec, Planes
from loop_singular_bit.codec.numbers import to_bf16
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.prefix import Difference, prefix
from loop_singular_bit.codec.weights import PlanesWeight, Weight
from loop_singular_bit.compress.allocate import CodecOptions, Goal, Plan, choose, uniform
from loop_singular_bit.compress.card import NOT_MEASURED
from loop_singular_bit.compress.compressor import (
    REPORT_FILE,
    CompressionResult,
    EvaluationOptions,
    Measured,
    evaluate_written,
    evaluation_tokens,
    measured_facts,
    probed,
    read_report,
    refuse_inside,
    target_facts,
    write_report,
)
from loop_singular_bit.compress.encode import absolute_error, original_matrix
from loop_singular_bit.compress.hf_source import COMPANION_FILES
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.output import new_directory
from loop_singular_bit.compress.pipeline import Progress, Written, silent
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.compress.validate import same_sizes
from loop_singular_bit.container import ContainerWriter, Record, RecordPlan, plan_layout
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ArtefactNetwork
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.errors import FormatError, UsageError
from loop_singular_bit.measure.probe import RunRequest
from loop_singular_bit.measure.quality import Quality
from loop_singular_bit.models.spec import LINEAR_ROLES, ModelSpec, all_tensors

Array = npt.NDArray[Any]
Windows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecutOptions:
    """What is asked of the smaller artefact.

    budgets     the storage budget is what it is cut to; the others are looked at afterwards
    against     the original: a directory, GGUF file or hub id; None leaves quality unmeasured
    """

    budgets: Budgets
    against: str | None = None
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.budgets.storage_gb is None:
            raise UsageError("--from needs --storage-gb, the size to cut the artefact to")
        if self.against is None and self.budgets.loss_percent is not None:
            raise UsageError(
                f"--max-loss {self.budgets.loss_percent:g}: loss is measured against the original: "
                "add --against MODEL"
            )


def recut(
    directory: Path, output: Path, options: RecutOptions, progress: Progress = silent
) -> CompressionResult:
    """Writes the artefact in `directory` with fewer planes into the new directory `output`.

    Planes go where report.json says that they cost least for their bytes, else in a fixed order.
    Raises UsageError when the artefact is no larger than the budget, BudgetError with the least
    size when it cannot be that small, FormatError for a file or a report that is none of ours,
    ResourceError for a damaged one, InputRefusedError where `against` is another model.
    """
    started = time.monotonic()
    _native.set_threads(usable_cores() if options.threads is None else options.threads)
    refuse_inside(output, directory)
    with closing(ArtefactNetwork(directory)) as network:
        artefact = Artefact.of(network, directory)
        sensitivity = known_sensitivity(directory / REPORT_FILE, artefact.frames)
        plan = plan_cut(artefact, options.budgets, sensitivity)
        original = _original(options, network.spec)
        with new_directory(output) as folder:
            lost = artefact.write(plan, folder / WEIGHTS_FILE, progress)
            for name, path in artefact.companions.items():
                shutil.copyfile(path, folder / name)
            written = Written(plan, folder, sensitivity=sensitivity)
            quality = None if original is None else _compared(written, *original, progress)
            run = probed(RunRequest(str(folder), options.budgets.ram_bytes, None, options.threads))
            measured = Measured(written, quality, run, time.monotonic() - started)
            return _report(artefact, measured, lost, output, options)


def _report(
    artefact: Artefact,
    measured: Measured,
    lost: Mapping[str, Difference],
    output: Path,
    options: RecutOptions,
) -> CompressionResult:
    """relative_change of a matrix: the share of its energy, in the rotated basis, that its planes
    took with them."""
    before = read_report(artefact.directory / REPORT_FILE) or {}
    written = measured.written
    model = options.against or before.get("model")
    values = measured_facts(artefact.network.spec, model, measured, output)
    values |= {
        "cut_from": str(artefact.directory),
        "cut_from_bytes": artefact.size_bytes,
        "order": "fixed" if written.sensitivity is None else "sensitivity",
    }
    if measured.quality is None:
        values["quality"] = NOT_MEASURED
    if (synthetic := artefact.network.reader.meta.get("synthetic")) is not None:
        values["synthetic"] = synthetic
    tensors = {
        name: {
            "planes": _planes(written.plan.codecs[name]), "planes_before": frame.planes,
            "relative_change": lost[name].relative,
        }
        for name, frame in artefact.frames.items()
    }  # fmt: skip
    return write_report(measured, values | target_facts(options.budgets, measured), tensors)


def plan_cut(artefact: Artefact, budgets: Budgets, sensitivity: Mapping[str, float] | None) -> Plan:
    """Which planes stay. Raises UsageError and BudgetError as `recut` does."""
    storage_bytes, spec = budgets.storage_bytes, artefact.network.spec
    assert storage_bytes is not None
    if storage_bytes >= artefact.size_bytes:
        raise UsageError(
            f"--storage-gb {budgets.storage_gb:g}: {artefact.directory} takes "
            f"{artefact.size_bytes / GIGABYTE:.9f} GB, which is no more: give a smaller size"
        )
    goal = None if sensitivity is None else Goal(sensitivity)
    return choose(spec, artefact.sized, _rungs(spec, artefact.codecs), storage_bytes, goal)


def _rungs(spec: ModelSpec, codecs: Mapping[str, Codec]) -> list[Mapping[str, Codec]]:
    """Even planes as `lsb compress` gives them, where a matrix has as many; then all there are."""
    found: list[Mapping[str, Codec]] = []
    for planes in range(1, max(map(_planes, codecs.values()), default=1)):
        even = uniform(spec, CodecOptions(), planes)
        fewer = {name: min(_planes(even[name]), _planes(codec)) for name, codec in codecs.items()}
        found.append({name: _codec(count) for name, count in fewer.items()})
    return [*found, codecs]


def _codec(planes: int) -> Codec:
    """A number of planes as the planner knows it; the size comes from the file."""
    return Planes(PlaneOptions(planes))


def _planes(codec: Codec | None) -> int:
    return codec.options.planes if isinstance(codec, Planes) else 0


@dataclass(frozen=True)
class Artefact:
    """An artefact to cut.

    frames      its matrices in planes by name, without tiles and outliers
    companions  files beside the weights, by name
    """

    network: ArtefactNetwork
    directory: Path
    frames: Mapping[str, PlanesWeight]
    companions: Mapping[str, Path]

    @classmethod
    def of(cls, network: ArtefactNetwork, directory: Path) -> Artefact:
        """Raises FormatError for tiles that are not as long as their record says."""
        matrices = {t.name for t in all_tensors(network.spec) if len(t.shape) == 2}
        frames: dict[str, PlanesWeight] = {}
        for record in network.reader.records:
            if record.kind == "planes" and record.name in matrices:
                frames[record.name] = network.frame(record.name)
                _check_tiles(record, frames[record.name])
        paths = {name: directory / name for name in COMPANION_FILES}
        beside = {name: path for name, path in paths.items() if path.is_file()}
        return cls(network, directory, frames, beside)

    @property
    def companion_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.companions.values())

    @property
    def size_bytes(self) -> int:
        """All that inference needs."""
        return self.network.reader.file_bytes + self.companion_bytes

    @property
    def codecs(self) -> dict[str, Codec]:
        """The planes that there are."""
        return {name: _codec(frame.planes) for name, frame in self.frames.items()}

    @cached_property
    def runs(self) -> frozenset[str]:
        """Records that begin a run."""
        return frozenset(span.pieces[0].record for span in self.network.reader.runs)

    def sized(self, codecs: Mapping[str, Codec]) -> Plan:
        """The plan that leaves the planes of `codecs`, and its exact size."""
        index = self.network.reader.index
        optional = {extent.name: extent.size_bytes for extent in index.optional}
        records = [self._planned(r, _planes(codecs.get(r.name))) for r in index.records]
        layout = plan_layout(records, index.meta, optional, index.block_bytes, index.shard_bytes)
        size_bytes = layout.file_bytes + self.companion_bytes
        return Plan(codecs, size_bytes, size_bytes)

    def _planned(self, record: Record, planes: int) -> RecordPlan:
        extents = {extent.name: extent.size_bytes for extent in record.extents}
        if planes:
            tiling = replace(self.frames[record.name].tiling, planes=planes)
            extents |= dict(tiling.extent_bytes())
        attributes, begins = _attributes(record, planes), record.name in self.runs
        return RecordPlan(record.name, record.kind, attributes, extents, begins)

    def write(self, plan: Plan, path: Path, progress: Progress) -> dict[str, Difference]:
        """Writes the weights, one record in memory at a time; what each matrix lost."""
        reader, found = self.network.reader, {}
        index, expected = reader.index, plan.size_bytes - self.companion_bytes
        with ContainerWriter(
            path, index.meta, block_bytes=index.block_bytes, shard_bytes=index.shard_bytes,
            expected_bytes=expected,
        ) as writer:  # fmt: skip
            for number, record in enumerate(index.records):
                if record.name in self.runs:
                    writer.begin_run()
                planes = _planes(plan.codecs.get(record.name))
                extents, found[record.name] = self._cut(record, planes)
                writer.add(record.name, record.kind, _attributes(record, planes), extents)
                progress("cut", number + 1, len(index.records))
            for extent in index.optional:
                writer.add_optional(extent.name, reader.read_optional(extent.name))
        return found

    def _cut(self, record: Record, planes: int) -> tuple[dict[str, Array], Difference]:
        """The extents of a record in file order; planes are taken from one of them at a time."""
        read = partial(self.network.reader.read, record.name)
        frame = self.frames.get(record.name)
        found: dict[str, Array] = {}
        total, scales = Difference(), []
        if frame is not None and planes < frame.planes:
            for number, (name, _) in enumerate(frame.tiling.extent_bytes()):
                kept, difference = prefix(frame.extent(number, read(name))[1], planes)
                found[name], total = kept.extents[0], total + difference
                scales.append(kept.row_scale)
            found["scale"] = to_bf16(np.concatenate(scales))
        names = (extent.name for extent in record.extents)
        return {name: found[name] if name in found else read(name) for name in names}, total


def _attributes(record: Record, planes: int) -> dict[str, Any]:
    return {**record.attributes, "planes": planes} if planes else dict(record.attributes)


def _check_tiles(record: Record, frame: PlanesWeight) -> None:
    sizes = {extent.name: extent.size_bytes for extent in record.extents}
    for name, nbytes in frame.tiling.extent_bytes():
        if sizes.get(name) != nbytes:
            raise FormatError(
                f"record {record.name!r}: extent {name!r} has {sizes.get(name)} bytes, "
                f"expected {nbytes}"
            )


def known_sensitivity(path: Path, matrices: Iterable[str]) -> dict[str, float] | None:
    """What the report at `path` predicts for each matrix, None where it does not.

    Raises FormatError for one that has no number for a matrix.
    """
    found = (read_report(path) or {}).get("sensitivity")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise FormatError(f"{path}: sensitivity is no object, expected a number for each matrix")
    for name in matrices:
        value = found.get(name)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise FormatError(
                f"{path}: sensitivity of {name} is {value!r}, expected a number that is not "
                "negative; remove the file to cut in a fixed order"
            )
    return found


def _original(options: RecutOptions, spec: ModelSpec) -> tuple[Source, Windows] | None:
    """The original and the tokens to compare on. Raises InputRefusedError for another model."""
    if options.against is None:
        return None
    source = open_source(options.against)
    same_sizes(spec, source.spec, options.against)
    return source, evaluation_tokens(source, options.evaluation)


def _compared(written: Written, source: Source, windows: Windows, progress: Progress) -> Quality:
    """Loss and divergence of what was written, and its absolute errors into `written`."""
    network = OriginalNetwork(source, 0)
    with closing(ArtefactNetwork(written.directory)) as mine:
        for name, weight in _matrices(network):
            written.absolute_errors[name] = absolute_error(
                mine.matrix(name), original_matrix(name, weight)
            )
    return evaluate_written(source, [written], windows, progress)[0]


def _matrices(network: OriginalNetwork) -> Iterator[tuple[str, Weight]]:
    """Every matrix of the original, one layer in memory at a time."""
    yield "embed", network.embedding
    for index in range(network.spec.layers):
        layer = network.layer(index)
        for role in LINEAR_ROLES:
            yield f"layers.{index}.{role.value}", getattr(layer, role.value)
    if not network.spec.tied_head:
        yield "head", network.head
