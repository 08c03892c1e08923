from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from codec_data import DTYPES, gaussian, random_outliers, stored_as
from hypothesis import given
from hypothesis import strategies as st

from loop_singular_bit.codec.numbers import from_pattern
from loop_singular_bit.codec.outliers import (
    COLS_MAX,
    Outliers,
    extract,
    index_bytes_expected,
    select,
    validate,
)
from loop_singular_bit.codec.program import Program
from loop_singular_bit.errors import FormatError, UsageError

Mask = npt.NDArray[np.bool_]


def mask_of(cols: int, *rows: list[int]) -> Mask:
    mask = np.zeros((len(rows), cols), bool)
    for row, columns in enumerate(rows):
        mask[row, columns] = True
    return mask


def sparse(cols: int, *rows: list[int]) -> Outliers:
    mask = mask_of(cols, *rows)
    return extract(mask, gaussian(*mask.shape), "f32")


def random_mask(rows: int, cols: int, count: int, seed: int) -> Mask:
    mask = np.zeros(rows * cols, bool)
    mask[np.random.default_rng(seed).choice(mask.size, count, replace=False)] = True
    return mask.reshape(rows, cols)


def assert_round_trip(mask: Mask, dtype: str) -> Outliers:
    """Places and bits of every outlier come back; returns what was packed."""
    stored = stored_as(gaussian(*mask.shape, seed=9), dtype)
    found = extract(mask, stored, dtype)
    validate(found, *mask.shape)
    assert np.array_equal(found.values, stored[mask])
    assert np.array_equal(found.columns(), np.nonzero(mask)[1])
    expected = np.where(mask, from_pattern(stored, dtype), np.float32(0))
    assert found.dense(mask.shape[1]).tobytes() == expected.tobytes()
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5])
def test_round_trip_is_exact_for_every_type(dtype: str, share: float) -> None:
    assert_round_trip(random_mask(23, 700, round(share * 23 * 700), seed=1), dtype)


@pytest.mark.parametrize("empty", [0, 1, 2, 3])
def test_rows_without_outliers(empty: int) -> None:
    rows = [[5, 9], [0], [299], [7, 8]]
    rows[empty] = []
    assert_round_trip(mask_of(300, *rows), "f16")


@pytest.mark.parametrize("rows", [[[]], [[], []], [[], [3], [], []], [[0, 599]], [[0], [599], [0]]])
def test_ends_of_rows(rows: list[list[int]]) -> None:
    assert_round_trip(mask_of(600, *rows), "f16")


@pytest.mark.parametrize(
    ("gap", "coded"),
    [
        (0, [0]),
        (254, [254]),
        (255, [255, 0]),
        (256, [255, 1]),
        (509, [255, 254]),
        (510, [255, 255, 0]),
        (511, [255, 255, 1]),
    ],
)
def test_bytes_of_gaps(gap: int, coded: list[int]) -> None:
    # Enough neighbours that gaps beat 16-bit columns.
    near = list(range(gap + 1, gap + 9))
    found = assert_round_trip(mask_of(1600, [gap, *near], [0, gap + 1], [gap]), "bf16")
    assert found.index.dtype == np.uint8
    assert found.index.tolist() == [*coded, *[0] * 8, 0, *coded, *coded]
    assert found.counts.tolist() == [9, 2, 1]


def test_wide_gaps_make_columns_the_smaller_index() -> None:
    found = assert_round_trip(mask_of(2000, [511, 1999], [0]), "bf16")
    assert found.index.dtype == np.uint16
    assert found.index.tolist() == [511, 1999, 0]


def test_equal_sizes_take_gaps() -> None:
    found = sparse(300, [255])
    assert (found.index.dtype, found.index.tolist()) == (np.uint8, [255, 0])


@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 800),
    share=st.sampled_from([0.0, 0.002, 0.01, 0.1, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_any_mask_comes_back(rows: int, cols: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((rows, cols)) < share
    found = assert_round_trip(mask, "f16")
    assert found.count == mask.sum()
    assert found.index.nbytes <= 2 * found.count


def test_the_widest_matrix() -> None:
    found = assert_round_trip(np.ones((1, COLS_MAX), bool), "f16")
    assert found.counts.tolist() == [COLS_MAX]
    with pytest.raises(UsageError, match="65536 columns cannot keep outliers, the most is 65535"):
        extract(np.zeros((1, COLS_MAX + 1), bool), np.zeros((1, COLS_MAX + 1), np.uint16), "f16")


@pytest.mark.parametrize("ratio", [0.0, 1e-5, 0.001, 0.005, 0.02, 0.333, 0.5])
def test_the_ratio_is_honoured_exactly(ratio: float) -> None:
    W = gaussian(31, 57)
    mask = select(W, ratio)
    assert mask.sum() == round(ratio * W.size)
    if mask.any():
        assert np.abs(W)[mask].min() > np.abs(W)[~mask].max()


@pytest.mark.parametrize("W", [np.ones((8, 8)), np.zeros((8, 8)), np.tile([1, -2, 2, 1], (16, 1))])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_the_count_is_exact_among_ties(W: npt.NDArray[np.float64], ratio: float) -> None:
    assert select(W.astype(np.float32), ratio).sum() == round(ratio * W.size)


def test_ties_go_to_the_earlier_weight() -> None:
    W = np.array([[1, -3, 3, 3], [3, 9, 1, 3]], np.float32)
    assert np.argwhere(select(W, 3 / 8)).tolist() == [[0, 1], [0, 2], [1, 1]]


@pytest.mark.parametrize("ratio", [-0.01, 0.51, float("nan")])
def test_bad_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"outlier ratio .*: must be between 0 and 0\.5"):
        select(np.ones((4, 4), np.float32), ratio)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.001, 0.05])  # 16-bit columns, gaps
