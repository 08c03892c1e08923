from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from codec_data import correlated, flat_transform, gaussian, lost, scaled_transform

from loop_singular_bit import _native
from loop_singular_bit.codec import reference
from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.codec.outliers import extract, select
from loop_singular_bit.codec.planes import EncodeReport, PlaneOptions, distortion, encode
from loop_singular_bit.codec.tables import WINDOWS, table_set
from loop_singular_bit.codec.weights import PlanesWeight
from loop_singular_bit.errors import UsageError

RESULTS = Path(__file__).parents[2] / "benches" / "results"


def test_each_of_five_planes_lowers_the_error_more_than_threefold() -> None:
    W, transform = gaussian(256, 192), flat_transform(192)
    errors = [encode(W, transform, PlaneOptions(k))[1].relative_error for k in range(1, 7)]
    assert errors[0] < 1 / 3
    assert all(after < before / 3 for before, after in pairwise(errors[:5]))
    assert errors[5] < errors[4] / 2.5


def test_predicted_distortion_is_what_was_measured() -> None:
    measured = json.loads((RESULTS / "table_distortion.json").read_text("ascii"))
    for window in WINDOWS:
        found = measured["mean_squared_error_by_planes"][f"L={window}"]
        assert [distortion(window, planes) for planes in range(1, 7)] == found


def test_planes_that_were_not_measured_go_on_as_the_last() -> None:
    assert distortion(7, 0) == 1
    assert distortion(7, 8) / distortion(7, 7) == pytest.approx(0.0007 / 0.00209)


def test_the_matrix_itself_is_as_near_as_reported() -> None:
    W, transform = gaussian(48, 192), flat_transform(192)
    weight, report = encode(W, transform, PlaneOptions(4))
    assert lost(W, weight.dense()) == pytest.approx(report.relative_error, rel=1e-3)


@pytest.mark.parametrize("planes", [1, 4, 5, 8])
@pytest.mark.parametrize("window", WINDOWS)
def test_what_is_written_is_what_was_encoded(window: int, planes: int) -> None:
    """Heavy tails reach the ends of the tables: no sum of planes may leave its integer type."""
    W = np.random.default_rng(2).standard_t(3, (40, 36)).astype(np.float32)
    weight, report = encode(W, flat_transform(36), PlaneOptions(planes, window, tile_rows=32))
    tables = table_set(window)
    levels = tables.levels[:planes]
    decoded = reference.decode_planes(weight.extents, window, tables.hashes, levels, 40, 36, 32)
    assert np.array_equal(weight.integers(), decoded)
    assert lost(W, weight.dense()) == pytest.approx(report.relative_error, rel=1e-3, abs=1e-12)


def calibrated(block: int | None, planes: int = 3) -> EncodeReport:
    """Report under a correlated H, with feedback after every `block` columns or without."""
    transform = scaled_transform(192)
    H = damped(transform.hessian(correlated(192)), 0.01)
    panels = None if block is None else feedback_panels(H, block)
    options = PlaneOptions(planes, block=block or 4)
    return encode(gaussian(64, 192), transform, options, H=H, panels=panels)[1]


@pytest.mark.parametrize(("planes", "block"), [(1, 4), (3, 4), (6, 16)])
def test_feedback_lowers_the_loss_where_inputs_are_correlated(planes: int, block: int) -> None:
    without, fed = calibrated(None, planes), calibrated(block, planes)
    assert fed.proxy_loss < 0.6 * without.proxy_loss
    assert fed.relative_error > without.relative_error  # that is what it trades


def test_one_long_block_feeds_back_less() -> None:
    assert calibrated(16).proxy_loss < calibrated(64).proxy_loss


@pytest.mark.parametrize("block", [4, 32])
def test_without_feedback_the_block_does_not_matter(block: int) -> None:
    W, transform = gaussian(32, 192), flat_transform(192)
    found = [encode(W, transform, PlaneOptions(3, block=b, tile_rows=32))[0] for b in (block, 64)]
    assert all(map(np.array_equal, found[0].extents, found[1].extents))


def test_feedback_of_independent_inputs_changes_nothing() -> None:
    W, transform = gaussian(32, 64), flat_transform(64)
    H = np.eye(64, dtype=np.float32)
    options = PlaneOptions(2, block=64)
    plain = encode(W, transform, options)[0]
    fed = encode(W, transform, options, H=H, panels=feedback_panels(H, 64))[0]
    assert all(map(np.array_equal, plain.extents, fed.extents))


def test_the_amplitude_of_each_row_is_the_best_one() -> None:
    transform = flat_transform(64)
    H = damped(correlated(64), 0.01)
    W = gaussian(20, 64)
    weight, _ = encode(W, transform, PlaneOptions(2), H=H, panels=feedback_panels(H, 4))
    rotated, Q = transform.weights(W).astype(np.float64), weight.integers().astype(np.float64)
    best = np.einsum("rc,cd,rd->r", rotated, H, Q) / np.einsum("rc,cd,rd->r", Q, H, Q)
    assert np.abs(weight.row_scale / best - 1).max() < 2**-8  # bfloat16


