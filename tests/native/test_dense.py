from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import Array, Floats, bits_to_float, everywhere, floats

from loop_singular_bit import _native

KINDS = {"f32": 0, "f16": 1, "bf16": 2, "i8": 3, "sign": 4}
# (rows, cols): one element, less than 16 columns, whole and broken blocks of rows and lanes.
SHAPES = [(1, 1), (2, 5), (3, 16), (4, 17), (7, 31), (33, 100), (64, 48)]
TOKENS = (1, 2, 3, 4, 5, 9)


def stored(rng: np.random.Generator, kind: str, rows: int, cols: int) -> tuple[Array, Floats]:
    """A random matrix as the kernel takes it, and its values [rows, cols]."""
    values = floats(rng, rows, cols)
    if kind == "f32":
        return values, values
    if kind == "f16":
        half = values.astype(np.float16)
        half[rng.random((rows, cols)) < 0.2] *= np.float16(2**-15)  # some subnormal
        return half.view(np.uint16), half.astype(np.float32)
    if kind == "bf16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits, bits_to_float(bits, "bf16")
    if kind == "i8":
        bytes_ = rng.integers(-128, 128, (rows, cols), np.int8)
        return bytes_, bytes_.astype(np.float32)
    signs = rng.integers(0, 2, (rows, cols), np.uint8)
    return np.packbits(signs, axis=1, bitorder="little"), 2 * signs.astype(np.float32) - 1


