"""The native kernels called on fresh outputs, on every instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec import reference

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

THREADS = (1, 2, 3)


@contextmanager
def running(tier: str, threads: int) -> Iterator[None]:
    before = _native.active_tier(), _native.threads()
    _native.use_tier(tier)
    _native.set_threads(threads)
    try:
        yield
    finally:
        _native.use_tier(before[0])
        _native.set_threads(before[1])


def everywhere(compute: Callable[[], Array]) -> Array:
    """The result of `compute`, which must have the same bits on every tier and thread count."""
    results = {}
    for tier in _native.available_tiers():
        for threads in THREADS:
            with running(tier, threads):
                results[f"{tier} on {threads} threads"] = compute()
    first, expected = next(iter(results.items()))
    for setting, result in results.items():
        assert result.tobytes() == expected.tobytes(), f"{setting} differs from {first}"
    return expected


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, np.float32)


def outside(window: int, nibble: int) -> int:
    """Lowest bits of an older nibble (0: the one before the newest) that the window has not."""
    return min(max(8 + 4 * nibble - window, 0), 4)


def random_hashes(rng: np.random.Generator, window: int) -> Bytes:
    """Hashes [2, 16] that depend on every bit inside the window."""
    hashes = np.zeros((2, 16), np.uint8)
    for nibble in range(2):
        cut = outside(window, nibble)
        if cut < 4:
            drawn = rng.permutation(16)[: 16 >> cut]  # all different: every bit counts
            hashes[nibble] = np.repeat(drawn, 1 << cut)
    return hashes


def random_tables(rng: np.random.Generator, planes: int, window: int) -> reference.Tables:
    """Hashes, and levels whose largest add up to 127 in every group of four planes.

    Level 0 of a plane is its least, the last one its greatest.
    """
    levels = np.zeros((planes, 16), np.int8)
    for start in range(0, planes, 4):
        group = levels[start : start + 4]
        cuts = np.sort(rng.integers(1, 127, len(group) - 1))
        largest = np.diff(cuts, prepend=0, append=127)
        for plane, top in zip(group, largest, strict=True):
            plane[:] = rng.integers(-top, top + 1, plane.size)
            plane[0], plane[-1] = -top, top
    return reference.Tables(window, random_hashes(rng, window), levels)


def extreme_tables(rng: np.random.Generator, planes: int, window: int) -> reference.Tables:
    """The same with every level at one end of its plane's range."""
    tables = random_tables(rng, planes, window)
    signs = np.tile(np.array([-1, 1], np.int8), 8)
    levels = np.stack([rng.permutation(signs) * plane[-1] for plane in tables.levels])
    return replace(tables, levels=levels)


def native(tables: reference.Tables) -> _native.PlaneTables:
    return _native.PlaneTables(tables.window, tables.hashes, tables.levels)


def random_extents(
    rng: np.random.Generator, planes: int, rows: int, cols: int, tile_rows: int
) -> list[Bytes]:
    """Extents of random bytes, of one to three tiles each."""
    found, start = [], 0
    while start < rows:
        stop = min(start + int(rng.integers(1, 4)) * tile_rows, rows)
        nbytes = planes * _native.plane_bytes(stop - start, cols)
        found.append(rng.integers(0, 256, nbytes, np.uint8))
        start = stop
    return found


def decode(
    extents: list[Bytes], tables: reference.Tables, rows: int, cols: int, tile_rows: int
) -> npt.NDArray[np.int16]:
    out = np.full((rows, cols), 12345, np.int16)
    _native.planes_decode(extents, rows, cols, tile_rows, native(tables), 0, out)
    return out


def reference_decode(
    extents: list[Bytes], tables: reference.Tables, rows: int, cols: int, tile_rows: int
) -> npt.NDArray[np.int16]:
    return reference.decode_planes(
        extents, tables.window, tables.hashes, tables.levels, rows, cols, tile_rows
    )


def bits_to_float(bits: npt.NDArray[np.uint16], kind: str) -> Floats:
    """float32 of half ("f16") or bfloat16 ("bf16") patterns."""
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)
