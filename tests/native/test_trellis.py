from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import (
    Floats,
    Int8s,
    decode,
    everywhere,
    floats,
    random_streams,
    random_tables,
)

from loop_singular_bit import _native
from loop_singular_bit.codec import reference

WINDOWS = range(4, 11)
SHAPES = list(product((16, 48, 192, 257, 600), (4, 32, 64, 576), (16, 64, 256)))
TOKENS = (1, 2, 3, 4, 5, 8, 9, 17)


def sampled(window: int) -> list[tuple[int, tuple[int, int, int]]]:
    """(planes, shape) pairs of one window: all windows together meet every shape and every pair of
    window and planes (7, 8 and 60 walk round each other)."""
    at = [i for i in range(len(SHAPES)) if WINDOWS[i % 7] == window]
    return [(1 + i % 8, SHAPES[i * 7 % 60]) for i in at]


def test_sample_meets_every_shape_and_every_number_of_planes() -> None:
    cases = [(window, *case) for window in WINDOWS for case in sampled(window)]
    assert {shape for _, _, shape in cases} == set(SHAPES)
    assert {(window, planes) for window, planes, _ in cases} == set(product(WINDOWS, range(1, 9)))


@pytest.mark.parametrize("window", WINDOWS)
def test_decode_equals_reference(window: int) -> None:
    rng = np.random.default_rng(window)
    for planes, shape in sampled(window):
        entries = random_tables(rng, planes, window)
        streams = random_streams(rng, planes, *shape)
        decoded = everywhere(lambda s=streams, e=entries, g=shape: decode(s, e, *g))
        expected = reference.decode_planes(streams, entries, *shape)
        np.testing.assert_array_equal(decoded, expected, err_msg=f"{planes} planes, {shape}")


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("planes", [4, 8])
def test_decode_reaches_both_ends_of_the_range(window: int, planes: int) -> None:
    entries = random_tables(np.random.default_rng(window), planes, window)
    shape = (16, 8, 16)
    top = 127 if planes == 4 else 8 * 127 + 127
    nbytes = _native.stream_bytes(*shape)
    zeros = [np.zeros(nbytes, np.uint8)] * planes
    ones = [np.full(nbytes, 255, np.uint8)] * planes
    assert (everywhere(lambda: decode(zeros, entries, *shape)) == -top).all()
    assert (everywhere(lambda: decode(ones, entries, *shape)) == top).all()


@pytest.mark.parametrize(
    ("begin", "count"), [(0, 1), (15, 2), (16, 16), (37, 60), (96, 5), (100, 0)]
)
def test_decode_of_some_rows_is_that_part_of_the_whole(begin: int, count: int) -> None:
    rng = np.random.default_rng(begin)
    shape = (101, 12, 32)
    entries, streams = random_tables(rng, 6, 7), random_streams(rng, 6, *shape)

    def part() -> npt.NDArray[np.int16]:
        out = np.full((count, 12), 12345, np.int16)
        tables = _native.PlaneTables(entries)
        _native.planes_decode(streams, *shape, tables, begin, out)
        return out

    whole = decode(streams, entries, *shape)
    np.testing.assert_array_equal(everywhere(part), whole[begin : begin + count])


class Matrix:
    """A random matrix in planes, multiplied with int8 rows, one scale per group of columns."""

    def __init__(self, seed: int, planes: int, window: int, shape: tuple[int, int, int]) -> None:
        rng = np.random.default_rng(seed)
        self.shape = shape
        self.entries = random_tables(rng, planes, window)
        self.tables = _native.PlaneTables(self.entries)
        self.streams = random_streams(rng, planes, *shape)
        self.row_scale = rng.uniform(0.01, 0.02, shape[0]).astype(np.float32)
        self.x = floats(rng, max(TOKENS), shape[1])

    def product(self, x: Floats, group: int) -> Floats:
        packed = _native.PackedRows(len(x), x.shape[1], group)
        packed.pack(x)
        out = np.full((len(x), self.shape[0]), np.nan, np.float32)
        _native.planes_matmul(self.streams, *self.shape, self.tables, self.row_scale, packed, out)
        return out

    def expected(self, group: int) -> Floats:
        weight = reference.decode_planes(self.streams, self.entries, *self.shape)
        q, scale = reference.quantize_rows(self.x, group)
        return reference.planes_matmul(weight, self.row_scale, q, scale)


# Between them: every number of planes in a group of four with tables in 2 registers and in 4 (L=8),
# tables in memory (L>8), tiles with 1 to 17 row groups, one and several groups of columns.
MATMULS = [
    (1, 7, (205, 32, 256), 32),
    (2, 8, (208, 48, 64), 16),
    (3, 4, (205, 64, 48), 64),
    (4, 7, (136, 96, 128), 32),
    (4, 8, (272, 16, 256), 4),
    (5, 6, (136, 32, 256), 16),
    (6, 8, (80, 64, 16), 64),
    (7, 5, (257, 16, 256), 16),
    (8, 8, (96, 32, 64), 8),
    (1, 8, (48, 32, 48), 16),
    (2, 6, (96, 32, 32), 32),
    (3, 8, (80, 16, 32), 8),
    (2, 9, (40, 32, 32), 16),
    (8, 10, (72, 32, 64), 32),
]


@pytest.mark.parametrize(("planes", "window", "shape", "group"), MATMULS)
def test_matmul(planes: int, window: int, shape: tuple[int, int, int], group: int) -> None:
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


