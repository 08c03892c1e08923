"""The codecs behind one interface: what turns a tensor into a Weight, and at what size.

Raw16     the stored numbers as they are
Int8      absmax per output channel
Uniform1  sign and mean magnitude per output channel
Outlier1  the naive scheme: a share of outliers exact, the rest sign and mean magnitude
Planes    outliers exact, the rest looped one-bit trellis planes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec import outliers as outliers_module
from loop_singular_bit.codec import planes as planes_module
from loop_singular_bit.codec.numbers import DenseKind, from_bf16, from_pattern, to_bf16
from loop_singular_bit.codec.outliers import Outliers, index_bytes_expected
from loop_singular_bit.codec.planes import EncodeReport, PlaneOptions
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import DenseWeight, PlanesWeight, Weight

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.uint16] | npt.NDArray[np.float32]

STORED_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class InputStatistics:
    """What a codec may know of the inputs of a matrix.

    transform  the rotation shared by all matrices of this input
    H, panels  damped Hessian and feedback panels in the rotated basis (codec/feedback.py), or None
    """

    transform: InputTransform
    H: Floats | None = None
    panels: Floats | None = None


class Codec(Protocol):
    """Encodes one matrix."""

    @property
    def name(self) -> str: ...

    def encode(
        self, stored: Stored, dtype: str, statistics: InputStatistics | None
    ) -> tuple[Weight, EncodeReport]:
        """Encodes a matrix [rows, cols] given as stored ("f16", "bf16" patterns or "f32")."""
        ...

    def extent_bytes(self, rows: int, cols: int, dtype: str) -> dict[str, int]:
        """Bytes of every extent; exact but for the index of outliers, which depends on where they
        fall (codec/outliers.py)."""
        ...


def _plain_error(W: Floats, coded: Floats) -> EncodeReport:
    power = float(np.einsum("rc,rc->", W, W, dtype=np.float64))
    lost = float(np.einsum("rc,rc->", W - coded, W - coded, dtype=np.float64))
    return EncodeReport(lost / power if power else 0.0, lost / power if power else 0.0)


@dataclass(frozen=True)
class Raw16:
    name: str = "raw"

    def encode(
        self, stored: Stored, dtype: str, statistics: InputStatistics | None
    ) -> tuple[DenseWeight, EncodeReport]:
        weight = DenseWeight(DenseKind[dtype.upper()], stored.shape[1], stored)
        return weight, EncodeReport(0.0, 0.0)

    def extent_bytes(self, rows: int, cols: int, dtype: str) -> dict[str, int]:
        return {"data": rows * cols * STORED_BYTES[dtype]}


@dataclass(frozen=True)
class Int8:
    name: str = "int8"

    def encode(
        self, stored: Stored, dtype: str, statistics: InputStatistics | None
    ) -> tuple[DenseWeight, EncodeReport]:
        W = from_pattern(stored, dtype)
        top = np.abs(W).max(axis=1) / np.float32(127)
        scale = from_bf16(to_bf16(np.where(top > 0, top, np.float32(1))))
        q = np.clip(np.rint(W / scale[:, None]), -127, 127).astype(np.int8)
        weight = DenseWeight(DenseKind.I8, W.shape[1], q, scale)
        return weight, _plain_error(W, weight.dense())

    def extent_bytes(self, rows: int, cols: int, dtype: str) -> dict[str, int]:
        return {"data": rows * cols, "scale": 2 * rows}


@dataclass(frozen=True)
class Uniform1:
    name: str = "uniform1"

    def encode(
        self, stored: Stored, dtype: str, statistics: InputStatistics | None
    ) -> tuple[DenseWeight, EncodeReport]:
        W = from_pattern(stored, dtype)
        scale = from_bf16(to_bf16(np.abs(W).mean(axis=1, dtype=np.float64).astype(np.float32)))
        bits = np.packbits(W >= 0, axis=1, bitorder="little")
        weight = DenseWeight(DenseKind.SIGN, W.shape[1], bits, scale)
        return weight, _plain_error(W, weight.dense())

    def extent_bytes(self, rows: int, cols: int, dtype: str) -> dict[str, int]:
        return {"data": rows * -(-cols // 8), "scale": 2 * rows}


def _sparse_bytes(rows: int, cols: int, ratio: float, dtype: str) -> dict[str, int]:
    count = round(ratio * (rows * cols))  # as outliers.select rounds
    if not count:
        return {}
    return {
        "outlier_counts": 2 * rows,
        "outlier_index": index_bytes_expected(rows, cols, count),
        "outlier_values": count * STORED_BYTES[dtype],
    }


def _split(stored: Stored, dtype: str, ratio: float) -> tuple[Floats, Outliers | None]:
    """W with its outliers set to zero, and the outliers."""
    W = from_pattern(stored, dtype)
    mask = outliers_module.select(W, ratio)
    if not mask.any():
        return W, None
    kept = outliers_module.extract(mask, stored, dtype)
    W[mask] = 0
    return W, kept


@dataclass(frozen=True)
class Outlier1:
    outlier_ratio: float = 0.02
    name: str = "outlier1"

    def encode(
        self, stored: Stored, dtype: str, statistics: InputStatistics | None
    ) -> tuple[DenseWeight, EncodeReport]:
        W, kept = _split(stored, dtype, self.outlier_ratio)
        ordinary = W.shape[1] - (kept.counts.astype(np.int64) if kept is not None else 0)
        scale = np.abs(W).sum(axis=1, dtype=np.float64) / np.maximum(ordinary, 1)
        bits = np.packbits(W >= 0, axis=1, bitorder="little")
        scale = from_bf16(to_bf16(scale.astype(np.float32)))
        weight = DenseWeight(DenseKind.SIGN, W.shape[1], bits, scale, kept)
        return weight, _plain_error(from_pattern(stored, dtype), weight.dense())

    def extent_bytes(self, rows: int, cols: int, dtype: str) -> dict[str, int]:
        sparse = _sparse_bytes(rows, cols, self.outlier_ratio, dtype)
        return Uniform1().extent_bytes(rows, cols, dtype) | sparse


@dataclass(frozen=True)
class Planes:
    """The product's codec. `outlier_ratio`: share of weights kept exactly."""

    options: PlaneOptions
    outlier_ratio: float = 0.0
    name: str = "planes"

    def encode(
        self, stored: Stored, dtype: str, statistics: InputStatistics | None
    ) -> tuple[PlanesWeight, EncodeReport]:
        if statistics is None:
            raise ValueError("planes need the statistics of their inputs")
        W, kept = _split(stored, dtype, self.outlier_ratio)
        return planes_module.encode(
            W, statistics.transform, self.options,
            H=statistics.H, panels=statistics.panels, outliers=kept,
        )  # fmt: skip

    def extent_bytes(self, rows: int, cols: int, dtype: str) -> dict[str, int]:
        sparse = _sparse_bytes(rows, cols, self.outlier_ratio, dtype)
        return {"scale": 2 * rows} | dict(self.options.tiling(rows, cols).extent_bytes()) | sparse
