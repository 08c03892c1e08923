from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import (
    Array,
    Bytes,
    Floats,
    decode,
    everywhere,
    floats,
    native,
    random_hashes,
    random_tables,
    reference_decode,
)

from loop_singular_bit import _native
from loop_singular_bit.codec import reference


@dataclass(frozen=True)
class Encoded:
    extents: list[Bytes]
    decoded: npt.NDArray[np.int16]


def encode(
    target: Floats, panels: Floats | None, tables: reference.Tables, tile_rows: int, block: int
) -> Encoded:
    rows, cols = target.shape
    heights = [min(tile_rows, rows - start) for start in range(0, rows, tile_rows)]
    planes = len(tables.levels)
    extents = [np.zeros(planes * _native.plane_bytes(h, cols), np.uint8) for h in heights]
    decoded = np.full(target.shape, 12345, np.int16)
    _native.encode(target, panels, native(tables), tile_rows, block, extents, decoded)
    return Encoded(extents, decoded)


def everywhere_encoded(*arguments: object) -> Encoded:
    """`encode`, with the same bytes and weights on every tier and thread count."""

    def packed() -> Bytes:
        result = encode(*arguments)  # type: ignore[arg-type]
        return np.concatenate([*result.extents, result.decoded.view(np.uint8).ravel()])

    everywhere(packed)
    return encode(*arguments)  # type: ignore[arg-type]


def gaussian_tables(rng: np.random.Generator, planes: int, window: int) -> reference.Tables:
    """Random hashes and levels for a target of deviation 24: each plane half the one before."""
    levels = np.zeros((planes, 16), np.int8)
    for plane in range(planes):
        size = 24 / 2 ** (plane % 4) * (0.5 if plane >= 4 else 1)
        top = [66, 34, 17, 9][plane % 4]
        levels[plane] = np.clip(np.rint(rng.normal(0, size, 16)), -top, top)
    return reference.Tables(window, random_hashes(rng, window), levels)


# (planes, window, rows, cols, tile_rows, block): every window and number of planes, broken last
# block of rows, low last tile, broken strips, last block of columns narrower than the others.
PLAIN = [
    (1, 4, 32, 4, 32, 4),
    (2, 5, 80, 12, 64, 8),
    (3, 6, 45, 20, 32, 16),
    (4, 7, 96, 8, 96, 4),
    (5, 8, 65, 12, 64, 8),
    (2, 9, 32, 12, 128, 4),
    (6, 10, 33, 8, 32, 8),
    (8, 7, 30, 8, 32, 4),
    (1, 7, 16, 68, 32, 64),
    (7, 9, 70, 36, 64, 32),
    (3, 11, 40, 12, 64, 8),
    (2, 12, 50, 20, 32, 16),
    (4, 12, 32, 132, 32, 64),
]


def test_cases_meet_every_window_and_number_of_planes() -> None:
    assert {planes for planes, *_ in PLAIN} == set(range(1, 9))
    assert {window for _, window, *_ in PLAIN} == set(range(4, 13))


@pytest.mark.parametrize(("planes", "window", "rows", "cols", "tile_rows", "block"), PLAIN)
def test_without_feedback_equals_reference(
    planes: int, window: int, rows: int, cols: int, tile_rows: int, block: int
) -> None:
    rng = np.random.default_rng(window * 8 + planes)
    target = floats(rng, rows, cols) * 24
    tables = gaussian_tables(rng, planes, window)
    result = everywhere_encoded(target, None, tables, tile_rows, block)
    expected = reference.encode_with_feedback(target, None, tables, tile_rows, block)
    np.testing.assert_array_equal(result.decoded, expected)
    shape = (rows, cols, tile_rows)
    np.testing.assert_array_equal(decode(result.extents, tables, *shape), expected)
    np.testing.assert_array_equal(reference_decode(result.extents, tables, *shape), expected)


@pytest.mark.parametrize("window", [4, 5, 6])
def test_a_path_is_the_best_of_all(window: int) -> None:
    """By trying every path of eight steps, against the squared error in real numbers."""
    rng = np.random.default_rng(window)
    tables = gaussian_tables(rng, 1, window)
    target = floats(rng, 32, 4) * 24
    found = encode(target, None, tables, 32, 4).decoded
    paths = np.arange(256, dtype=np.uint8)
    tiles = np.repeat(paths, 64)  # 256 blocks, tiles of their own: all streams the same
    values = decode([tiles], tables, 256 * 32, 4, 32).reshape(256, 32, 4)
    error = (target - values).astype(np.float64) ** 2
    best = error.reshape(256, 8, 16).sum(axis=1).min(axis=0)
    mine = ((target - found).astype(np.float64) ** 2).reshape(8, 16).sum(axis=0)
    # Costs are integers: a path may lose what each step rounds off.
    unit = 65536 * (4 * int(np.abs(tables.levels).max()) / 16383) ** 2
    assert (mine <= best * 1.001 + 8 * unit).all()
    assert mine.sum() <= 1.01 * best.sum()


