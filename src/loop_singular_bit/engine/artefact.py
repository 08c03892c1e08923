"""An artefact as a Network: in memory, or its layers streamed from disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.records import unpack_transform, unpack_vector, unpack_weight
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import Weight
from loop_singular_bit.container.index import Record
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.network import LayerWeights
from loop_singular_bit.engine.sweep import InputSite
from loop_singular_bit.errors import ConfigError, FormatError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import LINEAR_ROLES, ModelSpec, all_tensors, layer_tensors

Floats = npt.NDArray[np.float32]

WEIGHTS_FILE = "model.lsb"


def read_spec(directory: Path) -> ModelSpec:
    """Specification from an artefact's config.json. Raises ConfigError."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: found {type(config).__name__}, expected an object")
    return spec_from_config(config)


def check_records(reader: ContainerReader, spec: ModelSpec) -> None:
    """Refuses records that are not those of the network: FormatError naming one.

    Every tensor is there with its shape, and nothing else but the rotations of their inputs.
    """
    inputs = {"embed.in", "head.in"} | {
        f"layers.{index}.{site.value}" for index in range(spec.layers) for site in InputSite
    }
    known = {r.name: r for r in reader.records if r.kind != "input" or r.name not in inputs}
    for tensor in all_tensors(spec):
        record = known.pop(tensor.name, None)
        if record is None:
            raise FormatError(f"record {tensor.name!r} is missing, config.json needs it")
        names = ("rows", "cols") if len(tensor.shape) == 2 else ("count",)
        shape = tuple(record.attributes.get(name) for name in names)
        if shape != tensor.shape:
            raise FormatError(
                f"record {tensor.name!r} has shape {shape}, config.json expects {tensor.shape}"
            )
    if known:
        raise FormatError(f"record {min(known)!r} is not part of the network in config.json")


class ArtefactNetwork:
    """The weights of an artefact, read on demand; `layer` reads anew on each call."""

    resident = False

    def __init__(self, directory: Path) -> None:
        self.spec = read_spec(directory)
        with ExitStack() as stack:
            self.reader = ContainerReader.open(directory / WEIGHTS_FILE)
            stack.callback(self.reader.close)
            check_records(self.reader, self.spec)
            self._load()
            stack.pop_all()

    def _load(self) -> None:
        """What is read on opening."""

    def close(self) -> None:
        self.reader.close()

    @cached_property
    def final_norm(self) -> Floats:
        return self._vector("final_norm")

    @cached_property
    def embedding(self) -> Weight:
        return self._weight(self.reader.record("embed"), self._transforms("embed."))

    @cached_property
    def head(self) -> Weight:
        if self.spec.tied_head:
            return self.embedding
        return self._weight(self.reader.record("head"), self._transforms("head."))

    def read_top(self) -> None:
        """Reads embedding, head and final norm now rather than on the first token."""
        self.embedding, self.head, self.final_norm  # noqa: B018

    def layer(self, index: int) -> LayerWeights:
        """Reads one layer."""
        prefix = f"layers.{index}."
        transforms = self._transforms(prefix)
        parts: dict[str, Weight | Floats] = {}
        for tensor in layer_tensors(self.spec, index):
            if tensor.role in LINEAR_ROLES:
                parts[tensor.role.value] = self._weight(self.reader.record(tensor.name), transforms)
            else:
                parts[tensor.role.value] = self._vector(tensor.name)
        return LayerWeights(**parts)  # type: ignore[arg-type]

    def _transforms(self, prefix: str) -> dict[str, InputTransform]:
        return {
            record.name: unpack_transform(
                record.name,
                record.attributes,
                partial(self.reader.read, record.name),
            )
            for record in self.reader.records
            if record.kind == "input" and record.name.startswith(prefix)
        }

    def _vector(self, name: str) -> Floats:
        record = self.reader.record(name)
        return unpack_vector(name, record.attributes, partial(self.reader.read, name))

    def _weight(self, record: Record, transforms: Mapping[str, InputTransform]) -> Weight:
        return unpack_weight(
            record.name, record.kind, record.attributes,
            partial(self.reader.read, record.name), transforms,
        )  # fmt: skip


class ResidentNetwork(ArtefactNetwork):
    """Everything in memory."""

    resident = True

    def _load(self) -> None:
        self._layers = [super(ResidentNetwork, self).layer(i) for i in range(self.spec.layers)]
        self.read_top()

    def layer(self, index: int) -> LayerWeights:
        return self._layers[index]


class StreamedNetwork(ArtefactNetwork):
    """Embedding, head and norms in memory; layers read from disk, the next one ahead of its use."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lsb-reader")
        self._ahead: tuple[int, Future[LayerWeights]] | None = None

    def _load(self) -> None:
        self.read_top()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        super().close()

    def layer(self, index: int) -> LayerWeights:
        if self._ahead is not None and self._ahead[0] == index:
            current = self._ahead[1].result()
        else:
            current = super().layer(index)
        following = (index + 1) % self.spec.layers
        self._ahead = following, self._pool.submit(super().layer, following)
        return current


def layer_sizes(reader: ContainerReader, spec: ModelSpec) -> list[int]:
    """Bytes of the extents of every layer."""
    sizes = [0] * spec.layers
    for record in reader.records:
        parts = record.name.split(".")
        if parts[0] == "layers":
            sizes[int(parts[1])] += sum(extent.size_bytes for extent in record.extents)
    return sizes
