from __future__ import annotations

import numpy as np
import pytest
from codec_data import correlated, gaussian, lost, random_outliers, scaled_transform

from loop_singular_bit.codec import reference
from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.prefix import Difference, prefix
from loop_singular_bit.codec.weights import PlanesWeight

ROWS, COLS = 1100, 36  # two extents; the last tile is low, the last strip is padded


def encoded(planes: int, rows: int = ROWS, tile_rows: int = 64, fed: bool = False) -> PlanesWeight:
    transform = scaled_transform(COLS)
    H = damped(transform.hessian(correlated(COLS)), 0.01) if fed else None
    panels = None if H is None else feedback_panels(H, 4)
    options = PlaneOptions(planes, tile_rows=tile_rows)
    return encode(gaussian(rows, COLS), transform, options, H=H, panels=panels)[0]


@pytest.mark.parametrize(("planes", "kept"), [(2, 1), (4, 3), (6, 4), (8, 5)])
def test_the_first_planes_stay_bit_for_bit(planes: int, kept: int) -> None:
    whole = encoded(planes)
    cut, _ = prefix(whole, kept)
    assert (cut.planes, cut.window, cut.transform) == (kept, whole.window, whole.transform)
    assert [len(each) for each in cut.extents] == [n for _, n in cut.tiling.extent_bytes()]
    tile_rows = whole.tiling.tile_rows
    before = reference.tile_planes(whole.extents, planes, ROWS, COLS, tile_rows)
    after = reference.tile_planes(cut.extents, kept, ROWS, COLS, tile_rows)
    assert len(before) == len(after) == -(-ROWS // tile_rows) > 2
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old[:kept], new)


def test_all_planes_are_the_same_weight() -> None:
    whole = encoded(3, rows=64)
    cut, difference = prefix(whole, 3)
    assert cut is whole
    assert difference.lost == difference.relative == 0 < difference.power


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize(("planes", "kept"), [(3, 2), (4, 1), (6, 3)])
def test_no_other_amplitude_is_nearer_to_the_whole(planes: int, kept: int, fed: bool) -> None:
    whole = encoded(planes, 256, fed=fed)
    cut, difference = prefix(whole, kept)
    F = whole.integers() * whole.row_scale[:, None].astype(np.float64)
    Q = cut.integers().astype(np.float64)
    found = lost(F, Q * cut.row_scale[:, None])
    assert found == pytest.approx(difference.relative, rel=1e-5)
    unchanged = whole.row_scale * np.float32(8 if planes > 4 >= kept else 1)
    for other in (unchanged, cut.row_scale * 1.01, cut.row_scale * 0.99):
        assert found < lost(F, Q * other[:, None].astype(np.float64))


def test_without_feedback_a_prefix_is_as_good_as_fewer_planes_encoded() -> None:
    W, transform = gaussian(256, COLS), scaled_transform(COLS)
    goal = transform.weights(W)
    whole, few = (encode(W, transform, PlaneOptions(planes))[0] for planes in (4, 2))
    cut, _ = prefix(whole, 2)
    ours, direct = (lost(goal, w.integers() * w.row_scale[:, None]) for w in (cut, few))
    assert ours == pytest.approx(direct, rel=0.005)


def test_outliers_stay() -> None:
    transform, kept = scaled_transform(COLS), random_outliers(64, COLS, 0.05, "bf16")
    whole, _ = encode(gaussian(64, COLS), transform, PlaneOptions(3), outliers=kept)
    assert prefix(whole, 1)[0].outliers is kept


def test_a_row_of_zeros_stays_one() -> None:
    W = gaussian(64, COLS)
    W[5] = 0
    whole, _ = encode(W, scaled_transform(COLS), PlaneOptions(3))
    cut, _ = prefix(whole, 2)
    assert not cut.dense()[5].any() and cut.dense()[6].any()


@pytest.mark.parametrize("planes", [0, 4])
def test_planes_that_are_not_there_are_refused(planes: int) -> None:
    with pytest.raises(ValueError, match=rf"{planes} of 3 planes"):
        prefix(encoded(3, rows=32), planes)


def test_differences_add_up() -> None:
    total = Difference(1.0, 4.0) + Difference(2.0, 8.0)
    assert (total.lost, total.power, total.relative) == (3.0, 12.0, 0.25)
    assert Difference().relative == 0
