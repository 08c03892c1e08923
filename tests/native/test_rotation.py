from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from native_calls import Array, Floats, Int8s, everywhere, floats

from loop_singular_bit import _native
from loop_singular_bit.codec import reference

# (cols, block, mixed): one block, blocks left apart, blocks mixed.
ROTATIONS = [
    (1, 1, False),
    (6, 2, False),
    (4, 4, True),
    (64, 64, False),
    (96, 32, False),
    (96, 32, True),
    (576, 64, True),
    (48, 4, True),
]


def orthogonal(rng: np.random.Generator, size: int) -> Floats:
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)


def rotate(x: Floats, scale: Floats, block: int, mix: Floats | None, inverse: bool) -> Floats:
    out = np.full_like(x, np.nan)
    _native.rotate(x, scale, block, mix, inverse, out)
    return out


def inputs(cols: int, block: int, mixed: bool) -> tuple[Floats, Floats, Floats | None]:
    """x [9, cols], random signs [cols], mix."""
    rng = np.random.default_rng(cols + block)
    signs = rng.choice(np.array([-1, 1], np.float32), cols)
    return floats(rng, 9, cols), signs, orthogonal(rng, cols // block) if mixed else None


@pytest.mark.parametrize(("cols", "block", "mixed"), ROTATIONS)
def test_rotation_equals_reference(cols: int, block: int, mixed: bool) -> None:
    x, signs, mix = inputs(cols, block, mixed)
    scale = signs * np.linspace(0.5, 2, cols, dtype=np.float32)
    y = everywhere(lambda: rotate(x, scale, block, mix, False))
    expected = reference.rotate(x, scale, block, mix)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert rotate(x[4:5], scale, block, mix, False).tobytes() == y[4].tobytes()


@pytest.mark.parametrize(("cols", "block", "mixed"), ROTATIONS)
def test_inverse_undoes_the_rotation(cols: int, block: int, mixed: bool) -> None:
    x, signs, mix = inputs(cols, block, mixed)
    y = rotate(x, signs, block, mix, False)
    back = everywhere(lambda: rotate(y, signs, block, mix, True))
    np.testing.assert_allclose(back, x, rtol=0, atol=3e-6 * np.abs(x).max())


@pytest.mark.parametrize(("cols", "block", "mixed"), ROTATIONS)
def test_inverse_is_the_transpose(cols: int, block: int, mixed: bool) -> None:
    """<R x, y> = <x, R^T y> for a scale that is no sign: restoring weights relies on it."""
    x, signs, mix = inputs(cols, block, mixed)
    scale = signs * np.linspace(0.5, 2, cols, dtype=np.float32)
    y = x[::-1].copy()
    forward = rotate(x, scale, block, mix, False).astype(np.float64)
    backward = rotate(y, scale, block, mix, True).astype(np.float64)
    np.testing.assert_allclose((forward * y).sum(), (x * backward).sum(), rtol=1e-5, atol=1e-4)


def quantized(x: Floats, group: int) -> tuple[Int8s, Floats]:
    packed = _native.PackedRows(len(x), x.shape[1], group)
    packed.pack(x)
    q = np.full(x.shape, 99, np.int8)
    scale = np.full((len(x), x.shape[1] // group), np.nan, np.float32)
    packed.quantized(q, scale)
    return q, scale


@pytest.mark.parametrize(
    ("cols", "group"), [(4, 4), (32, 16), (64, 64), (576, 32), (20, 20), (132, 132)]
)
def test_quantized_rows_equal_reference(cols: int, group: int) -> None:
    rng = np.random.default_rng(cols)
    x = floats(rng, 11, cols) * np.exp(rng.uniform(-8, 8, (11, 1))).astype(np.float32)
    x[1] = 0
    x[2, :group] = 0
    x[3] *= np.float32(1e-34)
    x[4] = np.float32(1e-30)
    x[5] = 3e38
    x[6] = np.rint(x[6] / np.abs(x[6]).max() * 254) / 2  # ties: halves go to the even neighbour
    x[6, 0] = 127
    expected_q, expected_scale = reference.quantize_rows(x, group)
    np.testing.assert_array_equal(everywhere(lambda: quantized(x, group)[0]), expected_q)
    np.testing.assert_array_equal(everywhere(lambda: quantized(x, group)[1]), expected_scale)


def test_packed_rows_say_what_they_hold() -> None:
    packed = _native.PackedRows(5, 64, 16)
    assert (packed.tokens, packed.group) == (0, 16)
    packed.pack(np.zeros((3, 64), np.float32))
    assert packed.tokens == 3


@pytest.mark.parametrize(("cols", "group"), [(64, 16), (20, 20)])
def test_rows_packed_into_memory_that_held_something_else(cols: int, group: int) -> None:
    x = floats(np.random.default_rng(0), 5, cols)
    memory = np.full(5 * _native.PackedRows.row_bytes(cols, group), 0xFF, np.uint8)
    packed = _native.PackedRows(5, cols, group, memory)
    packed.pack(x)
    q, scale = np.empty(x.shape, np.int8), np.empty((5, cols // group), np.float32)
    packed.quantized(q, scale)
    for found, expected in zip((q, scale), quantized(x, group), strict=True):
        np.testing.assert_array_equal(found, expected)
    values = memory[: 5 * (cols + -cols % 16)].reshape(5, -1)
    assert (values[:, cols:] == 0).all()


def ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


def pack(tokens: int, cols: int) -> _native.PackedRows:
    packed = _native.PackedRows(4, 32, 16)
    packed.pack(ones(tokens, cols))
    return packed


def call_rotate(
    cols: int = 32, scales: int = 32, block: int = 8, mix: Array | None = None, rows: int = 2
) -> None:
    _native.rotate(ones(2, cols), ones(scales), block, mix, False, ones(rows, cols))


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_rotate(block=0),
        lambda: call_rotate(block=-8),
        lambda: call_rotate(block=12),
        lambda: call_rotate(block=64),
        lambda: call_rotate(cols=36, scales=36),
        lambda: call_rotate(scales=31),
        lambda: call_rotate(rows=3),
        lambda: call_rotate(mix=ones(4, 3)),
        lambda: call_rotate(mix=ones(8, 8)),
        lambda: call_rotate(block=2, mix=ones(16, 16)),
        lambda: _native.PackedRows(4, 32, 16, np.zeros(4 * 48 - 1, np.uint8)),
        lambda: _native.PackedRows(4, 32, 16, np.zeros(4 * 48 + 1, np.uint8)[1:]),
        lambda: _native.PackedRows(0, 32, 16, np.zeros(48, np.uint8)),
        lambda: _native.PackedRows.row_bytes(32, 12),
        lambda: _native.PackedRows(0, 32, 16),
        lambda: _native.PackedRows(-1, 32, 16),
        lambda: _native.PackedRows(4, 0, 16),
        lambda: _native.PackedRows(4, 32, 0),
        lambda: _native.PackedRows(4, 32, -16),
        lambda: _native.PackedRows(4, 32, 12),
        lambda: _native.PackedRows(4, 32, 8),
        lambda: _native.PackedRows(4, 36, 12),
        lambda: _native.PackedRows(4, 48, 32),
        lambda: _native.PackedRows(4, 32, 64),
        lambda: _native.PackedRows(4, 30, 6),
        lambda: _native.PackedRows(1 << 62, 32, 16),
        lambda: _native.PackedRows(1, 1 << 17, 1 << 17),
        lambda: pack(5, 32),
        lambda: pack(0, 32),
        lambda: pack(4, 28),
        lambda: pack(3, 32).quantized(np.zeros((4, 32), np.int8), ones(3, 2)),
        lambda: pack(3, 32).quantized(np.zeros((3, 32), np.int8), ones(3, 1)),
    ],
)
def test_wrong_shapes_are_refused(call: Callable[[], None]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_rotate(mix=np.ones((4, 4))),
        lambda: call_rotate(mix=ones(4, 8)[:, ::2]),
        lambda: _native.rotate(ones(2, 8), ones(8), 8, None, False, ones(2, 16)[:, ::2]),
        lambda: _native.rotate(ones(2, 8), ones(8), 8, None, False, np.ones((2, 8))),
        lambda: _native.PackedRows(4, 32, 16).pack(np.ones((4, 32))),
        lambda: _native.PackedRows(4, 32, 16).pack(ones(4, 64)[:, ::2]),
        lambda: pack(3, 32).quantized(np.zeros((3, 64), np.int8)[:, ::2], ones(3, 2)),
    ],
)
def test_arrays_are_never_converted(call: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        call()
