"""The original model as a Network: the same engine, weights exactly as stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.numbers import DenseKind, from_pattern
from loop_singular_bit.codec.weights import DenseWeight, Weight
from loop_singular_bit.compress.source import Source, SourceTensor, open_source
from loop_singular_bit.engine.network import LayerWeights
from loop_singular_bit.engine.text import Text
from loop_singular_bit.models.spec import (
    LINEAR_ROLES,
    ModelSpec,
    Role,
    TensorSpec,
    all_tensors,
    layer_tensors,
)

Floats = npt.NDArray[np.float32]

RESIDENT_BYTES = 1 << 30  # an original this small is read once and kept while it is used


def raw_weight(tensor: SourceTensor) -> DenseWeight:
    """A matrix as stored."""
    return DenseWeight(DenseKind[tensor.dtype.upper()], tensor.data.shape[1], tensor.data)


class OriginalNetwork:
    """Reads layers from a Source; keeps up to `resident_layers` of them in memory."""

    def __init__(self, source: Source, resident_layers: int) -> None:
        self._source = source
        self._resident_layers = resident_layers
        self._kept: dict[int, LayerWeights] = {}
        self._top = {t.role: t for t in all_tensors(source.spec) if t.layer is None}

    @property
    def spec(self) -> ModelSpec:
        return self._source.spec

    @property
    def resident(self) -> bool:
        return self._resident_layers >= self.spec.layers

    @cached_property
    def final_norm(self) -> Floats:
        return self._vector(self._top[Role.FINAL_NORM])

    @cached_property
    def embedding(self) -> Weight:
        return raw_weight(self._source.read(self._top[Role.EMBEDDING]))

    @cached_property
    def head(self) -> Weight:
        if self.spec.tied_head:
            return self.embedding
        return raw_weight(self._source.read(self._top[Role.HEAD]))

    def layer(self, index: int) -> LayerWeights:
        if index in self._kept:
            return self._kept[index]
        parts: dict[str, Weight | Floats] = {}
        for tensor in layer_tensors(self.spec, index):
            linear = tensor.role in LINEAR_ROLES
            parts[tensor.role.value] = (
                raw_weight(self._source.read(tensor)) if linear else self._vector(tensor)
            )
        weights = LayerWeights(**parts)  # type: ignore[arg-type]
        if len(self._kept) < self._resident_layers:
            self._kept[index] = weights
        return weights

    def begin_layers(self, head_follows: bool) -> None:
        """Nothing runs ahead."""

    def begin_head(self) -> None:
        """Nothing runs ahead."""

    def _vector(self, tensor: TensorSpec) -> Floats:
        stored = self._source.read(tensor)
        return from_pattern(stored.data, stored.dtype)


def resident_layers(source: Source) -> int:
    """All layers of a small original, none of a large one."""
    parameters = sum(t.count for t in all_tensors(source.spec))
    return source.spec.layers if 4 * parameters <= RESIDENT_BYTES else 0


@contextmanager
def open_original(model: str) -> Iterator[tuple[OriginalNetwork, Text]]:
    """An original and its text; its tokenizer files are laid out for the time it is open."""
    source = open_source(model)
    with source_text(source) as text:
        yield OriginalNetwork(source, resident_layers(source)), text


@contextmanager
def source_text(source: Source) -> Iterator[Text]:
    """The tokenizer and chat template of a source."""
    with TemporaryDirectory(prefix="lsb-") as folder:
        for name, data in source.companion_files().items():
            (Path(folder) / name).write_bytes(data)
        yield Text.open(Path(folder))
