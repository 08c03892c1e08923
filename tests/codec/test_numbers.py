from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop_singular_bit.codec.numbers import DenseKind, from_bf16, from_pattern, to_bf16


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1 + 2**-8, 0x3F80),  # half way: to the even neighbour, below
        (1 + 3 * 2**-8, 0x3F82),  # half way: to the even neighbour, above
        (1 + 2**-8 + 2**-23, 0x3F81),  # just above half way
        (1 + 2**-8 - 2**-23, 0x3F80),  # just below half way
        (2.0 - 2**-23, 0x4000),  # carries into the exponent
        (1e-40, 0x0001),  # subnormal
        (1e30, 0x714A),
    ],
)
def test_bf16_rounds_to_nearest_even(value: float, pattern: int) -> None:
    assert to_bf16(np.array([value], np.float32)).tolist() == [pattern]


@given(st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80))
def test_bf16_patterns_survive_a_round_trip(bits: int) -> None:
    value = from_bf16(np.array([bits], np.uint16))
    assert np.isfinite(value).all()
    assert to_bf16(value).tolist() == [bits]


@given(st.floats(-(2.0**100), 2.0**100, width=32))
def test_bf16_has_no_nearer_neighbour(value: float) -> None:
    bits = to_bf16(np.array([value], np.float32))
    nearest = int(bits[0]) & 0x7FFF
    neighbours = [other for other in range(nearest - 1, nearest + 2) if other >= 0]
    near = from_bf16(np.array(neighbours, np.uint16)).astype(np.float64)
    error = abs(float(from_bf16(bits)[0]) - value)
    assert error == np.abs(near - abs(value)).min()


def test_patterns_of_every_type() -> None:
    numbers = np.array([1.5, -0.25, 3.0], np.float32)
    half = numbers.astype(np.float16).view(np.uint16)
    assert from_pattern(half, "f16").tolist() == numbers.tolist()
    assert from_pattern(to_bf16(numbers), "bf16").tolist() == numbers.tolist()
    assert from_pattern(numbers, "f32").tolist() == numbers.tolist()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_values_are_a_copy(dtype: str) -> None:
    stored = np.zeros(4, np.float32 if dtype == "f32" else np.uint16)
    from_pattern(stored, dtype)[:] = 1
    assert not stored.any()


def test_kinds_are_those_of_the_kernels() -> None:
    assert [kind.name for kind in DenseKind] == ["F32", "F16", "BF16", "I8", "SIGN"]
    assert [int(kind) for kind in DenseKind] == [0, 1, 2, 3, 4]