def test_products_add_to_what_is_there(dtype: str, share: float) -> None:
    found = random_outliers(600, 1000, share, dtype)
    assert found.index.dtype == (np.uint16 if share == 0.001 else np.uint8)
    x, out = gaussian(5, 1000, 1), gaussian(5, 600, 2)
    expected = out + x.astype(np.float64) @ found.dense(1000).T
    program, places = Program(5), np.zeros(5, np.int32)
    found.add_product(program, x, out)
    program.run_steps(places, places)
    assert np.abs(out - expected).max() < 1e-3  # sums of 50 products of about 10


@pytest.mark.parametrize("share", [0.002, 0.1])
def test_taking_rows(share: float) -> None:
    found = random_outliers(20, 500, share, "bf16")
    rows = np.array([19, 0, 7, 7])
    assert np.array_equal(found.take(rows).dense(500), found.dense(500)[rows])
    assert found.take(rows[:0]).dense(500).shape == (0, 500)
    validate(found.take(rows), 4, 500)


GAPS = sparse(300, [0, 256, 257], [], [299, 1, 2])  # index 0 255 0 0 | 1 0 255 41
WIDE = sparse(2000, [511, 1999], [1024])
Change = Callable[[Outliers], Outliers]


def with_index(*values: int) -> Change:
    return lambda found: replace(found, index=np.array(values, found.index.dtype))


def with_counts(*values: int) -> Change:
    return lambda found: replace(found, counts=np.array(values, np.uint16))


def with_values(count: int) -> Change:
    return lambda found: replace(found, values=found.values[:count])


DEFECTS: list[tuple[Outliers, Change, str]] = [
    (GAPS, with_counts(3, 3), "2 counts for 3 rows"),
    (GAPS, with_counts(3, 0, 3, 0), "4 counts for 3 rows"),
    (GAPS, with_counts(3, 0, 2), "6 values, row counts add up to 5"),
    (GAPS, with_counts(3, 1, 3), "6 values, row counts add up to 7"),
    (GAPS, with_values(5), "5 values, row counts add up to 6"),
    (GAPS, with_index(0, 255, 0, 0, 1, 0), "5 entries, expected 6"),
    (GAPS, with_index(0, 255, 0, 0, 1, 0, 255, 41, 0), "7 entries, expected 6"),
    (GAPS, with_index(0, 255, 0, 0, 1, 0, 40, 255), "ends with a skip"),
    (GAPS, with_index(0, 255, 0, 0, 1, 0, 255, 42), "outside 0..299 or is out of order"),
    (GAPS, with_index(0, 255, 0, 255, 0, 1, 0, 0), "outside 0..299 or is out of order"),
    (GAPS, with_counts(2, 0, 4), "outside 0..299 or is out of order"),
    (WIDE, with_index(511, 1999), "2 entries, expected 3"),
    (WIDE, with_index(511, 1999, 1024, 1), "4 entries, expected 3"),
    (WIDE, with_index(511, 2000, 1024), "outside 0..1999 or is out of order"),
    (WIDE, with_index(1999, 511, 1024), "outside 0..1999 or is out of order"),
    (WIDE, with_index(511, 511, 1024), "outside 0..1999 or is out of order"),
]


@pytest.mark.parametrize("number", range(len(DEFECTS)))
def test_every_defect_is_refused(number: int) -> None:
    sound, change, message = DEFECTS[number]
    rows, cols = (3, 300) if sound is GAPS else (2, 2000)
    validate(sound, rows, cols)
    with pytest.raises(FormatError, match=message):
        validate(change(sound), rows, cols)


def test_a_matrix_too_wide_is_refused() -> None:
    with pytest.raises(FormatError, match="65536 columns, at most 65535"):
        validate(sparse(300, [1]), 1, COLS_MAX + 1)


@pytest.mark.parametrize("ratio", [0.001, 0.002, 0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("shape", [(900, 576), (200, 1536), (64, 8960), (3000, 100), (1000, 300)])
def test_expected_index_bytes(shape: tuple[int, int], ratio: float) -> None:
    count = round(ratio * shape[0] * shape[1])
    found = extract(random_mask(*shape, count, seed=8), np.zeros(shape, np.uint16), "f16")
    expected = index_bytes_expected(*shape, count)
    assert abs(expected - found.index.nbytes) <= 0.02 * found.index.nbytes + 8
