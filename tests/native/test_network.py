from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import Array, Floats, everywhere, floats

from loop_singular_bit import _native

Places = npt.NDArray[np.int32]


@pytest.mark.parametrize("cols", [1, 5, 16, 100, 576])
def test_rms_norm_equals_float64(cols: int) -> None:
    rng = np.random.default_rng(cols)
    x, gain = floats(rng, 7, cols) * 3, floats(rng, cols)
    x[2] = 0

    def norm(rows: Floats) -> Floats:
        out = np.full_like(rows, np.nan)
        _native.rms_norm(rows, gain, 1e-5, out)
        return out

    y = everywhere(lambda: norm(x))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * gain
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-30)
    assert norm(x[4:5]).tobytes() == y[4].tobytes()


@pytest.mark.parametrize("head_dim", [12, 40, 64])
def test_rope_turns_the_two_halves_of_every_head(head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    heads, rows = 3, 5
    angle = rng.uniform(-3, 3, (40, head_dim // 2))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    position = np.array([0, 39, 7, 7, 21], np.int32)
    x = floats(rng, rows, heads * head_dim)

    def turned() -> Floats:
        out = x.copy()
        _native.rope(out, cosine, sine, position, head_dim)
        return out

    parts = x.reshape(rows, heads, 2, -1)
    a, b = parts[:, :, 0], parts[:, :, 1]
    c, s = cosine[position][:, None], sine[position][:, None]
    expected = np.stack([a * c - b * s, b * c + a * s], axis=2).reshape(x.shape)
    np.testing.assert_allclose(everywhere(turned), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cols", [1, 3, 16, 37])
def test_swiglu_equals_float64(cols: int) -> None:
    rng = np.random.default_rng(cols)
    wide_range = np.linspace(-80, 80, 4 * cols, dtype=np.float32).reshape(4, cols)
    gate = np.concatenate([floats(rng, 6, cols) * 4, wide_range])
    up = floats(rng, 10, cols)

    def swiglu() -> Floats:
        out = np.full_like(gate, np.nan)
        _native.swiglu(gate, up, out)
        return out

    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide)) * up
    np.testing.assert_allclose(everywhere(swiglu), expected, rtol=1e-6, atol=1e-30)


def test_swiglu_beyond_the_range_of_exp_goes_to_its_limits() -> None:
    gate = np.array([[-3e38, -1e4, -100, 100, 1e4, 3e38, 0, -0.0]], np.float32)
    out = np.empty_like(gate)
    _native.swiglu(gate, np.ones_like(gate), out)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[0, 3:6], gate[0, 3:6])
    np.testing.assert_allclose(out[0, 1:3], 0, atol=1e-30)
    assert (out[0, 6:] == 0).all()


def test_swiglu_may_write_over_its_gate() -> None:
    gate, up = floats(np.random.default_rng(0), 2, 3, 21)
    out = np.empty_like(gate)
    _native.swiglu(gate, up, out)
    _native.swiglu(gate, up, gate)
    np.testing.assert_array_equal(gate, out)


def ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


def places(*values: int) -> Places:
    return np.array(values, np.int32)


def call_rope(cols: int = 8, head_dim: int = 4, position: Array | None = None) -> None:
    position = places(0, 9) if position is None else position
    _native.rope(ones(2, cols), ones(10, 2), ones(10, 2), position, head_dim)


def test_the_calls_below_work_when_nothing_is_wrong() -> None:
    call_rope()


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_rope(head_dim=0),
        lambda: call_rope(head_dim=-4),
        lambda: call_rope(head_dim=8),
        lambda: call_rope(cols=10),
        lambda: call_rope(position=places(0, 10)),
        lambda: call_rope(position=places(-1, 0)),
        lambda: call_rope(position=places(0)),
        lambda: _native.rope(ones(2, 8), ones(10, 0), ones(10, 0), places(0, 0), 0),
        lambda: _native.rope(ones(2, 8), ones(10, 2), ones(9, 2), places(0, 0), 4),
        lambda: _native.rms_norm(ones(2, 8), ones(7), 1e-5, ones(2, 8)),
        lambda: _native.rms_norm(ones(2, 8), ones(8), 1e-5, ones(3, 8)),
        lambda: _native.swiglu(ones(2, 8), ones(2, 7), ones(2, 8)),
        lambda: _native.swiglu(ones(2, 8), ones(2, 8), ones(3, 8)),
    ],
)
def test_wrong_values_are_refused(call: Callable[[], None]) -> None:
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: _native.rms_norm(ones(2, 8), ones(8), 1e-5, ones(2, 16)[:, ::2]),
        lambda: _native.rms_norm(ones(2, 8), ones(8), 1e-5, np.ones((2, 8))),
        lambda: _native.swiglu(ones(2, 8), ones(2, 8), ones(8, 2).T),
        lambda: _native.rope(ones(8, 2).T, ones(10, 2), ones(10, 2), places(0, 9), 4),
    ],
)
def test_arrays_are_never_converted(call: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        call()


def test_read_only_outputs_are_refused() -> None:
    out = ones(2, 8)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        _native.rms_norm(ones(2, 8), ones(8), 1e-5, out)
