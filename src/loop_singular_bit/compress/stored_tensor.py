"""Tensors lying in a file: where their bytes are, and reading a range of rows of them."""

from __future__ import annotations

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
    Reads just these bytes. Raises TensorError when the file ends early, ResourceError on I/O.
    """
    columns = tensor.shape[1:] if width is None else (width,)
    rows = np.empty((stop - start, *columns), dtype)
    row_bytes = rows.nbytes // max(1, stop - start)
    view = rows.reshape(-1).view(np.uint8).data
    done = 0
    with opened(tensor.file) as file:
        file.seek(tensor.offset_bytes + start * row_bytes)
        # One call may return less than asked for: Linux reads at most 2 GiB at a time.
        while done < len(view):
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise TensorError(
                    f"{tensor.file.name} ends inside tensor {tensor.name}: "
                    f"{len(view)} bytes expected, {done} found"
                )
            done += count
    return rows


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