def multiply(kind: str, w: Array, scale: Floats | None, x: Floats) -> Floats:
    out = np.full((len(x), len(w)), np.nan, np.float32)
    _native.dense_matmul(KINDS[kind], w, scale, x, out)
    return out


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_float64(kind: str, scaled: bool) -> None:
    rng = np.random.default_rng(KINDS[kind])
    for rows, cols in SHAPES:
        w, values = stored(rng, kind, rows, cols)
        scale = rng.uniform(0.5, 2, rows).astype(np.float32) if scaled else None
        x = floats(rng, max(TOKENS), cols)
        full = everywhere(lambda a=(kind, w, scale, x): multiply(*a))
        row_scale = np.ones(rows) if scale is None else scale.astype(np.float64)
        expected = (x.astype(np.float64) @ values.astype(np.float64).T) * row_scale
        magnitude = (np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T) * row_scale
        assert (np.abs(full - expected) <= 1e-6 * magnitude).all(), (rows, cols)
        for tokens in TOKENS:
            part = everywhere(lambda a=(kind, w, scale, x[:tokens]): multiply(*a))
            assert part.tobytes() == full[:tokens].tobytes(), f"{tokens} rows differ from 9"
        alone = everywhere(lambda a=(kind, w, scale, x[6:7]): multiply(*a))
        assert alone.tobytes() == full[6].tobytes()


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a b + c rounded once: products of floats are exact in float64, and a long double keeps enough
    of the sum that rounding it again changes nothing in these cases."""
    exact = (a.astype(np.float64) * b).astype(np.longdouble) + c
    return exact.astype(np.float32)


def in_16_lanes(values: Floats, x: Floats) -> Floats:
    """x W^T as the kernels add it up: 16 lanes over the columns, then lanes 8, 4, 2 and 1 apart."""
    pad = ((0, 0), (0, -values.shape[1] % 16))
    w, x = np.pad(values, pad)[None], np.pad(x, pad)[:, None]
    lanes = np.zeros((len(x), w.shape[1], 16), np.float32)
    for c in range(0, w.shape[2], 16):
        lanes = fused(x[:, :, c : c + 16], w[:, :, c : c + 16], lanes)
    for width in (8, 4, 2, 1):
        lanes = lanes[:, :, :width] + lanes[:, :, width:]
    return lanes[:, :, 0]


@pytest.mark.parametrize("tokens", [1, 96])
def test_a_product_is_not_rounded_before_it_is_added(tokens: int) -> None:
    """Just below the middle between two floats, where rounding to float64 on the way goes wrong."""
    step = np.float32(2**-23)
    w, x = np.zeros((5, 32), np.float32), np.zeros((tokens, 32), np.float32)
    w[:, 0], x[:, 0] = 1 + step, 1
    w[:, 16], x[:, 16] = (1 + step) * np.float32(2**-12), (1 - step) * np.float32(2**-12)
    for sign in (1, -1):
        out = everywhere(lambda s=sign: multiply("f32", s * w, None, x))
        assert (out == sign * (1 + step)).all()
    w[:, 16] = (1 + step) * np.float32(2**-11)
    assert (everywhere(lambda: multiply("f32", w, None, x)) == 1 + 2 * step).all()


# Many tokens go through blocks of 96 tokens, 32 rows and 768 columns in tiles of 3 x 4.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "cols", "tokens"),
    [(1, 1, 17), (5, 33, 96), (32, 768, 18), (33, 769, 97), (67, 1600, 40), (9, 64, 200)],
)
def test_blocks_add_up_in_the_order_of_the_reference(
    kind: str, rows: int, cols: int, tokens: int
) -> None:
    rng = np.random.default_rng(cols)
    w, values = stored(rng, kind, rows, cols)
    scale = rng.uniform(0.5, 2, rows).astype(np.float32)
    x = floats(rng, tokens, cols)
    expected = in_16_lanes(values, x) * scale
    np.testing.assert_array_equal(everywhere(lambda: multiply(kind, w, scale, x)), expected)
    np.testing.assert_array_equal(multiply(kind, w, scale, x[:16]), expected[:16])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("cols", [16, 8])
def test_every_finite_16_bit_pattern_is_read_exactly(kind: str, cols: int) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    bits = bits[np.isfinite(bits_to_float(bits, kind))]
    w = bits.reshape(-1, cols)
    identity = np.eye(cols, dtype=np.float32)
    out = everywhere(lambda: multiply(kind, w, None, identity))
    np.testing.assert_array_equal(out.T, bits_to_float(w, kind))


@pytest.mark.parametrize("kind", ["i8", "sign"])
def test_every_byte_is_read_exactly(kind: str) -> None:
    w = np.arange(256, dtype=np.uint8).reshape(-1, 2 if kind == "sign" else 16)
    cols = 16
    if kind == "i8":
        values = w.view(np.int8).astype(np.float32)
    else:
        values = 2 * np.unpackbits(w, axis=1, bitorder="little").astype(np.float32) - 1
    stored_as = w.view(np.int8) if kind == "i8" else w
    identity = np.eye(cols, dtype=np.float32)
    out = everywhere(lambda: multiply(kind, stored_as, None, identity))
    np.testing.assert_array_equal(out.T, values)


def test_no_columns_and_no_rows_give_zeros() -> None:
    assert (multiply("f32", ones(3, 0), None, ones(2, 0)) == np.zeros((2, 3))).all()
    assert multiply("f32", ones(3, 4), None, ones(0, 4)).shape == (0, 3)
    assert (multiply("f32", ones(3, 0), None, ones(99, 0)) == np.zeros((99, 3))).all()


def gram(x: Floats) -> Floats:
    padded = -(-x.shape[1] // 32) * 32
    h = np.zeros((padded, padded), np.float32)
    _native.gram(x, h)
    return h


@pytest.mark.parametrize(("tokens", "cols"), [(1, 1), (5, 31), (20, 32), (17, 33), (40, 100)])
def test_gram_equals_float64_in_the_upper_blocks(tokens: int, cols: int) -> None:
    x = floats(np.random.default_rng(cols), tokens, cols)
    h = everywhere(lambda: gram(x))
    blocks = np.arange(len(h)) // 32
    upper = blocks[:, None] <= blocks[None, :]
    wide = np.zeros((tokens, len(h)))
    wide[:, :cols] = x
    expected = np.where(upper, wide.T @ wide, 0)
    np.testing.assert_allclose(h, expected, rtol=0, atol=2e-6 * tokens)


@pytest.mark.parametrize(("tokens", "cols"), [(65, 200), (513, 300)])
def test_gram_adds_token_after_token(tokens: int, cols: int) -> None:
    x = floats(np.random.default_rng(tokens), tokens, cols)
    expected = np.zeros((cols, cols), np.float32)
    for row in x:
        expected = fused(row[:, None], row, expected)
    h = everywhere(lambda: gram(x))[:cols, :cols]
    np.testing.assert_array_equal(np.triu(h), np.triu(expected))


def test_gram_adds_to_what_is_there() -> None:
    x = np.random.default_rng(0).integers(-4, 5, (8, 40)).astype(np.float32)
    h = np.zeros((64, 64), np.float32)
    _native.gram(x[:3].copy(), h)
    _native.gram(x[3:].copy(), h)
    np.testing.assert_array_equal(h, gram(x))


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (7, 16), (130, 100), (5, 4097)])
def test_row_dots_are_exact_to_double_precision(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[1])
    a, b = floats(rng, *shape), floats(rng, *shape)

    def dots() -> Array:
        out = np.full(len(a), np.nan)
        _native.row_dots(a, b, out)
        return out

    size = np.abs(a.astype(np.float64) * b).sum(axis=1)
    expected = np.einsum("rc,rc->r", a.astype(np.float64), b.astype(np.float64))
    assert (np.abs(everywhere(dots) - expected) <= 1e-14 * size).all()


def test_row_dots_refuse_rows_of_another_shape() -> None:
    a = np.zeros((3, 8), np.float32)
    for b, count in ((a[:2], 3), (a[:, :4].copy(), 3), (a, 2)):
        with pytest.raises(ValueError, match="row shapes disagree"):
            _native.row_dots(a, b, np.zeros(count))


def test_panels_hold_columns_in_groups_of_32_padded_with_zeros() -> None:
    x = floats(np.random.default_rng(1), 5, 70)
    expected = np.zeros((3, 5, 32), np.float32)
    for p in range(3):
        part = x[:, 32 * p : 32 * p + 32]
        expected[p, :, : part.shape[1]] = part

    def pack() -> Array:
        panels = np.full((3, 5, 32), np.nan, np.float32)
        _native.pack_panels(x, panels)
        return panels

    np.testing.assert_array_equal(everywhere(pack), expected)


F32 = np.zeros((3, 8), np.float32)
X = np.zeros((2, 8), np.float32)
OUT = np.zeros((2, 3), np.float32)


def ones(*shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    "call",
    [
        lambda: _native.dense_matmul(-1, F32, None, X, OUT),
        lambda: _native.dense_matmul(5, F32, None, X, OUT),
        lambda: _native.dense_matmul(1, F32, None, X, OUT),
        lambda: _native.dense_matmul(3, F32, None, X, OUT),
        lambda: _native.dense_matmul(0, ones(3, 7), None, X, OUT),
        lambda: _native.dense_matmul(4, ones(3, 2, dtype=np.uint8), None, X, OUT),
        lambda: _native.dense_matmul(4, ones(3, 8, dtype=np.uint8), None, X, OUT),
        lambda: _native.dense_matmul(0, F32, ones(2), X, OUT),
        lambda: _native.dense_matmul(0, F32, None, X, ones(2, 4)),
        lambda: _native.dense_matmul(0, F32, None, X, ones(3, 3)),
        lambda: _native.gram(X, ones(8, 8)),
        lambda: _native.gram(X, ones(32, 64)),
        lambda: _native.pack_panels(X, ones(2, 2, 32)),
        lambda: _native.pack_panels(X, ones(1, 3, 32)),
        lambda: _native.pack_panels(X, ones(1, 2, 16)),
    ],
)
def test_wrong_shapes_are_refused(call: Callable[[], None]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: _native.dense_matmul(0, F32, None, X.astype(np.float64), OUT),
        lambda: _native.dense_matmul(0, F32, None, X, OUT.astype(np.float64)),
        lambda: _native.dense_matmul(0, F32, None, X, ones(2, 6)[:, ::2]),
        lambda: _native.dense_matmul(0, ones(3, 16)[:, ::2], None, X, OUT),
        lambda: _native.dense_matmul(0, F32[0], None, X, OUT),
        lambda: _native.gram(X, np.asfortranarray(ones(32, 32))),
        lambda: _native.gram(X, ones(32, 32, dtype=np.float64)),
    ],
)
def test_arrays_are_never_converted(call: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        call()