def encoded(W: np.ndarray, planes: int = 3) -> tuple[PlanesWeight, EncodeReport]:
    W = W.astype(np.float32)
    weight, report = encode(W, flat_transform(W.shape[1]), PlaneOptions(planes, tile_rows=32))
    assert np.isfinite(weight.dense()).all()
    assert np.isfinite([report.relative_error, report.proxy_loss]).all()
    return weight, report


def test_zero_rows_stay_zero() -> None:
    W = gaussian(40, 64)
    W[[0, 17, 39]] = 0
    weight, report = encoded(W)
    assert not weight.dense()[[0, 17, 39]].any()
    assert report.relative_error < 0.03


@pytest.mark.parametrize("shape", [(1, 4), (16, 64), (33, 192)])
def test_zero_matrices_stay_zero(shape: tuple[int, int]) -> None:
    weight, report = encoded(np.zeros(shape))
    assert not weight.dense().any()
    assert (report.relative_error, report.proxy_loss) == (0, 0)


def test_zero_matrices_under_a_hessian_stay_zero() -> None:
    H = damped(correlated(64), 0.01)
    weight, report = encode(
        np.zeros((16, 64), np.float32), flat_transform(64), PlaneOptions(2),
        H=H, panels=feedback_panels(H, 4),
    )  # fmt: skip
    assert not weight.dense().any()
    assert report.proxy_loss == 0


def test_constant_rows() -> None:
    """The signs make a constant row one of few values in the rotated basis: still coded well."""
    W = np.repeat(np.linspace(-2, 2, 16)[:, None], 192, axis=1)
    assert encoded(W, 4)[1].relative_error < 0.02


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e4])
def test_the_error_does_not_depend_on_the_size_of_the_weights(size: float) -> None:
    W = gaussian(32, 192)
    expected = encoded(W)[1].relative_error
    weight, report = encoded(W * np.float32(size))
    assert report.relative_error == pytest.approx(expected, rel=0.02)
    assert lost(W, weight.dense().astype(np.float64) / size) == pytest.approx(expected, rel=0.02)


def test_rows_of_unequal_size_do_not_disturb_each_other() -> None:
    W = gaussian(48, 192)
    size = np.logspace(-12, 4, 48, dtype=np.float32)[:, None]
    restored = encoded(W * size)[0].dense() / size
    assert lost(W, restored) == pytest.approx(encoded(W)[1].relative_error, rel=0.05)


def test_one_row_and_one_quad() -> None:
    """All there is are the first steps of four streams, with two levels a plane to choose from."""
    weight, report = encoded(np.array([[1.0, -2.0, 0.5, 3.0]]), 8)
    assert weight.dense().shape == (1, 4)
    assert report.relative_error < 0.3


def test_a_row_alone() -> None:
    W = gaussian(1, 576)
    weight, report = encoded(W, 4)
    assert report.relative_error < 0.02
    assert lost(W, weight.dense()) == pytest.approx(report.relative_error, rel=1e-3)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    W, transform = gaussian(100, 192), scaled_transform(192)
    H = damped(transform.hessian(correlated(192)), 0.01)
    panels = feedback_panels(H, 4)
    before = _native.threads()
    found = []
    try:
        for count in (1, threads):
            _native.set_threads(count)
            options = PlaneOptions(3, tile_rows=32)
            found.append(encode(W, transform, options, H=H, panels=panels))
    finally:
        _native.set_threads(before)
    (one, first), (many, second) = found
    assert all(map(np.array_equal, one.extents, many.extents))
    assert np.array_equal(one.row_scale, many.row_scale)
    assert first == second


def test_exact_outliers_rescue_a_matrix_with_super_weights() -> None:
    W = 0.02 * gaussian(64, 192)
    W[[3, 3, 20, 41], [5, 90, 0, 191]] = [9.0, -7.0, 8.0, 10.0]
    transform, ordinary = flat_transform(192), np.abs(W) < 1
    kept = select(W, 4 / W.size)
    outliers = extract(kept, W, "f32")
    plain = encode(W, transform, PlaneOptions(3))[0].dense()
    rescued = encode(np.where(kept, 0, W), transform, PlaneOptions(3), outliers=outliers)[0].dense()
    assert lost(W, rescued) < 0.02 * lost(W, plain)
    hit = W[[3, 20, 41]] * ordinary[[3, 20, 41]]
    assert lost(hit, plain[[3, 20, 41]] * (hit != 0)) > 1  # nothing left of these rows
    assert lost(hit, rescued[[3, 20, 41]] * (hit != 0)) < 0.03


def test_a_matrix_is_not_changed_by_encoding_it() -> None:
    W = gaussian(16, 64)
    before = W.copy()
    encode(W, flat_transform(64), PlaneOptions(2))
    assert np.array_equal(W, before)


@pytest.mark.parametrize(
    "options", [PlaneOptions(0), PlaneOptions(9), PlaneOptions(2, 3), PlaneOptions(2, 13)]
)
def test_unknown_options_are_refused(options: PlaneOptions) -> None:
    with pytest.raises(UsageError):
        encode(gaussian(16, 64), flat_transform(64), options)


@pytest.mark.parametrize("tile_rows", [0, 16, 48])
def test_tiles_are_whole_blocks(tile_rows: int) -> None:
    with pytest.raises(ValueError, match=f"^{tile_rows} tile rows: must be a multiple of 32"):
        encode(gaussian(16, 64), flat_transform(64), PlaneOptions(2, tile_rows=tile_rows))
