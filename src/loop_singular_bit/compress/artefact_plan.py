"""The plan of an artefact that is written already, so that what predicts a new one predicts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loop_singular_bit.budget import Ledger
from loop_singular_bit.codec.codecs import Codec, Int8, Outlier1, Planes, Raw16, Uniform1
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.compress.allocate import Plan
from loop_singular_bit.compress.estimate import run_ram
from loop_singular_bit.compress.source import SourceTensor
from loop_singular_bit.container.index import Record
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
from loop_singular_bit.models.spec import ModelSpec, TensorSpec


@dataclass(frozen=True)
class ArtefactSource:
    """An artefact as far as planning asks a source: what it is, not what it holds."""

    path: Path
    spec: ModelSpec
    dtypes: Mapping[str, str]

    def dtype(self, tensor: TensorSpec) -> str:
        """Stored type; of a matrix without outliers it is not kept, and changes no size."""
        return self.dtypes.get(tensor.name, "bf16")

    def read(
        self, tensor: TensorSpec, row_start: int = 0, row_stop: int | None = None
    ) -> SourceTensor:
        raise TypeError(f"{tensor.name}: an artefact has no original weights")

    def companion_files(self) -> Mapping[str, bytes]:
        raise TypeError("the files beside the weights are not part of a memory plan")


def predicted_ram(directory: Path, context: int, ram_bytes: int | None) -> Ledger:
    """What `lsb estimate` would predict for a run of this artefact: in memory where that fits
    `ram_bytes`, streamed otherwise."""
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        records = reader.records
        size = reader.file_bytes
    dtypes = {r.name: str(r.attributes[k]) for r in records for k in _DTYPE if k in r.attributes}
    codecs = {r.name: _codec(r) for r in records if "rows" in r.attributes}
    source = ArtefactSource(directory, read_spec(directory), dtypes)
    resident, streamed = run_ram(source, Plan(codecs, size, size), context)
    fits = ram_bytes is None or resident.total_bytes <= ram_bytes
    return resident if fits else streamed


_DTYPE = ("dtype", "outlier_dtype")


def _codec(record: Record) -> Codec:
    """The codec that made a matrix, as far as its size depends on it."""
    get = record.attributes
    ratio = get.get("outliers", 0) / (get["rows"] * get["cols"])
    if record.kind == "planes":
        options = PlaneOptions(get["planes"], get["window"], tile_rows=get["tile_rows"])
        return Planes(options, ratio)
    if record.kind == "outlier1":
        return Outlier1(ratio)
    plain: dict[str, Codec] = {"raw": Raw16(), "int8": Int8(), "uniform1": Uniform1()}
    return plain[record.kind]
