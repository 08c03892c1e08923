"""Encoding a matrix into outliers and looped one-bit trellis planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.numbers import from_bf16, to_bf16
from loop_singular_bit.codec.outliers import Outliers
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.tables import WINDOW_DEFAULT, native_tables, table_set
from loop_singular_bit.codec.tiling import TILE_ROWS, Tiling, even_tile_rows, extent_rows_of
from loop_singular_bit.codec.weights import PlanesWeight

Floats = npt.NDArray[np.float32]

# Mean squared error of a unit Gaussian after 1, 2, ... planes of window L, as measured
# (benches/results/table_distortion.json).
_DISTORTION = {
    4: (0.30359, 0.09344, 0.02952, 0.00982, 0.00358, 0.00147),
    5: (0.29449, 0.08804, 0.02698, 0.00863, 0.00298, 0.0012),
    6: (0.2876, 0.08334, 0.0245, 0.00736, 0.00232, 0.00081),
    7: (0.28298, 0.08062, 0.02324, 0.00685, 0.00209, 0.0007),
    8: (0.27991, 0.07879, 0.02236, 0.00646, 0.00193, 0.00063),
    9: (0.27433, 0.07564, 0.02107, 0.00596, 0.00175, 0.00056),
    10: (0.27086, 0.07372, 0.02022, 0.00562, 0.00161, 0.0005),
}
BLOCK_MAX = 64
PROXY_ROWS = 256  # rows of each chunk, evenly spaced, that the proxy loss is taken over
CHUNK_ROWS = 2048  # rows encoded at a time, whole extents: bounds the memory of a large embedding


@dataclass(frozen=True)
class PlaneOptions:
    """How a matrix is encoded.

    planes         loops: one bit for each weight and loop (1..8)
    window         L, bits that select a level (4..10)
    block          columns quantized before their error is fed back (4, 8, 16, 32 or 64); a path
                   through the trellis is cut after as many, so without feedback it is 64
    tile_rows      most rows that share one stream
    """

    planes: int
    window: int = WINDOW_DEFAULT
    block: int = 4
    tile_rows: int = TILE_ROWS

    def tiling(self, rows: int, cols: int) -> Tiling:
        """How a matrix [rows, cols] is cut. Raises ValueError for an impossible tile_rows."""
        tile_rows = even_tile_rows(rows, cols, self.tile_rows)
        return Tiling(rows, cols, self.planes, tile_rows, extent_rows_of(tile_rows, cols))


def distortion(window: int, planes: int) -> float:
    """Mean squared error of a unit Gaussian after 0..8 planes; planes beyond those that were
    measured are taken to divide it as the last of them does."""
    errors = (1.0, *_DISTORTION[window])
    last = len(errors) - 1
    if planes <= last:
        return errors[planes]
    return float(errors[last] * (errors[last] / errors[last - 1]) ** (planes - last))


@dataclass(frozen=True)
class EncodeReport:
    """relative_error: ||E||^2 / ||W||^2; proxy_loss: tr(E H E^T) / tr(W H W^T), H damped, over
    PROXY_ROWS evenly spaced rows of every CHUNK_ROWS.

    Planes: W is what the planes see (outliers zero, rotated and scaled) and H is in that basis, the
    identity if none is given. Baselines: W is the stored matrix and H the identity.
    """

    relative_error: float
    proxy_loss: float


def encode(
    W: Floats,
    transform: InputTransform,
    options: PlaneOptions,
    *,
    H: Floats | None = None,
    panels: Floats | None = None,
    outliers: Outliers | None = None,
) -> tuple[PlanesWeight, EncodeReport]:
    """Encodes W [rows, cols] (outliers already set to zero).

    H [cols, cols] and panels (feedback_panels of H) are in the rotated basis; without them the
    error is not fed back and plain squared error is reported.
    """
    tiling = options.tiling(*W.shape)
    extents = tuple(np.zeros(nbytes, np.uint8) for _, nbytes in tiling.extent_bytes())
    row_scale = np.empty(len(W), np.float32)
    sums = np.zeros(4)
    at_once = max(CHUNK_ROWS // tiling.extent_rows, 1)
    for first in range(0, len(extents), at_once):
        part = slice(first * tiling.extent_rows, (first + at_once) * tiling.extent_rows)
        rotated = transform.weights(np.ascontiguousarray(W[part], np.float32))
        views = extents[first : first + at_once]
        unit, decoded = _encode_rows(rotated, options, tiling.tile_rows, panels, views)
        row_scale[part], found = _refit(rotated, decoded, unit, H)
        sums += found
    weight = PlanesWeight(tiling, options.window, extents, row_scale, transform, outliers)
    error, power, lost, all_power = sums
    relative = float(error / power) if power > 0 else 0.0
    return weight, EncodeReport(relative, float(lost / all_power) if all_power > 0 else 0.0)


def _encode_rows(
    rotated: Floats,
    options: PlaneOptions,
    tile_rows: int,
    panels: Floats | None,
    extents: Sequence[npt.NDArray[np.uint8]],
) -> tuple[Floats, npt.NDArray[np.int16]]:
    """Fills the extents of some rows; the unit of each row and the decoded integers."""
    unit = _row_units(rotated, table_set(options.window).sigma)
    decoded = np.empty(rotated.shape, np.int16)
    native = native_tables(options.window, options.planes)
    block = options.block if panels is not None else BLOCK_MAX
    target = rotated / unit[:, None]
    _native.encode(target, panels, native, tile_rows, block, extents, decoded)
    return unit, decoded


def row_dots(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """sum_c a[r][c] b[r][c] for each row [rows]."""
    out = np.empty(len(a), np.float64)
    _native.row_dots(a, b, out)
    return out


def _row_units(rotated: Floats, sigma: float) -> Floats:
    """Size of one integer unit in each row [rows]: its root mean square over the table's."""
    power = row_dots(rotated, rotated) / rotated.shape[1]
    unit = (np.sqrt(power) / sigma).astype(np.float32)
    return np.where(unit > 0, unit, np.float32(1))


def _refit(
    W: Floats, decoded: npt.NDArray[np.int16], unit: Floats, H: Floats | None
) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Least-squares amplitude of each output channel under H, and the sums of an EncodeReport:
    ||E||^2, ||W||^2 over all rows, tr(E H E^T), tr(W H W^T) over the rows of the proxy."""
    Q = decoded.astype(np.float32)
    proxy = slice(None, None, -(-len(W) // PROXY_ROWS))
    part = np.ascontiguousarray(W[proxy])
    HQ, HW = (Q, part) if H is None else (Q @ H, part @ H)
    wq, qq, ww = row_dots(W, HQ), row_dots(Q, HQ), row_dots(part, HW)
    best = np.where(qq > 0, wq / np.where(qq > 0, qq, 1), unit)
    scale = from_bf16(to_bf16(np.maximum(best, 0).astype(np.float32)))
    wide, power = scale.astype(np.float64), row_dots(W, W)
    lost = power - 2 * wide * row_dots(W, Q) + wide**2 * row_dots(Q, Q)
    lost_under_H = ww - (2 * wide * wq - wide**2 * qq)[proxy]
    return scale, np.array([lost.sum(), power.sum(), lost_under_H.sum(), ww.sum()])
