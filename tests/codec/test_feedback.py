from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from codec_data import correlated, flat_transform

from loop_singular_bit.codec import reference
from loop_singular_bit.codec.feedback import damped, feedback_panels


def unpacked(panels: npt.NDArray[np.float32], cols: int) -> npt.NDArray[np.float32]:
    """A [cols, cols] from panels of 32 columns; the columns beyond are zero."""
    A = panels.transpose(1, 0, 2).reshape(cols, -1)
    assert not A[:, cols:].any()
    return A[:, :cols]


@pytest.mark.parametrize("block", [4, 16, 64])
@pytest.mark.parametrize("cols", [4, 48, 64, 100])
def test_panels_hold_the_factor_of_the_reference(cols: int, block: int) -> None:
    H = damped(correlated(cols), 0.01)
    panels = feedback_panels(H, block)
    assert panels.shape == (-(-cols // 32), cols, 32)
    assert panels.dtype == np.float32
    expected = reference.feedback_factor(H, block)
    assert np.abs(unpacked(panels, cols) - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("block", [4, 16])
def test_the_factor_leaves_a_block_diagonal(block: int) -> None:
    """H = (I + A) D (I + A)^T: the property the encoder relies on."""
    H = damped(flat_transform(64).hessian(correlated(64)), 0.01)
    A = unpacked(feedback_panels(H, block), 64).astype(np.float64)
    left = np.linalg.inv(np.eye(64) + A)
    D = left @ H @ left.T
    inside = np.equal.outer(np.arange(64) // block, np.arange(64) // block)
    assert np.abs(D[~inside]).max() < 1e-4 * np.abs(D).max()
    below = np.arange(64)[:, None] // block >= np.arange(64) // block
    assert np.abs(A[below]).max() < 1e-6


def test_independent_inputs_need_no_feedback() -> None:
    H = np.diag(np.arange(1, 65)).astype(np.float32)
    assert np.abs(feedback_panels(H, 4)).max() < 1e-12


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    H = correlated(48)
    before = H.copy()
    found = damped(H, 0.01)
    assert np.array_equal(H, before)
    added = found - H
    assert np.allclose(np.diag(added), 0.01 * np.diag(H).mean(), rtol=1e-3)
    assert not added[~np.eye(48, dtype=bool)].any()


def test_no_statistics_become_the_identity() -> None:
    found = damped(np.zeros((8, 8), np.float32), 0.01)
    assert np.array_equal(found, np.eye(8))


def test_inputs_that_never_move_can_be_factored_once_damped() -> None:
    H = correlated(64)
    H[10], H[:, 10] = 0, 0
    assert np.isfinite(feedback_panels(damped(H, 0.01), 4)).all()
