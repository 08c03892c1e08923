from __future__ import annotations

import numpy as np
import pytest
from codec_data import (
    DTYPES,
    correlated,
    flat_transform,
    gaussian,
    lost,
    scaled_transform,
    stored_as,
)

from loop_singular_bit.codec.codecs import (
    Codec,
    InputStatistics,
    Int8,
    Outlier1,
    Planes,
    Raw16,
    Uniform1,
)
from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.codec.numbers import from_bf16, from_pattern, to_bf16
from loop_singular_bit.codec.outliers import select
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.records import pack_weight
from loop_singular_bit.codec.weights import PlanesWeight

BASELINES: list[Codec] = [Raw16(), Int8(), Uniform1(), Outlier1(), Outlier1(0.1)]
CODECS: list[Codec] = [
    *BASELINES,
    Planes(PlaneOptions(3)),
    Planes(PlaneOptions(5, tile_rows=32), 0.01),
    Planes(PlaneOptions(2, tile_rows=64), 0.001),
]
IDS = ["raw", "int8", "uniform1", "outlier1", "outlier1-10%", "planes", "planes-1%", "planes-0.1%"]


def rounded(scale: np.ndarray) -> np.ndarray:
    return from_bf16(to_bf16(scale.astype(np.float32)))


def weights(rows: int = 40, cols: int = 192) -> np.ndarray:
    """A matrix with rows of unequal size, a zero row and some zero weights."""
    W = gaussian(rows, cols) * np.linspace(0.01, 2, rows, dtype=np.float32)[:, None]
    W[:, ::7] = 0
    W[3] = 0
    return W


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_is_the_stored_matrix(dtype: str) -> None:
    stored = stored_as(weights(), dtype)
    weight, report = Raw16().encode(stored, dtype, None)
    assert weight.data is stored
    assert np.array_equal(weight.dense(), from_pattern(stored, dtype))
    assert (report.relative_error, report.proxy_loss) == (0, 0)


def test_int8_is_within_half_a_step_of_each_row() -> None:
    W = weights()
    weight, _ = Int8().encode(W, "f32", None)
    top = np.abs(W).max(axis=1)
    expected = rounded(np.where(top > 0, top / 127, 1))
    assert np.array_equal(weight.scale, expected)
    assert (np.abs(weight.dense() - W) <= expected[:, None] * 0.5 * (1 + 1e-5)).all()
    assert np.abs(weight.data).max() == 127


def test_uniform1_is_sign_and_mean_magnitude() -> None:
    W = weights()
    weight, _ = Uniform1().encode(W, "f32", None)
    size = rounded(np.abs(W).mean(axis=1))[:, None]
    assert np.array_equal(weight.dense(), np.where(W >= 0, size, -size))


def test_outlier1_keeps_its_outliers_and_the_mean_magnitude_of_the_rest() -> None:
    stored = stored_as(weights(), "bf16")
    W = from_pattern(stored, "bf16")
    kept = select(W, 0.05)
    weight, _ = Outlier1(0.05).encode(stored, "bf16", None)
    assert weight.outliers is not None
    assert weight.outliers.count == round(0.05 * W.size)
    rest = np.where(kept, 0, np.abs(W)).sum(axis=1, dtype=np.float64)
    size = rounded(rest / np.maximum((~kept).sum(axis=1), 1))[:, None]
    assert np.array_equal(weight.dense(), np.where(kept, W, np.where(W >= 0, size, -size)))


def test_outlier1_without_outliers_is_uniform1() -> None:
    W = weights()
    plain, without = Uniform1().encode(W, "f32", None)[0], Outlier1(0).encode(W, "f32", None)[0]
    assert without.outliers is None
    assert np.array_equal(plain.dense(), without.dense())


def test_the_naive_scheme_against_its_definition_on_a_gaussian() -> None:
    """sign() leaves 1 - 2/pi of a Gaussian; exact outliers take their share of the power off."""
    W = gaussian(256, 256)
    plain = Uniform1().encode(W, "f32", None)[1].relative_error
    assert plain == pytest.approx(1 - 2 / np.pi, rel=0.01)
    assert Outlier1(0.02).encode(W, "f32", None)[1].relative_error < 0.85 * plain
    assert Int8().encode(W, "f32", None)[1].relative_error < 1e-4


