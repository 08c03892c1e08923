from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from loop_singular_bit.codec.codecs import Codec, Int8, Planes, Raw16
from loop_singular_bit.codec.numbers import from_bf16, from_pattern, to_bf16
from loop_singular_bit.codec.outliers import select
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.weights import DenseWeight, PlanesWeight
from loop_singular_bit.compress.encode import Matrix, channel_scale, encode_input, input_seed

Floats = npt.NDArray[np.float32]

PLANES = Planes(PlaneOptions(3))
OUTLIERS = Planes(PlaneOptions(3), 0.02)


def matrix(
    name: str, rows: int = 64, cols: int = 64, seed: int = 0, H: Floats | None = None
) -> Matrix:
    values = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    return Matrix(name, values, "f32", H)


def hessian(cols: int, seed: int = 1) -> Floats:
    """Of correlated inputs: three quarters of the directions carry little."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((512, cols)) * np.geomspace(1, 0.01, cols)
    x = x @ rng.standard_normal((cols, cols))
    return np.asarray(x.T @ x / len(x), np.float32)


def proxy(W: Floats, coded: Floats, H: Floats) -> float:
    E = (W - coded).astype(np.float64)
    wide = W.astype(np.float64)
    return float(np.trace(E @ H @ E.T) / np.trace(wide @ H @ wide.T))


def test_matrices_of_an_input_share_its_rotation() -> None:
    group = [matrix("q", H=hessian(64)), matrix("k", 32, seed=2, H=hessian(64, 3))]
    found = encode_input("in", group, {"q": PLANES, "k": PLANES}, 0)
    assert list(found.weights) == list(found.reports) == ["q", "k"]
    for weight in found.weights.values():
        assert isinstance(weight, PlanesWeight) and weight.transform is found.transform


def test_each_matrix_has_the_feedback_of_its_own_statistics() -> None:
    """Swapped, the statistics of two matrices of one input leave more of the loss they describe."""
    first, second = hessian(64), hessian(64, 3)
    codecs: dict[str, Codec] = {"q": PLANES, "k": PLANES}
    own = [matrix("q", 128, H=first), matrix("k", 128, seed=2, H=second)]
    swapped = [matrix("q", 128, H=second), matrix("k", 128, seed=2, H=first)]
    good, bad = (encode_input("in", group, codecs, 0).weights for group in (own, swapped))
    for given in own:
        assert given.H is not None
        losses = [proxy(given.data, found[given.name].dense(), given.H) for found in (good, bad)]
        assert losses[0] < 0.5 * losses[1]


def test_baselines_need_no_rotation() -> None:
    codecs: dict[str, Codec] = {"q": Int8(), "k": Raw16()}
    found = encode_input("in", [matrix("q"), matrix("k")], codecs, 0)
    assert found.transform is None
    assert found.absolute_errors["k"] == 0 < found.absolute_errors["q"]


def test_mixed_codecs_rotate_for_those_that_need_it() -> None:
    codecs: dict[str, Codec] = {"q": PLANES, "k": Raw16()}
    found = encode_input("in", [matrix("q", H=hessian(64)), matrix("k")], codecs, 0)
    assert found.transform is not None
    assert isinstance(found.weights["k"], DenseWeight)


@pytest.mark.parametrize("codec", [PLANES, OUTLIERS, Int8()], ids=lambda c: c.name)
def test_the_absolute_error_is_of_the_original_basis(codec: Codec) -> None:
    given = matrix("q", H=hessian(64))
    found = encode_input("in", [given], {"q": codec}, 0)
    expected = np.abs(found.weights["q"].dense().astype(np.float64) - given.data).sum()
    assert found.absolute_errors["q"] == pytest.approx(expected, rel=1e-5)


def test_statistics_lower_the_loss_they_describe() -> None:
    H = hessian(64)
    given, blind = matrix("q", 128, H=H), matrix("q", 128)
    codecs: dict[str, Codec] = {"q": PLANES}
    with_feedback = encode_input("in", [given], codecs, 0).weights["q"].dense()
    without = encode_input("in", [blind], codecs, 0).weights["q"].dense()
    W = from_pattern(given.data, "f32")
    assert proxy(W, with_feedback, H) < 0.5 * proxy(W, without, H)


def test_statistics_of_nothing_are_no_statistics() -> None:
    """Inputs that were never seen, as of an expert that no token chose."""
    given = matrix("q", H=np.zeros((64, 64), np.float32))
    found = encode_input("in", [given], {"q": PLANES}, 0)
    assert found.reports["q"].relative_error < 0.04


def test_a_matrix_of_zeros_stays_zero() -> None:
    given = Matrix("q", np.zeros((32, 64), np.float32), "f32", hessian(64))
    found = encode_input("in", [given], {"q": PLANES}, 0)
    np.testing.assert_array_equal(found.weights["q"].dense(), 0)
    assert found.absolute_errors["q"] == 0


def test_the_channel_scale_is_the_norm_of_columns_over_all_matrices() -> None:
    first, second = matrix("q"), matrix("k", 32, seed=2)
    first.data[:, 5] *= 10
    scale = channel_scale([(first, PLANES), (second, PLANES)])
    stacked = np.concatenate([first.data, second.data]).astype(np.float64)
    norms = np.sqrt((stacked**2).sum(axis=0))
    expected = norms / np.exp(np.log(norms).mean())
    np.testing.assert_allclose(scale, expected, rtol=2**-8)  # stored as bf16
    np.testing.assert_array_equal(scale, from_bf16(to_bf16(scale)))


def test_outliers_do_not_count_in_the_channel_scale() -> None:
    given = matrix("q")
    given.data[3, 7] = 1000.0
    plain, kept = (channel_scale([(given, codec)]) for codec in (PLANES, OUTLIERS))
    assert plain[7] > 20 * kept[7]
    W = given.data.copy()
    W[select(W, 0.02)] = 0
    np.testing.assert_array_equal(kept, channel_scale([(Matrix("q", W, "f32"), PLANES)]))


def test_a_column_of_zeros_has_a_scale_that_can_be_divided_by() -> None:
    given = matrix("q")
    given.data[:, 0] = 0
    scale = channel_scale([(given, PLANES)])
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert (channel_scale([(Matrix("z", np.zeros((4, 64), np.float32), "f32"), PLANES)]) == 1).all()


def test_the_seed_of_signs_depends_on_input_and_seed_alone() -> None:
    assert input_seed("layers.0.attn_in", 0) == 4181770933
    assert input_seed("layers.0.attn_in", 0) != input_seed("layers.1.attn_in", 0)
    assert input_seed("layers.0.attn_in", 0) != input_seed("layers.0.attn_in", 1)
