"""Logits to a token: greedy, or a draw that depends on nothing but the seed and the position."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.errors import ResourceError, UsageError

SEED_MAX = 2**64 - 1
TEMPERATURE_MAX = 100.0
TOP_K_MAX = 1_000_000

_Ids = npt.NDArray[np.intp]
_Floats = npt.NDArray[np.float64]


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raises UsageError naming the field, its value and its range, both ends included."""
    if not low <= value <= high:  # written so that NaN fails too
        raise UsageError(f"{field} is {value}: expected a number from {low} to {high}")


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token. The default is greedy.

    temperature  divides the logits; 0 takes the likeliest token and ignores the filters below
    top_k        keep the k likeliest tokens; 0 keeps all
    top_p        keep the fewest likeliest tokens whose probabilities reach p (arXiv 1904.09751)
    min_p        keep tokens at least p times as likely as the likeliest (arXiv 2407.01082)
    seed         None draws one from the operating system

    Raises UsageError on a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, TEMPERATURE_MAX)
        check_range("top_k", self.top_k, 0, TOP_K_MAX)
        check_range("top_p", self.top_p, 0.0, 1.0)
        check_range("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            check_range("seed", self.seed, 0, SEED_MAX)


@dataclass(frozen=True)
class Choice:
    """A chosen token and the natural logarithm of its probability in the model's own distribution,
    before temperature and filters."""

    id: int
    logprob: float


class Sampler:
    """Picks tokens under fixed options. The draw at a position is a function of (seed, position):
    it does not depend on what was drawn before, nor on how many requests run."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self.seed = secrets.randbits(64) if options.seed is None else options.seed

    def pick(self, logits: npt.NDArray[np.float32], position: int) -> Choice:
        """The token for `position` (tokens before it in the sequence) from logits [vocab].

        Raises ResourceError when the logits hold no finite maximum.
        """
        best = int(logits.argmax())  # the lowest id on ties
        top = logits[best]
        if not math.isfinite(top):
            raise ResourceError(
                f"the largest logit at position {position} is {top}, expected a finite number:"
                " check the model with 'lsb verify'"
            )
        below = logits - top
        chosen = best
        if self.options.temperature > 0:
            chosen = self._draw(below.astype(np.float64), position)
        total = float(np.exp(below).sum(dtype=np.float64))
        return Choice(chosen, float(below[chosen]) - math.log(total))

    def _draw(self, values: _Floats, position: int) -> int:
        """Draw from logits whose maximum is 0: temperature, then top-k, top-p, min-p."""
        options = self.options
        ids = _top_k(values, options.top_k)
        # A temperature near 0 may overflow to -inf, which is a probability of 0.
        with np.errstate(over="ignore"):
            weights = np.exp(values[ids] / options.temperature)
        ids, weights = _top_p(ids, weights, options.top_p)
        likely = weights >= options.min_p * weights.max()
        ids, weights = ids[likely], weights[likely]
        cumulative = weights.cumsum()
        point = _uniform(self.seed, position) * cumulative[-1]
        return int(ids[np.searchsorted(cumulative, point, side="right")])


def _top_k(values: _Floats, k: int) -> _Ids:
    """Ids of the k largest values in ascending order; the lowest ids win ties."""
    if k == 0 or k >= values.size:
        return np.arange(values.size)
    threshold = np.partition(values, values.size - k)[values.size - k]
    above = np.flatnonzero(values > threshold)
    ties = np.flatnonzero(values == threshold)[: k - above.size]
    return np.sort(np.concatenate([above, ties]))


def _top_p(ids: _Ids, weights: _Floats, p: float) -> tuple[_Ids, _Floats]:
    """The fewest likeliest ids whose weights reach p of the total, at least one, ids ascending."""
    if p == 1.0:
        return ids, weights
    total = float(weights.sum())
    # What is lighter than this cannot be among them (all of it together weighs less than 1 - p),
    # so that sorting the whole vocabulary is avoided.
    heavy = np.flatnonzero(weights >= (1.0 - p) * total / weights.size)
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    count = int(np.searchsorted(weights[order].cumsum(), p * total)) + 1
    kept = np.sort(order[:count])
    return ids[kept], weights[kept]


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits: Philox keyed by the seed, counted by the position."""
    generator = np.random.Philox(key=seed, counter=position)
    return float(int(generator.random_raw()) >> 11) * 2.0**-53
