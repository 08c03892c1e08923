"""A matrix in one of its encodings, able to multiply.

DenseWeight    raw16 / raw32 / int8 / sign: one number for each weight, no rotation
PlanesWeight   outliers plus looped one-bit trellis planes on rotated inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.numbers import DenseKind, from_pattern
from loop_singular_bit.codec.outliers import Outliers
from loop_singular_bit.codec.program import Program
from loop_singular_bit.codec.rotation import InputTransform, activation_group
from loop_singular_bit.codec.tables import native_tables
from loop_singular_bit.codec.tiling import Tiling

Floats = npt.NDArray[np.float32]


class InputRows:
    """Rows that enter one or more matrices of a program: as they are, and rotated to int8 once for
    all matrices that share a rotation."""

    def __init__(
        self, rows_max: int, cols: int, memory: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """memory: for the rounded rows, at least rows_max * PackedRows.row_bytes; None: its own."""
        self._packed = _native.PackedRows(rows_max, cols, activation_group(cols), memory)
        self._packed_for: InputTransform | None = None

    def load(self, program: Program, x: Floats) -> None:
        """What is recorded from now on reads x [rows_max, cols]."""
        self.program, self.x = program, x
        self._packed_for = None

    def packed(self, transform: InputTransform) -> _native.PackedRows:
        """The rows as `transform` wants them."""
        if self._packed_for is not transform:
            transform.pack(self.program, self.x, self._packed)
            self._packed_for = transform
        return self._packed


class Linear(Protocol):
    """A matrix that can multiply, wherever its bytes are."""

    @property
    def rows(self) -> int: ...

    @property
    def correction(self) -> Outliers | None:
        """What is to be added to the product, if anything."""
        ...

    def multiply(self, inputs: InputRows, out: Floats) -> None:
        """Records out [rows_max, rows] = x W^T, `correction` left out."""
        ...


def multiply(inputs: InputRows, products: Sequence[tuple[Linear, Floats]]) -> None:
    """Records out [rows_max, rows] = x W^T for several matrices that read the same inputs."""
    for weight, out in products:
        weight.multiply(inputs, out)
    for weight, out in products:
        if weight.correction is not None:
            weight.correction.add_product(inputs.program, inputs.x, out)


_DENSE_BITS = {
    DenseKind.F32: 32, DenseKind.F16: 16, DenseKind.BF16: 16, DenseKind.I8: 8, DenseKind.SIGN: 1,
}  # fmt: skip


@dataclass(frozen=True)
class DenseWeight:
    """data: [rows, cols] f32, u16 patterns or int8; SIGN: u8 [rows, ceil(cols/8)], LSB first.
    scale: float32 [rows] for I8 and SIGN, else None. outliers replace the sign where they lie."""

    kind: DenseKind
    cols: int
    data: npt.NDArray[np.generic]
    scale: Floats | None = None
    outliers: Outliers | None = None

    @property
    def rows(self) -> int:
        return len(self.data)

    @property
    def bits(self) -> int:
        """Bits of one weight, scales aside."""
        return _DENSE_BITS[self.kind]

    def multiply(self, inputs: InputRows, out: Floats) -> None:
        """Records out = x W^T, `correction` left out."""
        inputs.program.dense_matmul(int(self.kind), self.data, self.scale, inputs.x, out)

    @cached_property
    def correction(self) -> Outliers | None:
        """What turns the sign at an outlier's place into the outlier."""
        if self.outliers is None:
            return None
        kept = self.outliers
        at = np.repeat(np.arange(self.rows), kept.counts), kept.columns()
        signs = replace(self, outliers=None).dense()[at]
        values = from_pattern(kept.values, kept.dtype) - signs
        return Outliers(kept.counts, kept.index, values, "f32")

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Floats:
        """float32 [len(rows), cols] of the given rows."""
        part = DenseWeight(
            self.kind, self.cols, self.data[rows],
            None if self.scale is None else self.scale[rows],
            None if self.outliers is None else self.outliers.take(rows),
        )  # fmt: skip
        return part.dense()

    def dense_rows(self, start: int, stop: int) -> Floats:
        """float32 [stop - start, cols] of consecutive rows."""
        return self.read_rows(np.arange(start, stop))

    def dense(self) -> Floats:
        """The whole matrix as float32 [rows, cols]."""
        if self.kind is DenseKind.SIGN:
            bits = np.unpackbits(self.data.view(np.uint8), axis=1, bitorder="little")
            W = 2 * bits[:, : self.cols].astype(np.float32) - 1
        elif self.kind is DenseKind.I8:
            W = self.data.astype(np.float32)
        else:
            W = from_pattern(self.data, self.kind.name.lower())  # type: ignore[arg-type]
        if self.scale is not None:
            W *= self.scale[:, None]
        if self.outliers is not None:
            kept = self.outliers
            at = np.repeat(np.arange(self.rows), kept.counts), kept.columns()
            W[at] = from_pattern(kept.values, kept.dtype)
        return W


