from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from attention_reference import Bits, Cache, attention, quantized, rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from native_calls import Array, Floats, everywhere, floats

from loop_singular_bit import _native

Places = npt.NDArray[np.int32]

BITS = [(keys, values) for keys in (16, 8, 4) for values in (16, 8, 4)]


def tolerance(bits: Bits) -> float:
    """Of a unit Gaussian: the query and the weights are rounded to 16 bits when the cache is."""
    return 4e-6 if bits == (16, 16) else 4e-4


def places(*values: int) -> Places:
    return np.array(values, np.int32)


def ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


def half(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        rounded = x.astype(np.float16).astype(np.float32)
    return np.clip(rounded, np.float32(-65504), np.float32(65504))


def filled(
    rng: np.random.Generator,
    bits: Bits,
    shape: tuple[int, int, int, int],
    size: float = 1,
) -> Cache:
    """A cache [slots, kv_heads, context, head_dim] with Gaussian rows everywhere."""
    cache = Cache.empty(bits, *shape)
    slots, kv_heads, context, head_dim = shape
    k, v = floats(rng, 2, slots * context, kv_heads * head_dim)
    slot = np.repeat(np.arange(slots, dtype=np.int32), context)
    cache.store(k * np.float32(size), v, slot, np.tile(np.arange(context, dtype=np.int32), slots))
    return cache


def test_store_puts_rows_at_their_slots_and_positions() -> None:
    rng = np.random.default_rng(0)
    slot, position = places(2, 0, 2, 1), places(0, 47, 17, 15)
    k, v = floats(rng, 2, 4, 2 * 32)

    def stored() -> Array:
        cache = Cache.empty((16, 16), 3, 2, 48, 32)
        cache.store(k, v, slot, position)
        return np.stack(cache.plain())

    expected = np.zeros((2, 3, 2, 48, 32), np.float32)
    for row in range(4):
        expected[0, slot[row], :, position[row]] = half(k[row]).reshape(2, 32)
        expected[1, slot[row], :, position[row]] = half(v[row]).reshape(2, 32)
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
    x = np.resize(x, (-(-len(x) // 512), 512))
    rows = np.arange(len(x), dtype=np.int32)

    def stored() -> Array:
        cache = Cache.empty((16, 16), 1, 1, -(-len(x) // 16) * 16, 512)
        cache.store(x, x, np.zeros_like(rows), rows)
        return np.stack(cache.plain())[:, 0, 0, : len(x)]

    expected = half(x)
    for found in everywhere(stored):
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_store_saturates_infinities() -> None:
    cache = Cache.empty((16, 16), 1, 1, 16, 16)
    x = np.array([[np.inf, -np.inf] * 8], np.float32)
    cache.store(x, x, places(0), places(3))
    for part in cache.plain():
        np.testing.assert_array_equal(part[0, 0, 3], np.array([65504, -65504] * 8, np.float32))


@pytest.mark.parametrize("bits", BITS)
def test_attention_stays_finite_whatever_was_stored(bits: Bits) -> None:
    rows = np.array([np.inf, -np.inf, np.nan, 3e38, 1e-45, 0.0], np.float32)
    x = np.repeat(rows[:, None], 16, axis=1)
    x[0, 3:], x[2, 5:] = 1, -2

    def attended() -> Floats:
        cache = Cache.empty(bits, 1, 1, 16, 16)
        cache.store(x, x, np.zeros(6, np.int32), np.arange(6, dtype=np.int32))
        return cache.attend(ones(1, 16), 1, places(0), places(5), 0)

    assert np.isfinite(everywhere(attended)).all()


@pytest.mark.parametrize("head_dim", [16, 48, 64, 96, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_rows_are_stored_as_the_reference_does(bits: int, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    k, v = floats(rng, 2, 9, 2, head_dim)
    k[:, :, 3] *= 20  # an outlier channel
    k[0], v[0] = 0, 0
    k[1] *= 1e-6  # scales below the least normal half
    v[1] *= 1e6  # and beyond the largest
    position = np.arange(30, 39, dtype=np.int32)

    def stored() -> Array:
        cache = Cache.empty((bits, bits), 2, 2, 48, head_dim)
        # Written before with something else: nothing of it may stay.
        cache.store(-v.reshape(9, -1), k.reshape(9, -1), np.ones(9, np.int32), position)
        cache.store(k.reshape(9, -1), v.reshape(9, -1), np.ones(9, np.int32), position)
        return np.concatenate([part[1, :, 30:39] for part in cache.codes()], axis=0)

    codes = everywhere(stored)
    for found, heads in zip(codes.reshape(2, 2, 9, -1), (k, v), strict=True):
        expected = quantized(rotated(heads), bits)[0].transpose(1, 0, 2)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_scales_are_stored_as_the_reference_does(bits: int) -> None:
    rng = np.random.default_rng(bits)
    k, v = floats(rng, 2, 40, 3 * 64)

    def stored() -> Array:
        cache = Cache.empty((bits, bits), 1, 3, 48, 64)
        cache.store(k, v, np.zeros(40, np.int32), np.arange(40, dtype=np.int32))
        return cache.scales[:, 0, :, :40]

    heads = np.stack([k, v]).reshape(2, 40, 3, 64)
    expected = quantized(rotated(heads), bits)[1].transpose(0, 2, 1)
    np.testing.assert_array_equal(
        everywhere(stored), np.ascontiguousarray(expected).view(np.uint16)
    )


@pytest.mark.parametrize("bits", BITS)
def test_rows_stored_one_by_one_are_those_of_a_batch(bits: Bits) -> None:
    rng = np.random.default_rng(0)
    k, v = floats(rng, 2, 40, 2 * 32)
    slot, position = np.zeros(40, np.int32), np.arange(40, dtype=np.int32)
    whole, single = (Cache.empty(bits, 1, 2, 48, 32) for _ in range(2))
    whole.store(k, v, slot, position)
    for row in range(40):
        one = slice(row, row + 1)
        single.store(k[one], v[one], slot[one], position[one])
    assert whole.bytes().tobytes() == single.bytes().tobytes()


# Eleven rows: two slots, one of them twice, a run of more than eight rows, ends of tiles of 16.
SLOTS = np.array([2] * 9 + [0, 2], np.int32)
POSITIONS = np.array([0, 1, 14, 15, 16, 17, 31, 32, 79, 63, 40], np.int32)


def check_rows_alone(
    cache: Cache, out: Floats, q: Floats, heads: int, slot: Places, position: Places, window: int
) -> None:
    for row in range(len(q)):
        one = slice(row, row + 1)
        alone = cache.attend(q[one], heads, slot[one], position[one], window)
        assert alone.tobytes() == out[row].tobytes(), f"row {row} alone differs"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("window", [0, 1, 5, 16, 33, 200])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 16), (6, 2, 32), (4, 4, 48), (8, 1, 64)]
)
def test_attention_equals_plain_softmax(
    heads: int, kv_heads: int, head_dim: int, window: int, bits: Bits
) -> None:
    rng = np.random.default_rng(head_dim + window)
    cache = filled(rng, bits, (3, kv_heads, 80, head_dim))
    q = floats(rng, len(SLOTS), heads * head_dim) * 2
    out = everywhere(lambda: cache.attend(q, heads, SLOTS, POSITIONS, window))
    expected = attention(cache, q, heads, SLOTS, POSITIONS, window)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance(bits))
    check_rows_alone(cache, out, q, heads, SLOTS, POSITIONS, window)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("window", [0, 300])
def test_chunks_are_merged_alike_however_they_are_split(bits: Bits, window: int) -> None:
    """Several chunks, few rows: threads then share the positions of one key head."""
    rng = np.random.default_rng(sum(bits))
    cache = filled(rng, bits, (1, 2, 1040, 32))
    position = places(1030, 255, 256, 511, 700)
    q, slot = floats(rng, 5, 4 * 32), np.zeros(5, np.int32)
    out = everywhere(lambda: cache.attend(q, 4, slot, position, window))
    expected = attention(cache, q, 4, slot, position, window)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance(bits))
    check_rows_alone(cache, out, q, 4, slot, position, window)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_attention_of_any_shape_equals_plain_softmax(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from(BITS), "bits")
    kv_heads, share = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    head_dim, tiles = 16 * data.draw(st.integers(1, 5)), data.draw(st.integers(1, 35))
    slots, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    window = data.draw(st.integers(0, 600))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    heads, context = kv_heads * share, 16 * tiles
    cache = filled(rng, bits, (slots, kv_heads, context, head_dim))
    slot = np.sort(rng.integers(0, slots, rows)).astype(np.int32)
    position = rng.integers(0, context, rows).astype(np.int32)
    q = floats(rng, rows, heads * head_dim)
    out = everywhere(lambda: cache.attend(q, heads, slot, position, window))
    expected = attention(cache, q, heads, slot, position, window)
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance(bits))
    check_rows_alone(cache, out, q, heads, slot, position, window)


def unquantized_attention(
    k: Floats, v: Floats, q: Floats, slot: Places, position: Places
) -> Floats:
    cache = Cache.empty((16, 16), 1, 1, len(k), k.shape[1])
    cache.store(k, v, np.zeros(len(k), np.int32), np.arange(len(k), dtype=np.int32))
    return cache.attend(q, 1, slot, position, 0)


@pytest.mark.parametrize(("bits", "bound"), [((8, 8), 0.015), ((8, 4), 0.1), ((4, 4), 0.2)])
@pytest.mark.parametrize("outlier", [1, 10])
def test_fewer_bits_change_attention_little(bits: Bits, bound: float, outlier: float) -> None:
    """Root mean square of the change, relative to the output; also with an outlier channel."""
    rng = np.random.default_rng(8)
    k, v = floats(rng, 2, 512, 64)
    k[:, 5] += np.float32(outlier)
    q, slot = floats(rng, 64, 64), np.zeros(64, np.int32)
    position = np.arange(448, 512, dtype=np.int32)
    expected = unquantized_attention(k, v, q, slot, position)
    cache = Cache.empty(bits, 1, 1, 512, 64)
    cache.store(k, v, np.zeros(512, np.int32), np.arange(512, dtype=np.int32))
    found = cache.attend(q, 1, slot, position, 0)
    assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


@pytest.mark.parametrize("bits", BITS)
def test_attention_to_very_large_scores_is_finite(bits: Bits) -> None:
    rng = np.random.default_rng(0)
    cache = filled(rng, bits, (1, 1, 32, 16), size=5e3)
    q, slot, position = floats(rng, 3, 16) * 1e4, places(0, 0, 0), places(5, 20, 31)
    out = everywhere(lambda: cache.attend(q, 1, slot, position, 0))
    expected = attention(cache, q, 1, slot, position, 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("bits", BITS)
def test_attention_never_sees_later_positions_or_other_slots(bits: Bits) -> None:
    rng = np.random.default_rng(1)
    q, slot, position = floats(rng, 2, 32), places(1, 1), places(20, 21)
    k, v = floats(rng, 2, 22, 32)

    def attended(others: float) -> Floats:
        cache = Cache.empty(bits, 3, 2, 48, 16)
        far = np.full((3 * 48, 32), others, np.float32)
        every = np.repeat(np.arange(3, dtype=np.int32), 48)
        cache.store(far, -far, every, np.tile(np.arange(48, dtype=np.int32), 3))
        cache.store(k, v, np.full(22, 1, np.int32), np.arange(22, dtype=np.int32))
        return cache.attend(q, 2, slot, position, 0)

    expected = attended(0).tobytes()
    assert everywhere(lambda: attended(65504)).tobytes() == expected


def test_scratch_of_one_thread_does_not_grow_with_the_context() -> None:
    assert _native.attend_bytes(512, 9, 3, 64, 1) == _native.attend_bytes(1 << 17, 9, 3, 64, 1)
    short, long = (_native.attend_bytes(context, 9, 3, 64, 2) for context in (256, 2048))
    assert long - short == 8 * 9 * 7 * (64 + 16) * 4  # rows, heads, more chunks, a state


CACHE = Cache.empty((16, 16), 2, 2, 32, 16)
SMALL = Cache.empty((8, 8), 2, 2, 32, 16)


def call_store(
    k: Array | None = None,
    v: Array | None = None,
    slot: Array | None = None,
    position: Array | None = None,
) -> None:
    CACHE.store(
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
    window: int = 0,
) -> None:
    _native.attend(
        CACHE.native,
        ones(2, 64) if q is None else q,
        heads,
        places(0, 1) if slot is None else slot,
        places(0, 31) if position is None else position,
        window,
        ones(2, 64) if out is None else out,
    )


def make(
    cache: Cache = SMALL,
    keys: Array | None = None,
    values: Array | None = None,
    scales: tuple[Array | None, Array | None] | None = None,
) -> _native.LayerCache:
    return _native.LayerCache(
        cache.keys if keys is None else keys,
        cache.values if values is None else values,
        *(tuple(cache.scales) if scales is None else scales),
    )


def test_the_calls_below_work_when_nothing_is_wrong() -> None:
    call_store()
    call_attend()
    assert make().bits == (8, 8)
    assert make(CACHE, scales=(None, None)).bits == (16, 16)


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
        lambda: call_attend(heads=3),
        lambda: call_attend(heads=0),
        lambda: call_attend(heads=-4),
        lambda: call_attend(heads=8),
        lambda: call_attend(window=-1),
        lambda: call_attend(out=ones(3, 64)),
        lambda: call_attend(slot=places(2, 0)),
        lambda: call_attend(position=places(0, 32)),
        lambda: make(scales=(None, None)),
        lambda: make(scales=(SMALL.scales[0], None)),
        lambda: make(CACHE),
        lambda: make(scales=(SMALL.scales[0, :1], SMALL.scales[1, :1])),
        lambda: make(keys=SMALL.keys[:1]),
        lambda: make(values=SMALL.keys),
        lambda: make(keys=SMALL.keys[:0], values=SMALL.values[:0]),
        lambda: make(Cache.empty((2, 2), 2, 2, 32, 16)),
        lambda: make(Cache.empty((8, 8), 1, 1, 16, 528)),
        lambda: _native.attend_bytes(16, 4, 0, 64, 1),
        lambda: _native.attend_bytes(16, 4, 4, 64, 0),
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
        lambda: call_attend(out=np.ones((2, 64))),
        lambda: call_attend(out=ones(2, 128)[:, ::2]),
        lambda: call_attend(position=np.array([0, 1], np.int64)),
        lambda: make(keys=SMALL.keys.astype(np.int8)),
        lambda: make(keys=np.zeros((2, 2, 2, 1, 512), np.uint8)[..., ::2]),
        lambda: make(scales=(SMALL.scales[0].view(np.int16), SMALL.scales[1])),
    ],
)
def test_arrays_are_never_converted(call: Callable[[], None]) -> None:
    with pytest.raises(TypeError):
        call()
