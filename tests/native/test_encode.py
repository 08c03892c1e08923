from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import Array, Bytes, Floats, Int8s, decode, everywhere, floats, random_tables

from loop_singular_bit import _native
from loop_singular_bit.codec import reference


@dataclass(frozen=True)
class Encoded:
    streams: list[Bytes]
    decoded: npt.NDArray[np.int16]


def encode(
    target: Floats, panels: Floats | None, entries: Int8s, tile_rows: int, block: int
) -> Encoded:
    rows, cols = target.shape
    nbytes = _native.stream_bytes(rows, cols, tile_rows)
    streams = [np.zeros(nbytes, np.uint8) for _ in entries]
    decoded = np.full(target.shape, 12345, np.int16)
    tables = _native.PlaneTables(entries)
    _native.encode(target, panels, tables, tile_rows, block, streams, decoded)
    return Encoded(streams, decoded)


def everywhere_encoded(*arguments: object) -> Encoded:
    """`encode`, with the same streams and weights on every tier and thread count."""

    def packed() -> Bytes:
        result = encode(*arguments)  # type: ignore[arg-type]
        return np.concatenate([*result.streams, result.decoded.view(np.uint8).ravel()])

    everywhere(packed)
    return encode(*arguments)  # type: ignore[arg-type]


def gaussian_tables(rng: np.random.Generator, planes: int, window: int) -> Int8s:
    """Entries [planes, 2^window] for a target of deviation 24: each plane half the one before."""
    entries = np.zeros((planes, 1 << window), np.int8)
    for plane in range(planes):
        size = 24 / 2 ** (plane % 4) * (0.5 if plane >= 4 else 1)
        top = [66, 34, 17, 9][plane % 4]
        entries[plane] = np.clip(np.rint(rng.normal(0, size, 1 << window)), -top, top)
    return entries


# (planes, window, rows, cols, tile_rows, block): every window, planes in one and two groups, broken
# last row group, low last tile, last block narrower than the others.
PLAIN = [
    (1, 4, 16, 4, 16, 4),
    (2, 5, 40, 12, 32, 8),
    (3, 6, 21, 20, 16, 16),
    (4, 7, 48, 8, 48, 4),
    (5, 8, 33, 12, 32, 8),
    (2, 9, 16, 12, 64, 4),
    (6, 10, 16, 8, 16, 8),
    (8, 7, 30, 8, 16, 4),
    (1, 7, 16, 68, 16, 64),
]


@pytest.mark.parametrize(("planes", "window", "rows", "cols", "tile_rows", "block"), PLAIN)
def test_without_feedback_equals_reference(
    planes: int, window: int, rows: int, cols: int, tile_rows: int, block: int
) -> None:
    rng = np.random.default_rng(window * 8 + planes)
    target = floats(rng, rows, cols) * 24
    entries = gaussian_tables(rng, planes, window)
    result = everywhere_encoded(target, None, entries, tile_rows, block)
    expected = reference.encode_with_feedback(target, None, entries, tile_rows, block)
    np.testing.assert_array_equal(result.decoded, expected)
    shape = (rows, cols, tile_rows)
    np.testing.assert_array_equal(decode(result.streams, entries, *shape), expected)
    np.testing.assert_array_equal(
        reference.decode_planes(result.streams, entries, *shape), expected
    )


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
    [(2, 6, 40, 36, 32, 4), (1, 7, 16, 72, 16, 8), (5, 5, 24, 40, 16, 16)],
)
def test_with_feedback_loses_as_little_as_reference(
    planes: int, window: int, rows: int, cols: int, tile_rows: int, block: int
) -> None:
    rng = np.random.default_rng(cols)
    target, entries = floats(rng, rows, cols) * 24, gaussian_tables(rng, planes, window)
    H = correlated(rng, cols)
    result = everywhere_encoded(target, panels_of(H, block), entries, tile_rows, block)
    factor = reference.feedback_factor(H.astype(np.float32), block)
    expected = reference.encode_with_feedback(target, factor, entries, tile_rows, block)
    # Float32 sums flip near-ties, after which the paths part: the losses agree, not the bits.
    assert proxy_loss(target, result.decoded, planes, H) == pytest.approx(
        proxy_loss(target, expected, planes, H), rel=0.01
    )
    shape = (rows, cols, tile_rows)
    np.testing.assert_array_equal(decode(result.streams, entries, *shape), result.decoded)


