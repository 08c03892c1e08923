"""docs/format.md, "Tiles"."""

from __future__ import annotations

import pytest

from loop_singular_bit.codec.tiling import (
    ROW_TILE_ROWS,
    TILE_ROWS,
    Tiling,
    even_tile_rows,
    extent_rows_of,
)


@pytest.mark.parametrize(
    ("tile_rows", "cols", "extent_rows"),
    [
        (32, 64, 1024), (96, 64, 960), (288, 64, 864), (1024, 64, 1024), (1056, 64, 1056),
        (4096, 64, 4096), (32, 8192, 1024), (32, 14336, 576), (512, 14336, 512),
    ],
)  # fmt: skip
def test_extents_are_as_many_whole_tiles_as_fit(
    tile_rows: int, cols: int, extent_rows: int
) -> None:
    assert extent_rows_of(tile_rows, cols) == extent_rows


@pytest.mark.parametrize("tile_rows", [-32, 0, 16, 31, 48])
def test_tiles_are_whole_blocks(tile_rows: int) -> None:
    with pytest.raises(ValueError, match=f"^{tile_rows} tile rows: must be a multiple of 32"):
        even_tile_rows(100, 64, tile_rows)


@pytest.mark.parametrize(
    ("rows", "tile_rows"),
    [(1, 32), (576, 576), (1024, 1024), (1025, 544), (1536, 768), (2048, 1024), (11008, 1024)],
)
def test_tiles_are_as_few_as_can_be_and_of_one_height(rows: int, tile_rows: int) -> None:
    assert even_tile_rows(rows, 64, TILE_ROWS) == tile_rows
    assert -(-rows // tile_rows) == -(-rows // TILE_ROWS)
    assert even_tile_rows(rows, 64, ROW_TILE_ROWS) == ROW_TILE_ROWS


@pytest.mark.parametrize(
    ("rows", "cols", "tile_rows"),
    [(4096, 8192, 1024), (4096, 14336, 512), (4096, 28672, 288), (64, 1 << 20, 32)],
)
def test_tiles_of_wide_matrices_are_lower(rows: int, cols: int, tile_rows: int) -> None:
    assert even_tile_rows(rows, cols, TILE_ROWS) == tile_rows
    assert tile_rows * cols <= max(1 << 23, 32 * cols)


@pytest.mark.parametrize(
    ("tiling", "nbytes"),
    [
        (Tiling(1, 4, 1, 32, 32), [64]),  # a block of 32 rows and 16 columns
        (Tiling(96, 16, 3, 32, 64), [2 * 3 * 64, 3 * 64]),
        (Tiling(100, 20, 2, 64, 64), [2 * 2 * 128, 2 * 2 * 128]),
        (Tiling(2048, 576, 4, TILE_ROWS, 1024), [1024 * 576 // 2] * 2),
    ],
)
def test_bytes_of_extents(tiling: Tiling, nbytes: list[int]) -> None:
    names = [f"tiles{number}" for number in range(len(nbytes))]
    assert dict(tiling.extent_bytes()) == dict(zip(names, nbytes, strict=True))


def test_the_extents_of_a_large_lookup_table_are_few() -> None:
    tiling = Tiling(151_936, 896, 6, ROW_TILE_ROWS, extent_rows_of(ROW_TILE_ROWS, 896))
    extents = list(tiling.extent_bytes())
    assert len(extents) == 149
    assert sum(nbytes for _, nbytes in extents) == 151_936 * 896 * 6 // 8


def test_places_of_tiles_follow_each_other() -> None:
    tiling = Tiling(200, 20, 3, 64, 128)
    whole, last = 3 * 2 * 128, 3 * 128  # two blocks of two strips, and one block
    assert [tiling.place(tile) for tile in range(4)] == [
        ("tiles0", 0, whole), ("tiles0", whole, whole), ("tiles1", 0, whole),
        ("tiles1", whole, last),
    ]  # fmt: skip