@pytest.mark.parametrize("cols", [4, 20, 40])
def test_bytes_of_padded_columns_are_left_alone(cols: int) -> None:
    rng = np.random.default_rng(cols)
    tables = gaussian_tables(rng, 2, 7)
    result = everywhere_encoded(floats(rng, 70, cols) * 24, None, tables, 64, 4)
    for tile in result.extents:
        quads = tile.reshape(-1, -(-cols // 16) * 4, 16)
        assert not quads[:, cols // 4 :].any()
        assert quads[:, : cols // 4].any(axis=(0, 2)).all()


def correlated(rng: np.random.Generator, cols: int) -> npt.NDArray[np.float64]:
    """H = X^T X / T of strongly correlated inputs, damped."""
    mix = rng.standard_normal((cols // 4, cols)) + 0.1
    noise = rng.standard_normal((4 * cols, cols))
    x = rng.standard_normal((4 * cols, cols // 4)) @ mix + 0.3 * noise
    H = x.T @ x / len(x)
    return H + 0.01 * H.diagonal().mean() * np.eye(cols)


def panels_of(H: npt.NDArray[np.float64], block: int) -> Floats:
    factor = reference.feedback_factor(H.astype(np.float32), block).astype(np.float32)
    panels = np.empty((-(-len(H) // 32), len(H), 32), np.float32)
    _native.pack_panels(factor, panels)
    return panels


def proxy_loss(target: Floats, decoded: Array, planes: int, H: npt.NDArray[np.float64]) -> float:
    """tr(E H E^T) / tr(W H W^T)."""
    W = target.astype(np.float64)
    E = W - decoded / (8 if planes > 4 else 1)
    return float(np.einsum("ri,ij,rj", E, H, E) / np.einsum("ri,ij,rj", W, H, W))


@pytest.mark.parametrize(
    ("planes", "window", "rows", "cols", "tile_rows", "block"),
    [
        (2, 6, 80, 36, 64, 4),
        (1, 7, 32, 72, 32, 8),
        (5, 5, 40, 40, 32, 16),
        (1, 12, 32, 36, 32, 4),
        (3, 9, 33, 132, 64, 64),
    ],
)
def test_with_feedback_loses_as_little_as_reference(
    planes: int, window: int, rows: int, cols: int, tile_rows: int, block: int
) -> None:
    rng = np.random.default_rng(cols)
    target, tables = floats(rng, rows, cols) * 24, gaussian_tables(rng, planes, window)
    H = correlated(rng, cols)
    result = everywhere_encoded(target, panels_of(H, block), tables, tile_rows, block)
    factor = reference.feedback_factor(H.astype(np.float32), block)
    expected = reference.encode_with_feedback(target, factor, tables, tile_rows, block)
    # Float32 sums flip near-ties, after which the paths part: the losses agree, not the bits.
    assert proxy_loss(target, result.decoded, planes, H) == pytest.approx(
        proxy_loss(target, expected, planes, H), rel=0.01
    )
    shape = (rows, cols, tile_rows)
    np.testing.assert_array_equal(decode(result.extents, tables, *shape), result.decoded)


@pytest.mark.parametrize(
    ("planes", "window", "rows", "cols", "tile_rows", "block"),
    [
        (2, 5, 96, 72, 64, 4),
        # Tiles so high that the trial of a quad is cut, and windows so long that it shows.
        (3, 12, 544, 12, 544, 4),
        (4, 12, 640, 8, 640, 4),
        (3, 10, 640, 24, 640, 4),
        (1, 4, 544, 20, 544, 8),
        (5, 6, 64, 100, 32, 32),
        (3, 8, 70, 136, 96, 64),
    ],
)
def test_with_feedback_equals_reference_where_sums_are_exact(
    planes: int, window: int, rows: int, cols: int, tile_rows: int, block: int
) -> None:
    """Targets are multiples of 1/8 and factors of 1/4: float32 rounds none of their sums."""
    rng = np.random.default_rng(rows + cols)
    target = (rng.integers(-400, 401, (rows, cols)) / 8).astype(np.float32)
    tables = gaussian_tables(rng, planes, window)
    factor = rng.integers(-1, 2, (cols, cols)) / 4 * (rng.random((cols, cols)) < 0.2)
    quantized_together = np.arange(cols)[:, None] // block >= np.arange(cols) // block
    factor[quantized_together] = 0
    panels = np.empty((-(-cols // 32), cols, 32), np.float32)
    _native.pack_panels(factor.astype(np.float32), panels)
    result = everywhere_encoded(target, panels, tables, tile_rows, block)
    expected = reference.encode_with_feedback(target, factor, tables, tile_rows, block)
    np.testing.assert_array_equal(result.decoded, expected)


@pytest.mark.parametrize("block", [4, 8, 16, 32, 64])
def test_feedback_lowers_the_proxy_loss(block: int) -> None:
    rng = np.random.default_rng(block)
    target, tables = floats(rng, 64, 160) * 24, gaussian_tables(rng, 2, 7)
    H = correlated(rng, 160)
    plain = encode(target, None, tables, 64, block).decoded
    fed = everywhere_encoded(target, panels_of(H, block), tables, 64, block).decoded
    assert proxy_loss(target, fed, 2, H) < 0.7 * proxy_loss(target, plain, 2, H)


def test_zero_feedback_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    target, tables = floats(rng, 40, 100) * 24, gaussian_tables(rng, 3, 7)
    zeros = np.zeros((4, 100, 32), np.float32)
    fed, plain = encode(target, zeros, tables, 32, 8), encode(target, None, tables, 32, 8)
    np.testing.assert_array_equal(fed.decoded, plain.decoded)
    np.testing.assert_array_equal(np.concatenate(fed.extents), np.concatenate(plain.extents))


@pytest.mark.parametrize("window", range(4, 13))
@pytest.mark.parametrize("size", [100, 500, 1e30])
def test_targets_beyond_the_tables_are_decoded_as_they_were_encoded(
    window: int, size: float
) -> None:
    rng = np.random.default_rng(window)
    target = floats(rng, 64, 32) * np.float32(size)
    target[:, ::5] = np.abs(target[:, ::5])  # runs of one sign
    for planes in (4, 8):
        tables = random_tables(rng, planes, window)
        result = everywhere_encoded(target, None, tables, 64, 4)
        np.testing.assert_array_equal(decode(result.extents, tables, 64, 32, 64), result.decoded)


@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize("window", range(4, 13))
def test_costs_never_overflow(window: int, block: int) -> None:
    """Runs of targets far beyond the levels, where one path costs the least and another the most
    that a step can, from a start that only one path may leave."""
    levels = np.linspace(127, -127, 16).round().astype(np.int8)[None]
    tables = reference.Tables(window, np.zeros((2, 16), np.uint8), levels)
    target = np.full((64, 8), 5000, np.float32)
    target[:, 4:] *= -1
    target[:, ::2] *= -1
    result = everywhere_encoded(target, None, tables, 64, block)
    np.testing.assert_array_equal(decode(result.extents, tables, 64, 8, 64), result.decoded)
    expected = reference.encode_with_feedback(target, None, tables, 64, block)
    np.testing.assert_array_equal(result.decoded, expected)


TABLES = native(gaussian_tables(np.random.default_rng(0), 2, 4))
NBYTES = 2 * _native.plane_bytes(40, 40)


def call(
    cols: int = 40,
    tile_rows: int = 32,
    block: int = 8,
    panels: Array | None = None,
    extents: list[Array] | None = None,
    target: Array | None = None,
    decoded: Array | None = None,
) -> None:
    _native.encode(
        np.zeros((40, cols), np.float32) if target is None else target,
        panels,
        TABLES,
        tile_rows,
        block,
        [np.zeros(NBYTES, np.uint8)] if extents is None else extents,
        np.zeros((40, cols), np.int16) if decoded is None else decoded,
    )


def zeros(*shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.zeros(shape, dtype)


def test_the_calls_below_work_when_nothing_is_wrong() -> None:
    call()
    call(panels=zeros(2, 40, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: call(cols=42),
        lambda: call(cols=52),
        lambda: call(cols=0),
        lambda: call(tile_rows=0),
        lambda: call(tile_rows=16),
        lambda: call(tile_rows=-32),
        lambda: call(tile_rows=48),
        lambda: call(block=0),
        lambda: call(block=-4),
        lambda: call(block=6),
        lambda: call(block=12),
        lambda: call(block=128),
        lambda: call(panels=zeros(1, 40, 32)),
        lambda: call(panels=zeros(2, 36, 32)),
        lambda: call(panels=zeros(2, 40, 16)),
        lambda: call(extents=[zeros(NBYTES // 4, dtype=np.uint8)] * 4),
        lambda: call(extents=[zeros(NBYTES - 64, dtype=np.uint8)]),
        lambda: call(extents=[zeros(NBYTES + 64, dtype=np.uint8)]),
        lambda: call(decoded=zeros(40, 36, dtype=np.int16)),
        lambda: call(decoded=zeros(39, 40, dtype=np.int16)),
        lambda: call(target=zeros(0, 40), decoded=zeros(0, 40, dtype=np.int16)),
    ],
)
def test_wrong_values_are_refused(wrong: Callable[[], None]) -> None:
    with pytest.raises(ValueError):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: call(target=zeros(40, 40, dtype=np.float64)),
        lambda: call(target=zeros(40, 80)[:, ::2]),
        lambda: call(panels=zeros(2, 40, 32, dtype=np.float64)),
        lambda: call(decoded=zeros(40, 40, dtype=np.int32)),
        lambda: call(decoded=zeros(40, 80, dtype=np.int16)[:, ::2]),
        lambda: call(extents=[zeros(2 * NBYTES, dtype=np.uint8)[::2]]),
        lambda: call(extents=[zeros(NBYTES, dtype=np.int8)]),
    ],
)
def test_arrays_are_never_converted(wrong: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        wrong()
