from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import (
    Floats,
    decode,
    everywhere,
    extreme_tables,
    floats,
    native,
    random_extents,
    random_tables,
    reference_decode,
)

from loop_singular_bit import _native
from loop_singular_bit.codec import reference

Shape = tuple[int, int, int]  # rows, columns, rows of a tile

WINDOWS = range(4, 13)
# Rows: a broken block, whole blocks, one row over, tiles of unequal height. Columns: one quad, a
# broken strip, whole strips.
SHAPES = list(product((20, 64, 192, 257, 600), (4, 20, 64, 132, 576), (32, 64, 256)))
TOKENS = (1, 2, 3, 4, 5, 8, 9, 17)


def sampled(window: int) -> list[tuple[int, Shape]]:
    """(planes, shape) pairs of one window: all windows together meet every shape and every pair of
    window and planes (9, 8 and 75 walk round each other)."""
    at = [i for i in range(len(SHAPES)) if WINDOWS[i % 9] == window]
    return [(1 + i % 8, SHAPES[i * 7 % 75]) for i in at]


def test_sample_meets_every_shape_and_every_number_of_planes() -> None:
    cases = [(window, *case) for window in WINDOWS for case in sampled(window)]
    assert {shape for _, _, shape in cases} == set(SHAPES)
    assert {(window, planes) for window, planes, _ in cases} == set(product(WINDOWS, range(1, 9)))


@pytest.mark.parametrize("window", WINDOWS)
def test_decode_equals_reference(window: int) -> None:
    rng = np.random.default_rng(window)
    for planes, shape in sampled(window):
        tables = random_tables(rng, planes, window)
        extents = random_extents(rng, planes, *shape)
        decoded = everywhere(lambda e=extents, t=tables, g=shape: decode(e, t, *g))
        expected = reference_decode(extents, tables, *shape)
        np.testing.assert_array_equal(decoded, expected, err_msg=f"{planes} planes, {shape}")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("planes", [4, 8])
def test_decode_reaches_both_ends_of_the_range(window: int, planes: int) -> None:
    rng = np.random.default_rng(window)
    tables = extreme_tables(rng, planes, window)
    shape = (96, 64, 64)
    extents = random_extents(rng, planes, *shape)
    decoded = everywhere(lambda: decode(extents, tables, *shape))
    top = 127 if planes == 4 else 8 * 127 + 127
    assert (decoded.min(), decoded.max()) == (-top, top)
    np.testing.assert_array_equal(decoded, reference_decode(extents, tables, *shape))


@pytest.mark.parametrize("window", WINDOWS)
def test_a_bit_reaches_as_many_steps_as_the_window_has_bits(window: int) -> None:
    """Across blocks and quads of a tile, and no further: every weight of one stream is seen."""
    rng = np.random.default_rng(window)
    tables = random_tables(rng, 1, window)
    distinct = reference.Tables(window, tables.hashes, np.arange(16, dtype=np.int8)[None])
    shape = (64, 8, 64)
    (tile,) = random_extents(rng, 1, *shape)
    before = decode([tile], distinct, *shape)
    # Stream 6: row 1 and column 2 of every group and quad. Step 14: block 1, bit 6.
    changed = tile.copy()
    changed[64 + 6] ^= 1 << 6
    differs = everywhere(lambda: decode([changed], distinct, *shape)) != before
    order = [(row, column) for column in (2, 6) for row in range(1, 64, 4)]
    seen = [step for step, at in enumerate(order) if differs[at]]
    assert seen == list(range(14, 14 + window))
    assert differs.sum() == window


