"""An artefact as a Network: in memory, or its layers streamed from disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.records import (
    unpack_frame,
    unpack_transform,
    unpack_vector,
    unpack_weight,
)
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import Linear, PlanesWeight, Weight
from loop_singular_bit.container import ContainerReader, Record, Span
from loop_singular_bit.engine.network import Embedding, LayerWeights
from loop_singular_bit.engine.ring import READERS, SLOTS_MIN, Ring
from loop_singular_bit.engine.rows_on_disk import KINDS as ROW_KINDS
from loop_singular_bit.engine.rows_on_disk import rows_on_disk
from loop_singular_bit.engine.stream import Stream, plan_spans, streamed_matrix
from loop_singular_bit.engine.sweep import InputSite
from loop_singular_bit.errors import ConfigError, FormatError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import LINEAR_ROLES, ModelSpec, all_tensors, layer_tensors

Floats = npt.NDArray[np.float32]

EachLayer = Callable[[Callable[[int], LayerWeights], Iterable[int]], Iterable[LayerWeights]]

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
    """The weights of an artefact. Raises FormatError when its records are not the network's."""

    resident = True
    streamed = False
    embedding: Embedding
    head: Linear

    def __init__(self, directory: Path) -> None:
        self.spec = read_spec(directory)
        with ExitStack() as stack:
            self.reader = stack.enter_context(ContainerReader.open(directory / WEIGHTS_FILE))
            check_records(self.reader, self.spec)
            self._transforms = {
                record.name: self._transform(record)
                for record in self.reader.records
                if record.kind == "input"
            }
            self._load()
            stack.pop_all()

    def _load(self) -> None:
        """Reads what stays in memory."""

    def close(self) -> None:
        self.reader.close()

    def layer(self, index: int) -> LayerWeights:
        """One layer, the same object on every call."""
        return self._layers[index]

    def matrix(self, name: str) -> Weight:
        """A matrix, read whole and not kept."""
        return self._weight(name)

    def frame(self, name: str) -> PlanesWeight:
        """A matrix of kind `planes` without its tiles and outliers, read and not kept."""
        record, read = self.reader.record(name), partial(self.reader.read, name)
        return unpack_frame(name, record.attributes, read, self._transforms)

    def vector(self, name: str) -> Floats:
        """A norm gain or bias, read and not kept."""
        return self._vector(name)

    def read_each(self) -> None:
        """Reads every tensor once, one at a time. Raises FormatError naming an unsound one."""
        for tensor in all_tensors(self.spec):
            read = self.matrix if len(tensor.shape) == 2 else self.vector
            read(tensor.name)

    def _read_layers(self, each: EachLayer = map) -> None:
        """each: `map`, or one that reads several at once."""
        self.final_norm = self._vector("final_norm")
        self._layers = list(each(self._read_layer, range(self.spec.layers)))

    def begin_layers(self, head_follows: bool) -> None:
        """A sweep over the layers starts."""

    def begin_head(self) -> None:
        """A pass over the head starts."""

    def read_through(self) -> None:
        """Reads from disk what a sweep reads, and multiplies nothing."""

    def _read_layer(self, index: int) -> LayerWeights:
        parts: dict[str, Linear | Floats] = {}
        for tensor in layer_tensors(self.spec, index):
            linear = tensor.role in LINEAR_ROLES
            read = self._matrix if linear else self._vector
            parts[tensor.role.value] = read(tensor.name)
        return LayerWeights(**parts)  # type: ignore[arg-type]

    def _transform(self, record: Record) -> InputTransform:
        read = partial(self.reader.read, record.name)
        return unpack_transform(record.name, record.attributes, read)

    def _vector(self, name: str) -> Floats:
        record = self.reader.record(name)
        return unpack_vector(name, record.attributes, partial(self.reader.read, name))

    def _weight(self, name: str) -> Weight:
        record, read = self.reader.record(name), partial(self.reader.read, name)
        return unpack_weight(name, record.kind, record.attributes, read, self._transforms)

    def _matrix(self, name: str) -> Linear:
        return self._weight(name)


class ResidentNetwork(ArtefactNetwork):
    """Everything in memory; unpacked, planes are decoded once instead of for every token."""

    def __init__(self, directory: Path, *, unpack: bool = False) -> None:
        self._unpack = unpack
        super().__init__(directory)

    def _load(self) -> None:
        if self._unpack:  # one matrix at a time is decoded
            self._read_layers()
        else:
            with ThreadPoolExecutor(READERS, thread_name_prefix="lsb-reader") as pool:
                self._read_layers(pool.map)
        embedding = self._weight("embed")
        self.embedding = embedding
        tied = self.spec.tied_head
        self.head = self._fast(embedding) if tied else self._matrix("head")

    def _matrix(self, name: str) -> Linear:
        return self._fast(self._weight(name))

    def _fast(self, weight: Weight) -> Linear:
        return weight.unpacked() if self._unpack and isinstance(weight, PlanesWeight) else weight


class StreamedNetwork(ArtefactNetwork):
    """What is small in memory; the matrices of the layers and the head pass by, rows of the
    embedding are read when they are asked for."""

    streamed = True

    def __init__(
        self, directory: Path, slots: int = SLOTS_MIN, pinned: Collection[int] = ()
    ) -> None:
        """slots, pinned: of the ring."""
        self._slots, self._pinned = slots, pinned
        super().__init__(directory)

    def _load(self) -> None:
        head = self.reader.record("embed" if self.spec.tied_head else "head")
        layers = [span for index in range(self.spec.layers) for span in self._spans(index)]
        top = plan_spans(self.reader, [head])
        ring = Ring(self.reader, [*layers, *top], self._slots, self._pinned)
        self._stream = Stream(ring, layers, top)
        self._read_layers()
        self.head = self._matrix(head.name)
        embed = self.reader.record("embed")
        on_disk = embed.kind in ROW_KINDS
        self.embedding = (
            rows_on_disk(self.reader, embed, self._transforms) if on_disk else self._weight("embed")
        )

    def close(self) -> None:
        self._stream.close()
        super().close()

    def begin_layers(self, head_follows: bool) -> None:
        self._stream.begin_layers(head_follows)

    def begin_head(self) -> None:
        self._stream.begin_head()

    def read_through(self) -> None:
        self._stream.read_through()

    def _spans(self, index: int) -> list[Span]:
        tensors = layer_tensors(self.spec, index)
        return plan_spans(
            self.reader, [self.reader.record(t.name) for t in tensors if t.role in LINEAR_ROLES]
        )

    def _matrix(self, name: str) -> Linear:
        return streamed_matrix(
            self.reader, self.reader.record(name), self._transforms, self._stream
        )
