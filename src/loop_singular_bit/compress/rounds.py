"""Closing the loop of --max-loss: encode, measure, then spend bytes or save some.

What matrices cost is predicted to second order and on the model's own text; what an artefact then
loses is measured. Their ratio changes little with size, so it turns the loss allowed into the
prediction to aim for next.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop_singular_bit.compress.allocate import Plan
from loop_singular_bit.compress.pipeline import Written
from loop_singular_bit.measure.quality import Quality

ROUNDS = 3  # artefacts made at most: the first, and two corrections
AIM = 0.95  # of the loss allowed: what is aimed for
SAVING = 0.02  # share of the bytes that is worth encoding once more
NATS_LEAST = 1e-4  # a loss measured as less, or as a gain, is noise


@dataclass(frozen=True)
class Round:
    """An artefact: nats a token predicted, quality loss measured [percent], and its bytes."""

    predicted: float
    loss_percent: float
    size_bytes: int


def nats_of(loss_percent: float) -> float:
    """A quality loss as nats a token: the perplexity's logarithm moves by as much."""
    return math.log1p(loss_percent / 100)


def next_goal(limit_percent: float, rounds: Sequence[Round]) -> float:
    """Predicted nats to aim for after `rounds`, so that the measured loss is AIM of the limit."""
    goal = AIM * nats_of(limit_percent)
    if not rounds:
        return goal
    last = rounds[-1]
    return goal * last.predicted / max(nats_of(last.loss_percent), NATS_LEAST)


def worth_a_round(limit_percent: float, rounds: Sequence[Round], size_bytes: int) -> bool:
    """Whether a plan of `size_bytes` is worth encoding: more bytes after a miss, SAVING of them
    less after a success."""
    if not rounds:
        return True
    if len(rounds) == ROUNDS:
        return False
    last = rounds[-1]
    if last.loss_percent > limit_percent:
        return size_bytes > last.size_bytes
    return size_bytes < (1 - SAVING) * last.size_bytes


def best_round(limit_percent: float, rounds: Sequence[Round]) -> int:
    """Index of the smallest artefact that holds the limit, else of the one that loses least."""
    holding = [i for i, found in enumerate(rounds) if found.loss_percent <= limit_percent]
    if holding:
        return min(holding, key=lambda i: rounds[i].size_bytes)
    return min(range(len(rounds)), key=lambda i: rounds[i].loss_percent)


@dataclass(frozen=True)
class Made:
    """An artefact and what was measured on it."""

    written: Written
    quality: Quality


def close_loop(
    limit_percent: float,
    predicted: Callable[[Plan], float],
    planned: Callable[[float], Plan],
    make: Callable[[Plan, Path], Made],
    folder: Path,
) -> tuple[Made, list[Round]]:
    """The best artefact of some rounds, in a directory in `folder`, and what each round gave.

    predicted(plan): the nats it costs. planned(nats): the smallest plan predicted to cost as
    little. make(plan, directory): encodes and measures it, or finds that a stopped run has.
    """
    rounds: list[Round] = []
    best: Made | None = None
    plan = planned(next_goal(limit_percent, rounds))
    while worth_a_round(limit_percent, rounds, plan.size_bytes):
        place = folder / f"round-{len(rounds) + 1}"
        place.mkdir(exist_ok=True)
        made = make(plan, place)
        rounds.append(Round(predicted(plan), made.quality.quality_loss, plan.size_bytes))
        better = best_round(limit_percent, rounds) == len(rounds) - 1
        dropped, best = (best, made) if better else (made, best)
        if dropped is not None:
            shutil.rmtree(dropped.written.directory)
        plan = planned(next_goal(limit_percent, rounds))
    assert best is not None
    return best, rounds
