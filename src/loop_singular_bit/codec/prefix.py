"""A matrix without its last planes, and what it differs from the whole one.

Every plane encodes what the planes before it left over, so the first ones are a weight by
themselves. Its best amplitudes are not quite those of the whole: they are fitted again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.numbers import from_bf16, to_bf16
from loop_singular_bit.codec.planes import row_dots
from loop_singular_bit.codec.weights import PlanesWeight

U8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """lost: ||F - P||^2 of the whole matrix F and what is left of it, P; power: ||F||^2. Both in
    the rotated basis, outliers left out."""

    lost: float = 0.0
    power: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        return Difference(self.lost + other.lost, self.power + other.power)

    @property
    def relative(self) -> float:
        return self.lost / self.power if self.power > 0 else 0.0


def prefix(weight: PlanesWeight, planes: int) -> tuple[PlanesWeight, Difference]:
    """The first `planes` planes of a matrix, outliers and rotation as they were.

    The amplitude of each row is the one nearest to the whole matrix in least squares; the original
    is not needed. With all planes, the same weight bit for bit. Raises ValueError for more planes
    than there are, or none.
    """
    if not 1 <= planes <= weight.planes:
        raise ValueError(f"{planes} of {weight.planes} planes: must be 1..{weight.planes}")
    whole = weight.integers().astype(np.float32) * weight.row_scale[:, None]
    power = float(row_dots(whole, whole).sum())
    if planes == weight.planes:
        return weight, Difference(0.0, power)
    tiling = replace(weight.tiling, planes=planes)
    cut = replace(weight, tiling=tiling, extents=_first_planes(weight, planes))
    scale, lost = _refit(whole, cut.integers().astype(np.float32))
    return replace(cut, row_scale=scale), Difference(lost, power)


def _first_planes(weight: PlanesWeight, planes: int) -> tuple[U8, ...]:
    """The extents with the start of every tile."""
    tiling = weight.tiling
    per_extent = tiling.extent_rows // tiling.tile_rows
    kept: list[list[U8]] = [[] for _ in weight.extents]
    for tile in range(-(-tiling.rows // tiling.tile_rows)):
        _, start, nbytes = tiling.place(tile)
        extent = tile // per_extent
        stop = start + nbytes // tiling.planes * planes
        kept[extent].append(weight.extents[extent][start:stop])
    return tuple(np.concatenate(tiles) for tiles in kept)


def _refit(whole: Floats, Q: Floats) -> tuple[Floats, float]:
    """Least-squares amplitude of each row of Q [rows, cols], as it is stored, and ||F - P||^2."""
    fq, qq, ff = row_dots(whole, Q), row_dots(Q, Q), row_dots(whole, whole)
    best = np.maximum(fq / np.where(qq > 0, qq, 1), 0)
    scale = from_bf16(to_bf16(best.astype(np.float32)))
    wide = scale.astype(np.float64)
    return scale, float((ff - 2 * wide * fq + wide**2 * qq).sum())
