"""How far second moments of few tokens are to be believed.

Error feedback hides the errors of columns where the tokens say nothing goes; of a few thousand
tokens much of that is chance. Correlations between channels are therefore made smaller, the
channels' own second moments, which are known far better, stay: H -> (1 - s) H + s diag(H).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ROWS = 256  # of H looked at together
# Tokens of a text depend on each other and have heavy tails, which the estimate for independent
# Gaussian ones knows nothing of (docs/decisions/0020).
CAUTION = 2.0


def effective_samples(weights: Floats) -> float:
    """Number of equally weighted samples that say as much as samples of these weights."""
    wide = weights.astype(np.float64)
    return float(wide.sum() ** 2 / np.square(wide).sum())


def shrinkage(H: Floats, samples: float) -> float:
    """The share s, 0..1: CAUTION times the one with the least expected squared error of the
    correlations (Schaefer and Strimmer 2005). H [cols, cols] symmetric."""
    squares = _squared_correlations(H)
    if squares <= 0:
        return 1.0
    pairs = len(H) * (len(H) - 1.0)
    return min(1.0, CAUTION * pairs / samples / squares)


def shrink(H: Floats, samples: float) -> None:
    """Makes the correlations of H smaller, in place."""
    diagonal = np.diag(H).copy()
    H *= np.float32(1 - shrinkage(H, samples))
    H[np.diag_indices(len(H))] = diagonal


def _squared_correlations(H: Floats) -> float:
    """Sum over pairs of different channels; channels that are always 0 have none."""
    power = np.diag(H)
    inverse = np.divide(1, power, out=np.zeros_like(power), where=power > 0)
    total = 0.0
    for start in range(0, len(H), ROWS):
        rows = np.square(H[start : start + ROWS]) * inverse
        here = np.arange(len(rows))
        rows[here, start + here] = 0
        total += float(inverse[start : start + ROWS] @ rows.sum(axis=1, dtype=np.float64))
    return total
