"""The header of a GGUF file (versions 2 and 3): metadata, and where each tensor lies.

The gguf package's own reader keeps a NumPy array for every string (163 MB and 4 s for a vocabulary
of 49,152 tokens) and meets a damaged file with whatever error comes up first, so the header is read
here; the decoding of quantized blocks is the package's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from loop_singular_bit.compress.stored_tensor import StoredTensor, opened
from loop_singular_bit.errors import ConfigError, TensorError

Value = bool | int | float | str | list["Value"]

VERSIONS = (2, 3)
_DIMENSIONS_MAX = 4
_DEFAULT_ALIGNMENT = 32
_SCALARS: Mapping[int, str] = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufHeader:
    """metadata by key, tensors by name; shapes are [out, in], the reverse of GGUF's order."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, not its weights.

    Raises ConfigError for a file that is no GGUF or has a damaged header, TensorError for a tensor
    whose bytes are not all there (both byte counts), ResourceError when it cannot be read.
    """
    with opened(path, buffered=True) as file:
        return _Parser(file, path).header()


class _Parser:
    """Reads forward through the file and never past its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = path.stat().st_size
        self._offset = 0

    def header(self) -> GgufHeader:
        if self._size < 4 or self._take(4) != b"GGUF":
            raise self._bad("it does not start with the letters GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise self._bad(f"version {version} found, expected 2 or 3 (little-endian)")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = self._string()
            if key in metadata:
                raise self._bad(f"key {key} is there twice")
            metadata[key] = self._value(self._number("I"))
        return GgufHeader(metadata, self._tensors(tensor_count, metadata))

    def _tensors(self, count: int, metadata: Mapping[str, Value]) -> dict[str, StoredTensor]:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"general.alignment is {alignment!r}, expected a power of two")
        entries = [self._tensor_entry() for _ in range(count)]
        start = -(-self._offset // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for entry in entries:
            if entry.name in tensors:
                raise self._bad(f"tensor {entry.name} is there twice")
            tensors[entry.name] = self._placed(entry, start)
        return tensors

    def _tensor_entry(self) -> StoredTensor:
        """A tensor with its offset still relative to the first tensor."""
        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= _DIMENSIONS_MAX:
            raise self._bad(f"tensor {name} has {dimensions} dimensions, expected 1 to 4")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind_number, offset = self._number("I"), self._number("Q")
        try:
            kind = GGMLQuantizationType(kind_number)
        except ValueError as error:
            raise self._bad(f"tensor {name} has the unknown type {kind_number}") from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block or not prod(shape):
            raise self._bad(
                f"tensor {name} has shape {list(shape)}, expected rows of whole {kind.name} "
                f"blocks ({block} weights)"
            )
        size = prod(shape) // block * block_bytes
        return StoredTensor(self._path, name, kind.name, shape, offset, size)

    def _placed(self, entry: StoredTensor, start: int) -> StoredTensor:
        offset = start + entry.offset_bytes
        if offset + entry.size_bytes > self._size:
            raise TensorError(
                f"{self._path.name} is truncated: {self._size} bytes found, tensor {entry.name} "
                f"ends at {offset + entry.size_bytes}; download it again"
            )
        return StoredTensor(
            entry.file, entry.name, entry.kind, entry.shape, offset, entry.size_bytes
        )

    def _value(self, kind: int) -> Value:
        if kind in _SCALARS:
            return self._scalars(_SCALARS[kind], 1)[0]
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind == GGUFValueType.ARRAY:
            return self._array()
        raise self._bad(f"a value has the unknown type {kind}")

    def _array(self) -> list[Value]:
        kind, count = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            return self._scalars(_SCALARS[kind], count)
        if kind != GGUFValueType.STRING:
            raise self._bad(f"an array has elements of type {kind}, expected numbers or strings")
        return [self._string() for _ in range(count)]

    def _scalars(self, code: str, count: int) -> list[Value]:
        size = struct.calcsize(code)
        return list(struct.unpack(f"<{count}{code}", self._take(count * size)))

    def _number(self, code: str) -> int:
        (value,) = struct.unpack(f"<{code}", self._take(struct.calcsize(code)))
        return int(value)

    def _string(self) -> str:
        text = self._take(self._number("Q"))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise self._bad(f"a string is not UTF-8: {text[:40]!r}") from error

    def _take(self, count: int) -> bytes:
        # Compared before reading, so that a damaged length cannot ask for terabytes.
        end = self._offset + count
        data = self._file.read(count) if end <= self._size else b""
        if len(data) != count:
            raise self._bad(f"truncated: {self._size} bytes found, its header needs {end} or more")
        self._offset = end
        return data

    def _bad(self, what: str) -> ConfigError:
        return ConfigError(f"{self._path.name} is not a GGUF file that can be read: {what}")
