"""Preserved outliers: the chosen weights of a matrix, bit for bit, with a compact index.

Per row a count (u16), then the columns in ascending order: as gaps of one byte (255 means "advance
255, no entry here") or as 16-bit columns, whichever is smaller for the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.numbers import DenseKind, from_pattern
from loop_singular_bit.codec.program import Program
from loop_singular_bit.errors import FormatError, UsageError

SKIP = 255
COLS_MAX = 65535  # counts, and columns where gaps are longer, are 16-bit


@dataclass(frozen=True)
class Outliers:
    """counts u16 [rows]; index u8 gaps or u16 columns; values as in the source: u16 patterns of
    `dtype` f16 or bf16, or float32."""

    counts: npt.NDArray[np.uint16]
    index: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    values: npt.NDArray[np.uint16] | npt.NDArray[np.float32]
    dtype: str

    @property
    def count(self) -> int:
        return len(self.values)

    def add_product(
        self,
        program: Program,
        x: npt.NDArray[np.float32],
        out: npt.NDArray[np.float32],
    ) -> None:
        """Records out [rows_max, rows] += S x for x [rows_max, cols]."""
        kind = int(DenseKind[self.dtype.upper()])
        program.sparse_matmul(self.counts, self.index, self.values, kind, x, out)

    def add_product_now(self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """out [T, rows] += S x for x [T, cols]."""
        kind = int(DenseKind[self.dtype.upper()])
        _native.sparse_matmul(self.counts, self.index, self.values, kind, x, out)

    def columns(self) -> npt.NDArray[np.int64]:
        """Column of every outlier, row after row."""
        if self.index.dtype == np.uint16:
            return self.index.astype(np.int64)
        return _gaps_to_columns(self.index.view(np.uint8), self.counts)

    def take(self, rows: npt.NDArray[np.int64]) -> Outliers:
        """Outliers of the given rows of the matrix, in that order."""
        stop = np.cumsum(self.counts, dtype=np.int64)
        chosen = [np.arange(stop[row] - self.counts[row], stop[row]) for row in rows]
        at = np.concatenate([np.zeros(0, np.int64), *chosen])
        columns = self.columns()[at].astype(np.uint16)
        return Outliers(self.counts[rows], columns, self.values[at], self.dtype)

    def dense(self, cols: int) -> npt.NDArray[np.float32]:
        """S as a float32 matrix [rows, cols]."""
        S = np.zeros((len(self.counts), cols), np.float32)
        rows = np.repeat(np.arange(len(self.counts)), self.counts)
        S[rows, self.columns()] = from_pattern(self.values, self.dtype)
        return S


def _gaps_to_columns(
    index: npt.NDArray[np.uint8], counts: npt.NDArray[np.uint16]
) -> npt.NDArray[np.int64]:
    entry = index != SKIP
    steps = index.astype(np.int64)
    # Position after an entry is one further: an entry advances gap + 1, a skip advances 255.
    after = np.concatenate([[0], np.cumsum(steps + entry)[entry]])
    stop = np.cumsum(counts, dtype=np.int64)
    row_start = np.repeat(after[stop - counts], counts)
    return np.asarray(after[1:] - 1 - row_start, np.int64)


def _columns_to_gaps(
    rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    new_row = np.concatenate([[True], rows[1:] != rows[:-1]]) if len(rows) else np.zeros(0, bool)
    before = np.where(new_row, -1, np.concatenate([[-1], cols[:-1]])) if len(cols) else cols
    gaps = cols - before - 1
    skips = gaps // SKIP
    out = np.full(int((skips + 1).sum()), SKIP, np.uint8)
    out[np.cumsum(skips + 1) - 1] = gaps % SKIP
    return out


def select(W: npt.NDArray[np.float32], ratio: float) -> npt.NDArray[np.bool_]:
    """Mask of the round(ratio * size) largest magnitudes; ties go to the earlier weight."""
    if not 0 <= ratio <= 0.5:
        raise UsageError(f"outlier ratio {ratio}: must be between 0 and 0.5")
    wanted = round(ratio * W.size)
    mask = np.zeros(W.size, bool)
    if wanted:
        magnitude = np.abs(W).ravel()
        limit = np.partition(magnitude, W.size - wanted)[W.size - wanted]
        mask[magnitude > limit] = True
        ties = np.flatnonzero(magnitude == limit)
        mask[ties[: wanted - int(mask.sum())]] = True
    return mask.reshape(W.shape)


def extract(
    mask: npt.NDArray[np.bool_],
    pattern: npt.NDArray[np.uint16] | npt.NDArray[np.float32],
    dtype: str,
) -> Outliers:
    """The masked weights of a matrix given as stored. Raises UsageError when it is too wide."""
    if mask.shape[1] > COLS_MAX:
        raise UsageError(
            f"a matrix of {mask.shape[1]} columns cannot keep outliers, the most is {COLS_MAX}: "
            "set the outlier ratio to 0"
        )
    rows, cols = np.nonzero(mask)
    counts = np.bincount(rows, minlength=len(mask)).astype(np.uint16)
    gaps = _columns_to_gaps(rows, cols)
    index = gaps if len(gaps) <= 2 * len(cols) else cols.astype(np.uint16)
    return Outliers(counts, index, pattern[mask], dtype)


def index_bytes_expected(rows: int, cols: int, count: int) -> int:
    """Bytes of the index when outliers fall evenly: gaps with their skips, or 16-bit columns.

    An outlier has a k-th skip when the 255 k columns before it exist and hold none.
    """
    reach = np.arange(SKIP, cols, SKIP)
    skips = ((1 - reach / cols) * (1 - count / (rows * cols)) ** reach).sum()
    return min(round(count * (1 + float(skips))), 2 * count)


def validate(outliers: Outliers, rows: int, cols: int) -> None:
    """Raises FormatError unless every index lies inside a rows x cols matrix, ascending per row."""
    if cols > COLS_MAX or len(outliers.counts) != rows:
        raise FormatError(
            f"outliers: {len(outliers.counts)} counts for {rows} rows of {cols} columns, "
            f"at most {COLS_MAX}"
        )
    total = int(outliers.counts.astype(np.int64).sum())
    if total != outliers.count:
        raise FormatError(f"outliers: {outliers.count} values, row counts add up to {total}")
    if outliers.index.dtype == np.uint8:
        entries = int((outliers.index != SKIP).sum())
        if entries != total:
            raise FormatError(f"outliers: index holds {entries} entries, expected {total}")
        if len(outliers.index) and outliers.index[-1] == SKIP:
            raise FormatError("outliers: the index ends with a skip, expected an entry")
    elif len(outliers.index) != total:
        raise FormatError(f"outliers: index holds {len(outliers.index)} entries, expected {total}")
    if not total:
        return
    columns = outliers.columns()
    row = np.repeat(np.arange(rows), outliers.counts)
    rising = np.diff(columns) > 0
    if columns.min() < 0 or columns.max() >= cols or not (rising | (np.diff(row) > 0)).all():
        raise FormatError(f"outliers: a column lies outside 0..{cols - 1} or is out of order")