@pytest.mark.parametrize("codec", BASELINES, ids=IDS[: len(BASELINES)])
def test_reported_errors_of_baselines(codec: Codec) -> None:
    stored = stored_as(weights(), "f16")
    weight, report = codec.encode(stored, "f16", None)
    expected = lost(from_pattern(stored, "f16"), weight.dense())
    assert report.relative_error == pytest.approx(expected, rel=1e-5)
    assert report.proxy_loss == report.relative_error


@pytest.mark.parametrize("codec", BASELINES, ids=IDS[: len(BASELINES)])
def test_zero_matrices(codec: Codec) -> None:
    weight, report = codec.encode(np.zeros((4, 16), np.float32), "f32", None)
    assert not weight.dense().any()
    assert (report.relative_error, report.proxy_loss) == (0, 0)


@pytest.mark.parametrize("calibrated", [False, True])
def test_reported_errors_of_planes(calibrated: bool) -> None:
    stored, transform = stored_as(weights(), "f16"), scaled_transform(192)
    H = damped(transform.hessian(correlated(192)), 0.01) if calibrated else None
    panels = None if H is None else feedback_panels(H, 4)
    codec = Planes(PlaneOptions(3), 0.01)
    weight, report = codec.encode(stored, "f16", InputStatistics(transform, H, panels))
    W = from_pattern(stored, "f16")
    W[select(W, 0.01)] = 0
    rotated = transform.weights(W).astype(np.float64)
    error = rotated - weight.row_scale[:, None] * weight.integers().astype(np.float64)
    metric = np.eye(192) if H is None else H.astype(np.float64)
    assert report.relative_error == pytest.approx((error**2).sum() / (rotated**2).sum(), rel=1e-4)
    proxy = np.trace(error @ metric @ error.T) / np.trace(rotated @ metric @ rotated.T)
    assert report.proxy_loss == pytest.approx(proxy, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_store_their_outliers_exactly(dtype: str) -> None:
    stored = stored_as(weights(), dtype)
    W = from_pattern(stored, dtype)
    weight, _ = Planes(PlaneOptions(1), 0.02).encode(
        stored, dtype, InputStatistics(flat_transform(192))
    )
    assert weight.outliers is not None
    assert np.array_equal(weight.outliers.dense(192), np.where(select(W, 0.02), W, 0))


def test_planes_need_statistics() -> None:
    with pytest.raises(ValueError, match="statistics of their inputs"):
        Planes(PlaneOptions(1)).encode(weights(), "f32", None)


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_the_stored_matrix_is_left_alone(codec: Codec) -> None:
    stored = weights()
    before = stored.copy()
    codec.encode(stored, "f32", InputStatistics(flat_transform(192)))
    assert np.array_equal(stored, before)


@pytest.mark.parametrize("shape", [(40, 192), (300, 100), (16, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_extent_bytes_are_those_of_the_record(
    codec: Codec, dtype: str, shape: tuple[int, int]
) -> None:
    stored = stored_as(gaussian(*shape), dtype)
    weight, _ = codec.encode(stored, dtype, InputStatistics(flat_transform(shape[1])))
    payload = pack_weight(weight, "in" if isinstance(weight, PlanesWeight) else "")
    assert payload.kind == codec.name
    actual = {name: extent.nbytes for name, extent in payload.extents.items()}
    planned = codec.extent_bytes(*shape, dtype)
    assert list(planned) == list(actual)  # in file order
    index = actual.pop("outlier_index", 0)
    assert abs(planned.pop("outlier_index", 0) - index) <= 0.02 * index + 8
    assert planned == actual


def test_planes_on_a_gaussian_lose_what_the_tables_lose() -> None:
    found = Planes(PlaneOptions(3)).encode(
        gaussian(256, 576), "f32", InputStatistics(flat_transform(576))
    )
    assert found[1].relative_error < 1.02 * 0.0236  # test_tables.py, DESIGN
