"""How a matrix in planes is cut into tiles, and those put into extents: docs/format.md, "Tiles"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loop_singular_bit import _native

TILE_ROWS = 1024
ROW_TILE_ROWS = 32  # rows that are looked up one by one: all that one of them needs is little
EXTENT_ROWS = 1024
TILE_WEIGHTS = 1 << 23  # a tile passes through memory whole, and so does an extent


def rows_within(most: int, cols: int) -> int:
    """At most `most` rows of a tile or an extent, and of at most TILE_WEIGHTS weights."""
    return max(min(most, TILE_WEIGHTS // cols // 32 * 32), 32)


def even_tile_rows(rows: int, cols: int, most: int) -> int:
    """Rows of a tile: the least that makes no more tiles than `most` does (fewer where the matrix
    is wide).

    Streams start anew in every tile, so a low last one codes worse; and threads take equal shares.
    """
    if most < 32 or most % 32:
        raise ValueError(f"{most} tile rows: must be a multiple of 32")
    most = rows_within(most, cols)
    tiles = -(-rows // most)
    return -(-rows // (32 * tiles)) * 32


def extent_rows_of(tile_rows: int, cols: int) -> int:
    """Rows of an extent that a writer chooses: as many whole tiles as fit EXTENT_ROWS."""
    return max(rows_within(EXTENT_ROWS, cols) // tile_rows, 1) * tile_rows


@dataclass(frozen=True)
class Tiling:
    """A matrix [rows, cols] of `planes` planes.

    tile_rows    rows of a tile: its bytes are plane after plane and depend on no other tile
    extent_rows  rows of an extent: whole tiles, one after another
    The last tile and the last extent may be lower.
    """

    rows: int
    cols: int
    planes: int
    tile_rows: int
    extent_rows: int

    def extent_bytes(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every extent, in the order of their rows."""
        for number, start in enumerate(range(0, self.rows, self.extent_rows)):
            height = min(self.extent_rows, self.rows - start)
            yield f"tiles{number}", self.planes * _native.plane_bytes(height, self.cols)

    def place(self, tile: int) -> tuple[str, int, int]:
        """Extent, first byte in it and bytes of a tile."""
        per_extent = self.extent_rows // self.tile_rows
        extent, at = divmod(tile, per_extent)
        height = min(self.tile_rows, self.rows - tile * self.tile_rows)
        before = self.planes * _native.plane_bytes(self.tile_rows, self.cols)
        return f"tiles{extent}", at * before, self.planes * _native.plane_bytes(height, self.cols)
