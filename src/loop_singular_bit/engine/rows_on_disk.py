"""The token embedding of a model larger than memory: a token needs one row of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.records import unpack_frame, unpack_outliers, unpack_weight
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.container import ContainerReader, Record

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

KINDS = ("planes", "raw", "int8", "uniform1")  # whose rows can be read one by one


class PlaneRows:
    """Rows of a matrix of planes: the tile that a row lies in is read, scale and outliers stay."""

    def __init__(
        self, reader: ContainerReader, record: Record, transforms: Mapping[str, InputTransform]
    ) -> None:
        read = partial(reader.read, record.name)
        self._read_part = partial(reader.read_part, record.name)
        self._frame = unpack_frame(record.name, record.attributes, read, transforms)
        self._outliers = unpack_outliers(record.name, record.attributes, read)

    def read_rows(self, rows: Rows) -> Floats:
        """float32 [len(rows), cols] of the given rows."""
        tiling = self._frame.tiling
        found = np.empty((len(rows), tiling.cols), np.float32)
        tiles = rows // tiling.tile_rows
        for tile in np.unique(tiles):
            here = tiles == tile
            start, weight = self._frame.tile(tile, self._read_part(*tiling.place(int(tile))))
            found[here] = weight.read_rows(rows[here] - start)
        if self._outliers is not None:
            found += self._outliers.take(rows).dense(tiling.cols)
        return found


class DenseRows:
    """Rows of a matrix of another kind, read one by one."""

    def __init__(self, reader: ContainerReader, record: Record) -> None:
        self._reader, self._record = reader, record
        self._attributes = {**record.attributes, "rows": 1}
        rows = int(record.attributes["rows"])
        self._bytes = {extent.name: extent.size_bytes // rows for extent in record.extents}

    def read_rows(self, rows: Rows) -> Floats:
        """float32 [len(rows), cols] of the given rows."""
        return np.concatenate([self._read_row(int(row)) for row in rows])

    def _read_row(self, row: int) -> Floats:
        record = self._record

        def read(extent: str) -> U8:
            size = self._bytes[extent]
            return self._reader.read_part(record.name, extent, row * size, size)

        return unpack_weight(record.name, record.kind, self._attributes, read, {}).dense()


def rows_on_disk(
    reader: ContainerReader, record: Record, transforms: Mapping[str, InputTransform]
) -> PlaneRows | DenseRows:
    """Reads rows of an embedding of one of KINDS when they are asked for."""
    if record.kind == "planes":
        return PlaneRows(reader, record, transforms)
    return DenseRows(reader, record)