@pytest.mark.parametrize("cols", [4, 20, 40])
@pytest.mark.parametrize("window", [4, 8, 12])
def test_bytes_of_padded_columns_are_not_read(cols: int, window: int) -> None:
    rng = np.random.default_rng(cols)
    matrix = Matrix(cols, 3, window, (100, cols, 64))
    full, weights = matrix.product(matrix.x, cols), matrix.decoded()
    for extent in matrix.extents:
        pad = extent.reshape(-1, -(-cols // 16) * 4, 16)[:, cols // 4 :]
        pad[:] = rng.integers(0, 256, pad.shape, np.uint8)
    np.testing.assert_array_equal(everywhere(matrix.decoded), weights)
    np.testing.assert_array_equal(everywhere(lambda: matrix.product(matrix.x, cols)), full)
    one = everywhere(lambda: matrix.product(matrix.x[:1], cols))
    np.testing.assert_array_equal(one, full[:1])


@pytest.mark.parametrize(
    ("begin", "count"), [(0, 1), (31, 2), (32, 32), (37, 60), (96, 5), (100, 1), (101, 0)]
)
def test_decode_of_some_rows_is_that_part_of_the_whole(begin: int, count: int) -> None:
    rng = np.random.default_rng(begin)
    shape = (101, 20, 64)
    tables, extents = random_tables(rng, 6, 10), random_extents(rng, 6, *shape)

    def part() -> npt.NDArray[np.int16]:
        out = np.full((count, 20), 12345, np.int16)
        _native.planes_decode(extents, *shape, native(tables), begin, out)
        return out

    whole = decode(extents, tables, *shape)
    np.testing.assert_array_equal(everywhere(part), whole[begin : begin + count])


class Matrix:
    """A random matrix in planes, multiplied with int8 rows, one scale per group of columns."""

    def __init__(self, seed: int, planes: int, window: int, shape: Shape) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        self.tables = random_tables(rng, planes, window)
        self.native = native(self.tables)
        self.extents = random_extents(rng, planes, *shape)
        self.row_scale = rng.uniform(0.01, 0.02, shape[0]).astype(np.float32)
        self.x = floats(rng, max(TOKENS), shape[1])

    def decoded(self) -> npt.NDArray[np.int16]:
        return decode(self.extents, self.tables, *self.shape)

    def product(self, x: Floats, group: int) -> Floats:
        packed = _native.PackedRows(len(x), x.shape[1], group)
        packed.pack(x)
        out = np.full((len(x), self.shape[0]), np.nan, np.float32)
        _native.planes_matmul(self.extents, *self.shape, self.native, self.row_scale, packed, out)
        return out

    def expected(self, group: int) -> Floats:
        weight = reference_decode(self.extents, self.tables, *self.shape)
        q, scale = reference.quantize_rows(self.x, group)
        return reference.planes_matmul(weight, self.row_scale, q, scale)


# Between them: every number of planes, windows with one hash and with two (L > 8), tiles with 1, 2,
# 3 and 8 blocks, broken last strips, one and several groups of columns, of one strip and of more.
MATMULS = [
    (1, 7, (205, 32, 256), 32),
    (2, 8, (208, 48, 64), 16),
    (3, 4, (205, 64, 96), 64),
    (4, 7, (136, 96, 128), 32),
    (4, 8, (272, 4, 256), 4),
    (5, 6, (136, 36, 256), 36),
    (6, 8, (80, 64, 32), 64),
    (7, 5, (257, 16, 256), 16),
    (8, 8, (96, 128, 64), 64),
    (1, 9, (48, 192, 64), 16),
    (2, 6, (96, 132, 32), 132),
    (3, 12, (80, 80, 32), 16),
    (2, 9, (40, 32, 32), 16),
    (8, 10, (72, 20, 64), 20),
    (4, 11, (100, 576, 96), 64),
    (5, 12, (300, 24, 64), 24),
    (1, 12, (33, 64, 32), 32),
]


def test_matmuls_meet_every_number_of_planes_and_every_window() -> None:
    assert {planes for planes, *_ in MATMULS} == set(range(1, 9))
    assert {window for _, window, *_ in MATMULS} == set(WINDOWS)


@pytest.mark.parametrize(("planes", "window", "shape", "group"), MATMULS)
def test_matmul(planes: int, window: int, shape: Shape, group: int) -> None:
    matrix = Matrix(planes * 16 + window, planes, window, shape)
    full = everywhere(lambda: matrix.product(matrix.x, group))
    expected = matrix.expected(group)
    np.testing.assert_allclose(full, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    for tokens in TOKENS:
        part = everywhere(lambda t=tokens: matrix.product(matrix.x[:t], group))
        assert part.tobytes() == full[:tokens].tobytes(), f"{tokens} rows differ from 17"
    for t in (3, 7, 16):
        alone = everywhere(lambda t=t: matrix.product(matrix.x[t : t + 1], group))
        assert alone.tobytes() == full[t].tobytes(), f"row {t} alone differs"


@pytest.mark.parametrize("planes", [1, 4, 8])
@pytest.mark.parametrize("group", [16, 576])
def test_the_largest_sums_are_exact(planes: int, group: int) -> None:
    """Every weight and every input at an end of its range, of equal or of unequal sign."""
    matrix = Matrix(planes, planes, 9, (33, 576, 32))
    largest = np.abs(matrix.tables.levels).max(axis=1, keepdims=True)
    signs = np.array([[1], [-1]] * 9, np.float32)
    inputs = 127 * signs[:9] * np.ones((1, 576), np.float32)
    weight = (8 * 127 + 127) if planes == 8 else 127
    for sign in (1, -1):
        levels = np.repeat(sign * largest, 16, axis=1).astype(np.int8)
        matrix.native = _native.PlaneTables(9, matrix.tables.hashes, levels)
        matrix.row_scale = np.ones(33, np.float32)
        for tokens in (1, 2, 9):
            out = everywhere(lambda t=tokens: matrix.product(inputs[:t], group))
            expected = sign * weight * 127.0 * 576 * signs[:tokens] * np.ones((1, 33))
            np.testing.assert_array_equal(out, expected)


def test_matmul_reuses_packed_rows_of_another_size() -> None:
    matrix = Matrix(1, 3, 7, (48, 36, 64))

    def again() -> Floats:
        packed = _native.PackedRows(17, 36, 36)
        outs = []
        for tokens in (17, 3, 1, 9):
            packed.pack(matrix.x[:tokens])
            out = np.empty((tokens, 48), np.float32)
            _native.planes_matmul(
                matrix.extents, *matrix.shape, matrix.native, matrix.row_scale, packed, out
            )
            outs.append(out)
        return np.concatenate(outs)

    full = matrix.product(matrix.x, 36)
    expected = np.concatenate([full[:tokens] for tokens in (17, 3, 1, 9)])
    np.testing.assert_array_equal(everywhere(again), expected)


def test_zero_rows_give_zero() -> None:
    matrix = Matrix(2, 2, 7, (16, 16, 32))
    assert (everywhere(lambda: matrix.product(np.zeros((2, 16), np.float32), 16)) == 0).all()


def test_how_tiles_are_cut_into_extents_changes_nothing() -> None:
    matrix = Matrix(3, 5, 9, (300, 36, 64))
    whole, product = matrix.decoded(), matrix.product(matrix.x, 36)
    together = np.concatenate(matrix.extents)
    tile = 5 * _native.plane_bytes(64, 36)
    for cuts in ([], [tile], [4 * tile], [tile, 2 * tile, 3 * tile, 4 * tile]):
        matrix.extents = np.split(together, cuts)
        np.testing.assert_array_equal(matrix.decoded(), whole)
        assert matrix.product(matrix.x, 36).tobytes() == product.tobytes()


@pytest.mark.parametrize(
    ("rows", "cols", "nbytes"),
    [(1, 4, 64), (32, 16, 64), (33, 16, 128), (32, 20, 128), (96, 36, 576)],
)
def test_plane_bytes(rows: int, cols: int, nbytes: int) -> None:
    assert _native.plane_bytes(rows, cols) == nbytes
