"""The header of a safetensors file: validated fully, so that what follows can trust it.

The safetensors package hands out bfloat16 only through torch, so the header is read here: eight
bytes of little-endian length, a JSON object of that length, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from loop_singular_bit.compress.stored_tensor import StoredTensor, opened
from loop_singular_bit.errors import TensorError

# The limit of the reference implementation.
HEADER_BYTES_MAX = 100_000_000
_ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name. Reads the header only.

    Raises TensorError for a header that is not one, entries that contradict themselves or each
    other, and a file shorter or longer than its header says (both byte counts).
    """
    file_bytes = path.stat().st_size
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or not 2 <= length <= min(HEADER_BYTES_MAX, file_bytes - 8):
            raise TensorError(
                f"{path.name} is not a whole safetensors file: header of {length} bytes in a file "
                f"of {file_bytes} bytes; download it again"
            )
        text = file.read(length)
    entries = _parse(path, text)
    tensors = {
        name: _entry(path, name, value, 8 + length)
        for name, value in entries.items()
        if name != "__metadata__"
    }
    _check_layout(path, tensors.values(), 8 + length, file_bytes)
    return tensors


def _parse(path: Path, text: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError("a name is used twice")
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise TensorError(f"{path.name}: the header is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise TensorError(f"{path.name}: the header is not a JSON object")
    return entries


def _entry(path: Path, name: str, value: object, data_start: int) -> StoredTensor:
    where = f"{path.name}: tensor {name}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise TensorError(f"{where}: header entry without exactly dtype, shape and data_offsets")
    kind, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str):
        raise TensorError(f"{where}: dtype is {kind!r}, expected a string")
    if not _are_sizes(shape):
        raise TensorError(f"{where}: shape is {shape!r}, expected a list of sizes")
    if not _are_sizes(span) or len(span) != 2 or span[0] > span[1]:
        raise TensorError(f"{where}: data_offsets are {span!r}, expected [start, stop]")
    size = span[1] - span[0]
    item = _ITEM_BYTES.get(kind)
    if item is not None and size != prod(shape) * item:
        raise TensorError(
            f"{where}: {size} bytes found, {prod(shape) * item} expected for {kind} {shape}"
        )
    return StoredTensor(path, name, kind, tuple(shape), data_start + span[0], size)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(
    path: Path, tensors: Iterable[StoredTensor], data_start: int, file_bytes: int
) -> None:
    end = data_start
    for tensor in sorted(tensors, key=lambda t: (t.offset_bytes, t.size_bytes)):
        if tensor.offset_bytes != end:
            raise TensorError(
                f"{path.name}: tensor {tensor.name} starts at byte {tensor.offset_bytes}, "
                f"expected {end}: tensors overlap or leave a gap"
            )
        end += tensor.size_bytes
    if file_bytes != end:
        state = "truncated" if file_bytes < end else "too long"
        raise TensorError(
            f"{path.name} is {state}: {file_bytes} bytes found, {end} expected; download it again"
        )