@pytest.mark.parametrize("block", [4, 8, 16, 32, 64])
def test_feedback_lowers_the_proxy_loss(block: int) -> None:
    rng = np.random.default_rng(block)
    target, entries = floats(rng, 64, 160) * 24, gaussian_tables(rng, 2, 7)
    H = correlated(rng, 160)
    plain = encode(target, None, entries, 64, block).decoded
    fed = everywhere_encoded(target, panels_of(H, block), entries, 64, block).decoded
    assert proxy_loss(target, fed, 2, H) < 0.7 * proxy_loss(target, plain, 2, H)


def test_zero_feedback_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    target, entries = floats(rng, 24, 100) * 24, gaussian_tables(rng, 3, 7)
    zeros = np.zeros((4, 100, 32), np.float32)
    fed, plain = encode(target, zeros, entries, 16, 8), encode(target, None, entries, 16, 8)
    np.testing.assert_array_equal(fed.decoded, plain.decoded)
    np.testing.assert_array_equal(np.stack(fed.streams), np.stack(plain.streams))


def test_targets_beyond_the_tables_are_decoded_as_they_were_encoded() -> None:
    rng = np.random.default_rng(0)
    target = floats(rng, 32, 32) * 500
    for planes in (4, 8):
        entries = random_tables(rng, planes, 4)
        result = everywhere_encoded(target, None, entries, 32, 4)
        np.testing.assert_array_equal(decode(result.streams, entries, 32, 32, 32), result.decoded)


ENTRIES = gaussian_tables(np.random.default_rng(0), 2, 4)
TABLES = _native.PlaneTables(ENTRIES)
NBYTES = _native.stream_bytes(20, 40, 16)


def call(
    cols: int = 40,
    tile_rows: int = 16,
    block: int = 8,
    panels: Array | None = None,
    streams: list[Array] | None = None,
    target: Array | None = None,
    decoded: Array | None = None,
) -> None:
    _native.encode(
        np.zeros((20, cols), np.float32) if target is None else target,
        panels,
        TABLES,
        tile_rows,
        block,
        [np.zeros(NBYTES, np.uint8) for _ in range(2)] if streams is None else streams,
        np.zeros((20, cols), np.int16) if decoded is None else decoded,
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
        lambda: call(cols=44),
        lambda: call(tile_rows=0),
        lambda: call(tile_rows=8),
        lambda: call(tile_rows=-16),
        lambda: call(tile_rows=32),
        lambda: call(block=0),
        lambda: call(block=-4),
        lambda: call(block=6),
        lambda: call(block=12),
        lambda: call(block=128),
        lambda: call(panels=zeros(1, 40, 32)),
        lambda: call(panels=zeros(2, 36, 32)),
        lambda: call(panels=zeros(2, 40, 16)),
        lambda: call(streams=[zeros(NBYTES, dtype=np.uint8)]),
        lambda: call(streams=[zeros(NBYTES - 8, dtype=np.uint8)] * 2),
        lambda: call(decoded=zeros(20, 36, dtype=np.int16)),
        lambda: call(decoded=zeros(19, 40, dtype=np.int16)),
        lambda: call(target=zeros(0, 40), decoded=zeros(0, 40, dtype=np.int16)),
    ],
)
def test_wrong_values_are_refused(wrong: Callable[[], None]) -> None:
    with pytest.raises(ValueError):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: call(target=zeros(20, 40, dtype=np.float64)),
        lambda: call(target=zeros(20, 80)[:, ::2]),
        lambda: call(panels=zeros(2, 40, 32, dtype=np.float64)),
        lambda: call(decoded=zeros(20, 40, dtype=np.int32)),
        lambda: call(decoded=zeros(20, 80, dtype=np.int16)[:, ::2]),
        lambda: call(streams=[zeros(2 * NBYTES, dtype=np.uint8)[::2]] * 2),
        lambda: call(streams=[zeros(NBYTES, dtype=np.int8)] * 2),
    ],
)
def test_arrays_are_never_converted(wrong: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        wrong()
