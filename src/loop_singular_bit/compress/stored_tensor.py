"""Tensors lying in a file: where their bytes are, and reading a range of rows of them."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from loop_singular_bit.compress.source import SourceTensor
from loop_singular_bit.errors import ResourceError, TensorError

NUMPY_DTYPES: dict[str, npt.DTypeLike] = {
    "f16": np.dtype("<u2"),
    "bf16": np.dtype("<u2"),
    "f32": np.dtype("<f4"),
}
# Linux reads all pages at once, in order; elsewhere they come as they are touched.
_SHARED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
# Values looked at together in the search for NaN: bounds the extra memory to a few MiB.
_CHECKED_TOGETHER = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    name         as in the file
    kind         the file format's name of the element type, such as "BF16" or "Q8_0"
    shape        as in the network: matrices [out, in]
    offset_bytes from the start of the file
    size_bytes   of the whole tensor
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


@contextmanager
def opened(path: Path, *, buffered: bool = False) -> Iterator[BinaryIO]:
    """A file open for reading. Raises ResourceError when the system refuses anything about it."""
    try:
        with path.open("rb", buffering=-1 if buffered else 0) as file:
            yield file
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror or error}") from error


def row_range(shape: tuple[int, ...], start: int, stop: int | None) -> tuple[int, int]:
    """The range with its end filled in. Raises ValueError outside the tensor."""
    end = shape[0] if stop is None else stop
    if not 0 <= start <= end <= shape[0]:
        raise ValueError(f"rows {start} to {end} of a tensor of {shape[0]} rows")
    return start, end


def read_rows(
    tensor: StoredTensor, start: int, stop: int, dtype: npt.DTypeLike, width: int | None = None
) -> npt.NDArray[Any]:
    """Rows [start, stop) as an array [stop - start, width] of a NumPy dtype.

    width  elements of dtype per row; the shape's own when None. A vector's rows are its elements.

    The array is the file's own pages, read-only: they are read once, take no memory that the system
    cannot have back, and are let go with the array. Raises TensorError when the file ends early,
    ResourceError on I/O.
    """
    columns = tensor.shape[1:] if width is None else (width,)
    row_bytes = math.prod(columns) * np.dtype(dtype).itemsize
    wanted = (stop - start) * row_bytes
    if not wanted:
        return np.empty((stop - start, *columns), dtype)
    begin = tensor.offset_bytes + start * row_bytes
    before = begin % mmap.ALLOCATIONGRANULARITY  # a mapping begins at a page
    with opened(tensor.file) as file:
        found = os.fstat(file.fileno()).st_size - begin
        if found < wanted:
            raise TensorError(
                f"{tensor.file.name} ends inside tensor {tensor.name}: "
                f"{wanted} bytes expected, {max(0, found)} found"
            )
        pages = mmap.mmap(file.fileno(), before + wanted, _SHARED, mmap.PROT_READ,
                          offset=begin - before)  # fmt: skip
    rows = np.frombuffer(pages, np.uint8, wanted, before).view(dtype)
    aligned = (
        rows if rows.flags.aligned else rows.copy()
    )  # old safetensors headers are of any length
    return aligned.reshape(stop - start, *columns)


class FiniteRows:
    """Which rows of a file were found to be finite: they are not looked at again."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, int]] = set()

    def check(self, name: str, start: int, stop: int, tensor: SourceTensor) -> None:
        """As `refuse_nonfinite`, once for the same rows."""
        if (name, start, stop) not in self._seen:
            refuse_nonfinite(name, tensor)
            self._seen.add((name, start, stop))


def refuse_nonfinite(name: str, tensor: SourceTensor) -> None:
    """Raise TensorError with the number of NaN and infinite values, if there are any."""
    values = tensor.data.reshape(-1)
    bad = sum(
        _count_nonfinite(values[start : start + _CHECKED_TOGETHER], tensor.dtype)
        for start in range(0, values.size, _CHECKED_TOGETHER)
    )
    if bad:
        raise TensorError(
            f"tensor {name} has {bad} NaN or infinite values among {values.size} read, expected 0"
        )


def _count_nonfinite(values: npt.NDArray[Any], dtype: str) -> int:
    """NaN and infinity are the values whose exponent bits are all ones (IEEE 754)."""
    if dtype == "f32":
        return values.size - int(np.count_nonzero(np.isfinite(values)))
    exponent = np.uint16(0x7C00 if dtype == "f16" else 0x7F80)
    return int(np.count_nonzero((values & exponent) == exponent))