def test_matmul_reuses_packed_rows_of_another_size() -> None:
    matrix = Matrix(1, 3, 7, (48, 32, 48))

    def again() -> Floats:
        packed = _native.PackedRows(17, 32, 16)
        outs = []
        for tokens in (17, 3, 1, 9):
            packed.pack(matrix.x[:tokens])
            out = np.empty((tokens, 48), np.float32)
            _native.planes_matmul(
                matrix.streams, *matrix.shape, matrix.tables, matrix.row_scale, packed, out
            )
            outs.append(out)
        return np.concatenate(outs)

    full = matrix.product(matrix.x, 16)
    expected = np.concatenate([full[:tokens] for tokens in (17, 3, 1, 9)])
    np.testing.assert_array_equal(everywhere(again), expected)


def test_zero_rows_give_zero() -> None:
    matrix = Matrix(2, 2, 7, (16, 16, 16))
    assert (everywhere(lambda: matrix.product(np.zeros((2, 16), np.float32), 16)) == 0).all()


ENTRIES = random_tables(np.random.default_rng(0), 2, 4)
TABLES = _native.PlaneTables(ENTRIES)
NBYTES = _native.stream_bytes(20, 8, 16)


def streams_of(nbytes: int = NBYTES, count: int = 2) -> list[npt.NDArray[np.uint8]]:
    return [np.zeros(nbytes, np.uint8)] * count


def call_decode(
    streams: list[npt.NDArray[np.uint8]] | None = None,
    rows: int = 20,
    cols: int = 8,
    tile_rows: int = 16,
    begin: int = 0,
    out: npt.NDArray[np.generic] | None = None,
) -> None:
    out = np.empty((20, 8), np.int16) if out is None else out
    streams = streams_of() if streams is None else streams
    _native.planes_decode(streams, rows, cols, tile_rows, TABLES, begin, out)


def call_matmul(
    tokens: int = 2, cols: int = 8, scales: int = 20, out: npt.NDArray[np.generic] | None = None
) -> None:
    packed = _native.PackedRows(tokens, cols, 4)
    packed.pack(np.zeros((tokens, cols), np.float32))
    out = np.empty((2, 20), np.float32) if out is None else out
    _native.planes_matmul(streams_of(), 20, 8, 16, TABLES, np.ones(scales, np.float32), packed, out)


def entries_of(planes: int, size: int, value: int = 1) -> Int8s:
    return np.full((planes, size), value, np.int8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_decode(streams_of(count=1)),
        lambda: call_decode([]),
        lambda: call_decode(streams_of(NBYTES - 1)),
        lambda: call_decode(streams_of(NBYTES + 8)),
        lambda: call_decode(cols=6),
        lambda: call_decode(cols=0),
        lambda: call_decode(rows=0),
        lambda: call_decode(rows=-20),
        lambda: call_decode(rows=33),
        lambda: call_decode(tile_rows=0),
        lambda: call_decode(tile_rows=-16),
        lambda: call_decode(tile_rows=24),
        lambda: call_decode(begin=-1),
        lambda: call_decode(begin=1),
        lambda: call_decode(out=np.empty((21, 8), np.int16)),
        lambda: call_decode(out=np.empty((20, 7), np.int16)),
        lambda: call_matmul(tokens=3),
        lambda: call_matmul(cols=12),
        lambda: call_matmul(scales=19),
        lambda: call_matmul(out=np.empty((2, 21), np.float32)),
        lambda: _native.stream_bytes(16, 4, 0),
        lambda: _native.stream_bytes(16, 6, 16),
        lambda: _native.PlaneTables(entries_of(1, 8)),
        lambda: _native.PlaneTables(entries_of(1, 2048)),
        lambda: _native.PlaneTables(entries_of(1, 100)),
        lambda: _native.PlaneTables(entries_of(1, 0)),
        lambda: _native.PlaneTables(entries_of(0, 16)),
        lambda: _native.PlaneTables(entries_of(9, 16)),
        lambda: _native.PlaneTables(entries_of(1, 16, -128)),
        lambda: _native.PlaneTables(entries_of(4, 16, 32)),
        lambda: _native.PlaneTables(np.repeat(np.array([[32], [31], [32], [33]], np.int8), 16, 1)),
        lambda: _native.PlaneTables(np.concatenate([entries_of(4, 16), entries_of(4, 16, 32)])),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(call: Callable[[], None]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_decode([np.zeros(2 * NBYTES, np.uint8)[::2]] * 2),
        lambda: call_decode([np.zeros(NBYTES, np.int8)] * 2),
        lambda: call_decode(out=np.empty((20, 16), np.int16)[:, ::2]),
        lambda: call_decode(out=np.empty((20, 8), np.int32)),
        lambda: call_decode(out=np.asfortranarray(np.empty((20, 8), np.int16))),
        lambda: call_matmul(out=np.empty((2, 20), np.float64)),
        lambda: call_matmul(out=np.empty((2, 40), np.float32)[:, ::2]),
        lambda: _native.PlaneTables(np.zeros((1, 16), np.int16)),
        lambda: _native.PlaneTables(np.zeros(16, np.int8)),
    ],
)
def test_arrays_are_never_converted(call: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        call()


def test_tables_at_the_limit_are_accepted() -> None:
    assert _native.PlaneTables(entries_of(4, 16, 31)).count == 4
    assert _native.PlaneTables(entries_of(5, 64, -25)).window == 6


def test_unknown_tier_and_thread_counts_are_refused() -> None:
    before = _native.active_tier(), _native.threads()
    for call in (
        lambda: _native.use_tier("abacus"),
        lambda: _native.set_threads(0),
        lambda: _native.set_threads(257),
    ):
        with pytest.raises(ValueError):
            call()
    assert (_native.active_tier(), _native.threads()) == before


def test_emulation_is_never_the_default() -> None:
    assert "emulated" not in _native.available_tiers()[-1]