@dataclass(frozen=True)
class PlanesWeight:
    """W ~ S + diag(row_scale) (integer planes) V diag(s_in).

    extents    u8 each: tiles of planes, laid out as native/layout.h says, cut as `tiling` says
    row_scale  float32 [rows] (bfloat16 values): s_out for one integer unit
    """

    tiling: Tiling
    window: int
    extents: tuple[npt.NDArray[np.uint8], ...]
    row_scale: Floats
    transform: InputTransform
    outliers: Outliers | None = None

    @property
    def rows(self) -> int:
        return self.tiling.rows

    @property
    def cols(self) -> int:
        return self.tiling.cols

    @property
    def planes(self) -> int:
        return self.tiling.planes

    @cached_property
    def _arguments(
        self,
    ) -> tuple[list[npt.NDArray[np.uint8]], int, int, int, _native.PlaneTables]:
        tables = native_tables(self.window, self.planes)
        return list(self.extents), self.rows, self.cols, self.tiling.tile_rows, tables

    def multiply(self, inputs: InputRows, out: Floats) -> None:
        """Records out = x W^T, `correction` left out."""
        packed = inputs.packed(self.transform)
        inputs.program.planes_matmul(*self._arguments, self.row_scale, packed, out)

    @property
    def correction(self) -> Outliers | None:
        """What is added to the product of the planes."""
        return self.outliers

    def extent(self, number: int, tiles: npt.NDArray[np.uint8]) -> tuple[int, PlanesWeight]:
        """The first row of an extent, and its rows as a weight, whose bytes are given; outliers
        left out."""
        return self._part(number * self.tiling.extent_rows, self.tiling.extent_rows, tiles)

    def tile(self, number: int, planes: npt.NDArray[np.uint8]) -> tuple[int, PlanesWeight]:
        """The same of a tile."""
        return self._part(number * self.tiling.tile_rows, self.tiling.tile_rows, planes)

    def _part(
        self, start: int, height: int, tiles: npt.NDArray[np.uint8]
    ) -> tuple[int, PlanesWeight]:
        stop = min(start + height, self.rows)
        tiling = replace(self.tiling, rows=stop - start)
        scale = self.row_scale[start:stop]
        return start, PlanesWeight(tiling, self.window, (tiles,), scale, self.transform)

    def multiply_rows(self, packed: _native.PackedRows, out: Floats, start: int) -> None:
        """out [T, start : start + rows] = x W^T, now; outliers left out."""
        _native.planes_matmul(*self._arguments, self.row_scale, packed, out, start)

    def unpacked(self) -> UnpackedWeight:
        """The same matrix with its planes decoded."""
        native = _native.UnpackedPlanes(*self._arguments)
        return UnpackedWeight(native, self.rows, self.row_scale, self.transform, self.outliers)

    def integers(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int16]:
        """Decoded integer weights of rows [start, stop), in the rotated basis."""
        stop = self.rows if stop is None else stop
        out = np.empty((stop - start, self.cols), np.int16)
        _native.planes_decode(*self._arguments, start, out)
        return out

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Floats:
        """float32 [len(rows), cols] of the given rows, rotated back, outliers included."""
        Q = np.concatenate([self.integers(int(r), int(r) + 1) for r in rows]).astype(np.float32)
        W = self.transform.restore_weights(Q * self.row_scale[rows, None])
        if self.outliers is not None:
            W += self.outliers.take(rows).dense(self.cols)
        return W

    def dense_rows(self, start: int, stop: int) -> Floats:
        """float32 [stop - start, cols] of consecutive rows."""
        Q = self.integers(start, stop).astype(np.float32) * self.row_scale[start:stop, None]
        W = self.transform.restore_weights(Q)
        if self.outliers is not None:
            W += self.outliers.take(np.arange(start, stop)).dense(self.cols)
        return W

    def dense(self) -> Floats:
        """The whole matrix as float32 [rows, cols]."""
        return self.dense_rows(0, self.rows)


@dataclass(frozen=True)
class UnpackedWeight:
    """A PlanesWeight decoded to integers in memory: more bytes, the same products bit for bit."""

    native: _native.UnpackedPlanes
    rows: int
    row_scale: Floats
    transform: InputTransform
    correction: Outliers | None = None

    @property
    def cols(self) -> int:
        return self.transform.cols

    def multiply(self, inputs: InputRows, out: Floats) -> None:
        """Records out = x W^T, `correction` left out."""
        packed = inputs.packed(self.transform)
        inputs.program.unpacked_matmul(self.native, self.row_scale, packed, out)


Weight = DenseWeight | PlanesWeight
