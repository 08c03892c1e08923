from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def test_rope_turns_the_two_halves_of_every_head() -> None:
    rng = np.random.default_rng(0)
    head_dim, heads, rows = 12, 3, 5
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


@dataclass(frozen=True)
class Cache:
    keys: npt.NDArray[np.uint16]  # [slot, kv head, context / 16, head_dim, 16]
    values: npt.NDArray[np.uint16]  # [slot, kv head, context, head_dim]

    @classmethod
    def empty(cls, slots: int, kv_heads: int, context: int, head_dim: int) -> Cache:
        keys = np.zeros((slots, kv_heads, context // 16, head_dim, 16), np.uint16)
        return cls(keys, np.zeros((slots, kv_heads, context, head_dim), np.uint16))

    def store(self, k: Floats, v: Floats, slot: Places, position: Places) -> None:
        _native.store_kv(self.keys, self.values, k, v, slot, position)

    def plain(self) -> tuple[Floats, Floats]:
        """Keys and values as float32 [slot, kv head, context, head_dim]."""
        keys = self.keys.transpose(0, 1, 2, 4, 3).reshape(self.values.shape)
        return _half(keys), _half(self.values)


def _half(bits: Array) -> Floats:
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


def rounded(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        half = x.astype(np.float16).astype(np.float32)
    return np.clip(half, np.float32(-65504), np.float32(65504))


def test_store_puts_rows_at_their_slots_and_positions() -> None:
    rng = np.random.default_rng(0)
    slot, position = np.array([2, 0, 2, 1], np.int32), np.array([0, 47, 17, 15], np.int32)
    k, v = floats(rng, 4, 2 * 16), floats(rng, 4, 2 * 16)

    def stored() -> Array:
        cache = Cache.empty(3, 2, 48, 16)
        cache.store(k, v, slot, position)
        return np.stack(cache.plain())

    expected = np.zeros((2, 3, 2, 48, 16), np.float32)
    for row in range(4):
        expected[0, slot[row], :, position[row]] = rounded(k[row]).reshape(2, 16)
        expected[1, slot[row], :, position[row]] = rounded(v[row]).reshape(2, 16)
    np.testing.assert_array_equal(everywhere(stored), expected)


def test_store_rounds_to_the_nearest_half_and_ties_to_even() -> None:
    """Every finite half, every midpoint of two neighbours, and the floats beside each midpoint."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[:-1].astype(np.float64) + halves[1:]) / 2
    middle = np.append(middle, 65520).astype(np.float32)
    near = [np.nextafter(middle, np.float32(end), dtype=np.float32) for end in (0, np.inf)]
    x = np.concatenate(
        [halves, middle, *near, np.array([1e-45, 1e-30, 65519.996, 7e4, 3e38], np.float32)]
    )
    x = np.concatenate([x, -x])
    x = np.resize(x, (-(-len(x) // 1024), 1024))
    rows = np.arange(len(x), dtype=np.int32)

    def stored() -> npt.NDArray[np.uint16]:
        cache = Cache.empty(1, 1, -(-len(x) // 16) * 16, 1024)
        cache.store(x, x, np.zeros_like(rows), rows)
        return cache.values[0, 0, : len(x)]

    expected = rounded(x).astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(everywhere(stored), expected)


def test_store_saturates_infinities() -> None:
    cache = Cache.empty(1, 1, 16, 16)
    x = np.array([[np.inf, -np.inf] * 8], np.float32)
    cache.store(x, x, np.array([0], np.int32), np.array([3], np.int32))
    np.testing.assert_array_equal(
        cache.plain()[1][0, 0, 3], np.array([65504, -65504] * 8, np.float32)
    )


def filled(rng: np.random.Generator, shape: tuple[int, int, int, int], size: float = 1) -> Cache:
    cache = Cache.empty(*shape)
    cache.keys[:] = (floats(rng, *cache.keys.shape) * size).astype(np.float16).view(np.uint16)
    cache.values[:] = floats(rng, *cache.values.shape).astype(np.float16).view(np.uint16)
    return cache


def plain_attention(
    cache: Cache, q: Floats, heads: int, slot: Places, position: Places, window: int
) -> npt.NDArray[np.float64]:
    keys, values = (part.astype(np.float64) for part in cache.plain())
    kv_heads, head_dim = values.shape[1], values.shape[3]
    out = np.zeros((len(q), heads, head_dim))
    for row, query in enumerate(q.astype(np.float64).reshape(len(q), heads, head_dim)):
        stop = position[row] + 1
        start = max(0, stop - window) if window else 0
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = keys[slot[row], group, start:stop] @ query[head] / np.sqrt(head_dim)
            weight = np.exp(scores - scores.max())
            out[row, head] = weight / weight.sum() @ values[slot[row], group, start:stop]
    return out.reshape(q.shape)


def attend(
    cache: Cache, q: Floats, heads: int, slot: Places, position: Places, window: int
) -> Floats:
    out = np.full_like(q, np.nan)
    _native.attend(cache.keys, cache.values, q, heads, slot, position, window, out)
    return out


# Eleven rows: two slots, one of them twice, a run of more than eight rows, ends of blocks of 16.
SLOTS = np.array([2] * 9 + [0, 2], np.int32)
POSITIONS = np.array([0, 1, 14, 15, 16, 17, 31, 32, 79, 63, 40], np.int32)


@pytest.mark.parametrize("window", [0, 1, 5, 16, 33, 80, 200])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 16), (6, 2, 32), (4, 4, 48), (8, 1, 64)]
)
def test_attention_equals_plain_softmax(
    heads: int, kv_heads: int, head_dim: int, window: int
) -> None:
    rng = np.random.default_rng(head_dim + window)
    cache = filled(rng, (3, kv_heads, 80, head_dim))
    q = floats(rng, len(SLOTS), heads * head_dim) * 2
    out = everywhere(lambda: attend(cache, q, heads, SLOTS, POSITIONS, window))
    expected = plain_attention(cache, q, heads, SLOTS, POSITIONS, window)
    np.testing.assert_allclose(out, expected, rtol=0, atol=4e-6)
    for row in range(len(q)):
        one = slice(row, row + 1)
        alone = attend(cache, q[one], heads, SLOTS[one], POSITIONS[one], window)
        assert alone.tobytes() == out[row].tobytes(), f"row {row} alone differs"


def test_attention_to_very_large_scores_is_finite() -> None:
    rng = np.random.default_rng(0)
    cache = filled(rng, (1, 1, 32, 16), size=5e3)
    q = floats(rng, 3, 16) * 1e4
    slot, position = np.array([0, 0, 0], np.int32), np.array([5, 20, 31], np.int32)
    out = everywhere(lambda: attend(cache, q, 1, slot, position, 0))
    expected = plain_attention(cache, q, 1, slot, position, 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


def test_attention_never_sees_later_positions_or_other_slots() -> None:
    rng = np.random.default_rng(1)
    cache = filled(rng, (3, 2, 48, 16))
    q, slot, position = floats(rng, 2, 32), np.array([1, 1], np.int32), np.array([20, 21], np.int32)
    before = attend(cache, q, 2, slot, position, 0)
    keep_keys, keep_values = cache.keys[1].copy(), cache.values[1].copy()
    cache.keys[:], cache.values[:] = 0x7BFF, 0xFBFF  # +-65504
    plain_keys = cache.keys[1].transpose(0, 1, 3, 2)
    plain_keys[:, 0] = keep_keys.transpose(0, 1, 3, 2)[:, 0]
    plain_keys[:, 1, :6] = keep_keys.transpose(0, 1, 3, 2)[:, 1, :6]
    cache.values[1, :, :22] = keep_values[:, :22]
    after = everywhere(lambda: attend(cache, q, 2, slot, position, 0))
    assert after.tobytes() == before.tobytes()


def ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


def places(*values: int) -> Places:
    return np.array(values, np.int32)


CACHE = Cache.empty(2, 2, 32, 16)


def call_store(
    k: Array | None = None,
    v: Array | None = None,
    slot: Array | None = None,
    position: Array | None = None,
    keys: Array = CACHE.keys,
) -> None:
    _native.store_kv(
        keys,
        CACHE.values,
        ones(2, 32) if k is None else k,
        ones(2, 32) if v is None else v,
        places(0, 1) if slot is None else slot,
        places(0, 31) if position is None else position,
    )


def call_attend(
    heads: int = 4,
    q: Array | None = None,
    slot: Array | None = None,
    position: Array | None = None,
    out: Array | None = None,
    cache: Cache = CACHE,
) -> None:
    _native.attend(
        cache.keys,
        cache.values,
        ones(2, 64) if q is None else q,
        heads,
        places(0, 1) if slot is None else slot,
        places(0, 31) if position is None else position,
        0,
        ones(2, 64) if out is None else out,
    )


def call_rope(cols: int = 8, head_dim: int = 4, position: Array | None = None) -> None:
    position = places(0, 9) if position is None else position
    _native.rope(ones(2, cols), ones(10, 2), ones(10, 2), position, head_dim)


def test_the_calls_below_work_when_nothing_is_wrong() -> None:
    call_store()
    call_attend()
    call_rope()


@pytest.mark.parametrize(
    "call",
    [
        lambda: call_store(k=ones(2, 31)),
        lambda: call_store(v=ones(3, 32)),
        lambda: call_store(slot=places(0, 2)),
        lambda: call_store(slot=places(0, -1)),
        lambda: call_store(slot=places(0)),
        lambda: call_store(position=places(0, 32)),
        lambda: call_store(position=places(-1, 0)),
        lambda: call_store(position=places(0, 1, 2)),
        lambda: call_store(keys=np.zeros((2, 2, 1, 16, 16), np.uint16)),
        lambda: call_store(keys=np.zeros((2, 2, 4, 16, 8), np.uint16)),
        lambda: call_attend(heads=3),
        lambda: call_attend(heads=0),
        lambda: call_attend(heads=-4),
        lambda: call_attend(heads=8),
        lambda: call_attend(out=ones(3, 64)),
        lambda: call_attend(slot=places(2, 0)),
        lambda: call_attend(position=places(0, 32)),
        lambda: call_attend(cache=Cache.empty(2, 0, 32, 16)),
        lambda: call_attend(q=ones(2, 32), out=ones(2, 32), cache=Cache.empty(2, 2, 32, 8)),
        lambda: call_attend(cache=Cache.empty(2, 2, 32, 0)),
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
        lambda: call_store(k=np.ones((2, 32))),
        lambda: call_store(k=ones(2, 64)[:, ::2]),
        lambda: call_store(slot=np.array([0, 1], np.int64)),
        lambda: call_store(keys=CACHE.keys.astype(np.int16)),
        lambda: call_store(keys=np.zeros((2, 2, 2, 16, 32), np.uint16)[..., ::2]),
        lambda: call_attend(out=np.ones((2, 64))),
        lambda: call_attend(out=ones(2, 128)[:, ::2]),
        lambda: call_attend(position=np.array([0, 1], np.int64)),
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
