"""What the trellis kernels refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import Bytes, Int8s, native, outside, random_hashes, random_tables

from loop_singular_bit import _native

WINDOWS = range(4, 13)
TABLES = native(random_tables(np.random.default_rng(0), 2, 4))
NBYTES = 2 * _native.plane_bytes(40, 8)
TILE = 2 * _native.plane_bytes(32, 8)
NO_HASHES = np.zeros((2, 16), np.uint8)


def extents_of(*nbytes: int) -> list[Bytes]:
    return [np.zeros(n, np.uint8) for n in nbytes or (NBYTES,)]


def call_decode(
    extents: Sequence[npt.NDArray[Any]] | None = None,
    rows: int = 40,
    cols: int = 8,
    tile_rows: int = 32,
    begin: int = 0,
    out: npt.NDArray[Any] | None = None,
) -> None:
    out = np.empty((40, 8), np.int16) if out is None else out
    given: Any = extents_of() if extents is None else extents
    _native.planes_decode(given, rows, cols, tile_rows, TABLES, begin, out)


def call_matmul(
    tokens: int = 2, cols: int = 8, scales: int = 40, out: npt.NDArray[Any] | None = None
) -> None:
    packed = _native.PackedRows(tokens, cols, cols)
    packed.pack(np.zeros((tokens, cols), np.float32))
    out = np.empty((2, 40), np.float32) if out is None else out
    _native.planes_matmul(extents_of(), 40, 8, 32, TABLES, np.ones(scales, np.float32), packed, out)


def levels_of(planes: int, value: int = 1, size: int = 16) -> Int8s:
    return np.full((planes, size), value, np.int8)


def tables(levels: Int8s, window: int = 7) -> _native.PlaneTables:
    return _native.PlaneTables(window, NO_HASHES, levels)


def test_the_calls_below_work_when_nothing_is_wrong() -> None:
    call_decode()
    call_decode(extents_of(TILE, NBYTES - TILE))
    call_decode(extents_of(0, TILE, 0, NBYTES - TILE))
    call_matmul()
    assert tables(levels_of(8)).count == 8


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_decode([]),
        lambda: call_decode(extents_of(0)),
        lambda: call_decode(extents_of(TILE)),
        lambda: call_decode(extents_of(TILE - 64, NBYTES - TILE + 64)),
        lambda: call_decode(extents_of(NBYTES - 64, 64)),
        lambda: call_decode(extents_of(NBYTES - 1)),
        lambda: call_decode(extents_of(NBYTES + 1)),
        lambda: call_decode(extents_of(NBYTES + TILE)),
        lambda: call_decode(extents_of(NBYTES, TILE)),
        lambda: call_decode(cols=6),
        lambda: call_decode(cols=0),
        lambda: call_decode(rows=0),
        lambda: call_decode(rows=-40),
        lambda: call_decode(rows=65),
        lambda: call_decode(tile_rows=0),
        lambda: call_decode(tile_rows=-32),
        lambda: call_decode(tile_rows=16),
        lambda: call_decode(tile_rows=48),
        lambda: call_decode(begin=-1),
        lambda: call_decode(begin=1),
        lambda: call_decode(out=np.empty((41, 8), np.int16)),
        lambda: call_decode(out=np.empty((40, 7), np.int16)),
        lambda: call_matmul(tokens=3),
        lambda: call_matmul(cols=12),
        lambda: call_matmul(scales=39),
        lambda: call_matmul(out=np.empty((2, 39), np.float32)),
        lambda: _native.plane_bytes(0, 4),
        lambda: _native.plane_bytes(32, 0),
        lambda: _native.plane_bytes(32, 6),
        lambda: tables(levels_of(1), 3),
        lambda: tables(levels_of(1), 13),
        lambda: tables(levels_of(1), 0),
        lambda: tables(levels_of(1), -7),
        lambda: tables(levels_of(1, size=8)),
        lambda: tables(levels_of(1, size=32)),
        lambda: tables(levels_of(1, size=0)),
        lambda: tables(levels_of(0)),
        lambda: tables(levels_of(9)),
        lambda: tables(levels_of(1, -128)),
        lambda: tables(levels_of(4, 32)),
        lambda: tables(np.repeat(np.array([[32], [31], [32], [33]], np.int8), 16, 1)),
        lambda: tables(np.concatenate([levels_of(4), levels_of(4, 32)])),
        lambda: _native.PlaneTables(7, NO_HASHES[:1].copy(), levels_of(1)),
        lambda: _native.PlaneTables(7, np.zeros((3, 16), np.uint8), levels_of(1)),
        lambda: _native.PlaneTables(7, NO_HASHES[:, :8].copy(), levels_of(1)),
    ],
)
def test_wrong_values_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_decode([np.zeros(2 * NBYTES, np.uint8)[::2]]),
        lambda: call_decode([np.zeros(NBYTES, np.int8)]),
        lambda: call_decode([np.zeros((2, NBYTES // 2), np.uint8)]),
        lambda: call_decode(out=np.empty((40, 16), np.int16)[:, ::2]),
        lambda: call_decode(out=np.empty((40, 8), np.int32)),
        lambda: call_decode(out=np.asfortranarray(np.empty((40, 8), np.int16))),
        lambda: call_matmul(out=np.empty((2, 40), np.float64)),
        lambda: call_matmul(out=np.empty((2, 80), np.float32)[:, ::2]),
        lambda: tables(np.zeros((1, 16), np.int16)),
        lambda: tables(np.zeros(16, np.int8)),
        lambda: tables(np.zeros((1, 32), np.int8)[:, ::2]),
        lambda: _native.PlaneTables(7, np.zeros((2, 16), np.int8), levels_of(1)),
        lambda: _native.PlaneTables(7, np.zeros((2, 16), np.int64), levels_of(1)),
        lambda: _native.PlaneTables(7, np.zeros(32, np.uint8), levels_of(1)),
        lambda: _native.PlaneTables(7, np.zeros((2, 32), np.uint8)[:, ::2], levels_of(1)),
    ],
)
def test_arrays_are_never_converted(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        call()


def test_levels_at_the_limit_are_accepted() -> None:
    assert tables(levels_of(4, 31)).count == 4
    assert tables(levels_of(5, -25), 6).window == 6
    assert tables(np.repeat(np.array([[-127], [0]], np.int8), 16, 1)).count == 2
    both = np.concatenate([levels_of(4, 31), levels_of(4, -31)])
    assert tables(both, 12).count == 8


@pytest.mark.parametrize("window", WINDOWS)
def test_hashes_are_nibbles(window: int) -> None:
    for nibble in range(2):
        for value in range(16):
            hashes = random_hashes(np.random.default_rng(window), window)
            hashes[nibble, value] += 16
            with pytest.raises(ValueError, match="a hash must be a nibble"):
                _native.PlaneTables(window, hashes, levels_of(1))


@pytest.mark.parametrize("nibble", [0, 1])
@pytest.mark.parametrize("window", WINDOWS)
def test_hashes_depend_on_bits_of_the_window_only(window: int, nibble: int) -> None:
    """One bit of one older nibble; the window has its `4 - outside` highest ones."""
    for bit in range(4):
        hashes = NO_HASHES.copy()
        hashes[nibble] = np.where(
            np.arange(16) >> bit & 1, 9, 4 if outside(window, nibble) < 4 else 0
        )
        if bit >= outside(window, nibble):
            assert _native.PlaneTables(window, hashes, levels_of(1)).window == window
        else:
            with pytest.raises(ValueError, match="a hash depends on bits outside the window"):
                _native.PlaneTables(window, hashes, levels_of(1))


@pytest.mark.parametrize("nibble", [0, 1])
@pytest.mark.parametrize("window", WINDOWS)
def test_one_entry_may_differ_where_the_whole_nibble_lies_inside(window: int, nibble: int) -> None:
    for value in range(16):
        hashes = NO_HASHES.copy()
        hashes[nibble, value] = 15
        if outside(window, nibble) == 0:
            _native.PlaneTables(window, hashes, levels_of(1))
        else:
            with pytest.raises(ValueError, match="a hash depends on bits outside the window"):
                _native.PlaneTables(window, hashes, levels_of(1))


@pytest.mark.parametrize(("window", "nibble"), [(4, 0), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1)])
def test_a_nibble_outside_the_window_has_no_hash(window: int, nibble: int) -> None:
    hashes = NO_HASHES.copy()
    hashes[nibble] = 1
    with pytest.raises(ValueError, match="a hash depends on bits outside the window"):
        _native.PlaneTables(window, hashes, levels_of(1))


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
