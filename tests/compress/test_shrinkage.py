from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.compress.shrinkage import effective_samples, shrink, shrinkage

Floats = npt.NDArray[np.float32]


def correlated(cols: int) -> Floats:
    """Channels of many sizes, neighbours alike."""
    i = np.arange(cols)
    size = np.exp(np.sin(i))
    return np.asarray(0.8 ** np.abs(i[:, None] - i) * size * size[:, None], np.float32)


def moments(truth: Floats, samples: int) -> Floats:
    root = np.linalg.cholesky(truth.astype(np.float64))
    x = np.random.default_rng(0).standard_normal((samples, len(truth))) @ root.T
    return np.asarray(x.T @ x / samples, np.float32)


def feedback_loss(believed: Floats, truth: Floats) -> float:
    """tr(E H E^T) of unit errors that are fed back as `believed` says, where `truth` holds."""
    cols = len(truth)
    panels = feedback_panels(damped(believed, 0.003), 4)
    A = panels.transpose(1, 0, 2).reshape(cols, -1)[:, :cols]
    inverse = np.linalg.inv(np.eye(cols) + A)
    return float(np.trace(inverse @ truth @ inverse.T))


def test_equal_weights_are_as_many_samples_as_they_are() -> None:
    assert effective_samples(np.full(100, 0.3, np.float32)) == pytest.approx(100)
    assert effective_samples(np.array([1, 0, 0, 0], np.float32)) == pytest.approx(1)


def test_many_samples_are_believed_and_few_are_not() -> None:
    truth = correlated(64)
    shares = [shrinkage(moments(truth, n), n) for n in (32, 512, 1 << 14)]
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.01


def test_channels_without_correlation_keep_none() -> None:
    assert shrinkage(np.diag(np.arange(1, 9)).astype(np.float32), 1e9) == 1.0
    assert shrinkage(moments(np.eye(64, dtype=np.float32), 256), 256) == 1.0


def test_the_second_moments_of_channels_stay() -> None:
    H = moments(correlated(300), 400)
    before, share = H.copy(), shrinkage(H, 400)
    shrink(H, 400)
    np.testing.assert_array_equal(np.diag(H), np.diag(before))
    off = ~np.eye(300, dtype=bool)
    np.testing.assert_allclose(H[off], before[off] * np.float32(1 - share), rtol=1e-6)


def test_channels_that_are_always_zero_do_not_count() -> None:
    small = moments(correlated(40), 100)
    wide = np.zeros((50, 50), np.float32)
    wide[:40, :40] = small
    pairs = 50 * 49 / (40 * 39)
    assert shrinkage(wide, 1000) == pytest.approx(pairs * shrinkage(small, 1000), rel=1e-4)
    assert shrinkage(np.zeros((8, 8), np.float32), 10) == 1.0


@pytest.mark.parametrize("samples", [96, 256, 1024])
def test_feedback_leaves_less_than_with_moments_as_they_are(samples: int) -> None:
    truth = correlated(64)
    found = moments(truth, samples)
    believed = found.copy()
    shrink(believed, samples)
    assert feedback_loss(believed, truth) < feedback_loss(found, truth)
