"""The predicted curve of loss against size, from a short look at what the loss depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from loop_singular_bit.budget import GIGABYTE, Budgets
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import (
    CalibrationOptions,
    Progress,
    make_calibration,
    make_plan,
    silent,
)
from loop_singular_bit.compress.rounds import nats_of
from loop_singular_bit.compress.sensitivity import worth_keeping
from loop_singular_bit.compress.source import Source
from loop_singular_bit.compress.spend import predicted_nats
from loop_singular_bit.errors import BudgetError
from loop_singular_bit.models.spec import parameter_count

BITS = (2.0, 2.5, 3.0, 3.35, 3.9, 4.2, 4.5, 5.0, 6.0)
TOKENS = 1024  # of text: enough to rank matrices, seconds to minutes of reading
CHARS = 16 * TOKENS  # of text that are looked at


@dataclass(frozen=True)
class CurvePoint:
    """One size; nats: predicted KL of a token; loss_percent: the quality loss that makes."""

    size_bytes: int
    bits_per_weight: float
    nats: float
    loss_percent: float


def loss_curve(
    source: Source,
    options: CodecOptions,
    text: str,
    loss_percent: float | None = None,
    bits: Sequence[float] = BITS,
    progress: Progress = silent,
) -> list[CurvePoint]:
    """Predicted points by size: at `bits` per weight, sizes that cannot be left out, and at the
    smallest size that holds `loss_percent`. text: what the loss is looked at on, TOKENS of it.

    Raises InputRefusedError when the text is too short.
    """
    sensitivity, kept = _sensitivity(source, text, progress), worth_keeping(source, options)

    def point(budgets: Budgets, nats: float = 0.0) -> CurvePoint:
        plan = make_plan(source, options, budgets, 0, sensitivity, nats, kept)
        cost = predicted_nats(plan.codecs, sensitivity, kept)
        bits = 8 * plan.size_bytes / parameter_count(source.spec)
        return CurvePoint(plan.size_bytes, bits, cost, 100 * math.expm1(cost))

    found = []
    for each in bits:
        try:
            found.append(point(Budgets(each * parameter_count(source.spec) / 8 / GIGABYTE)))
        except BudgetError:
            continue
    if loss_percent is not None:
        found.append(point(Budgets(), nats_of(loss_percent)))
    return sorted(set(found), key=lambda p: p.size_bytes)


def _sensitivity(source: Source, text: str, progress: Progress) -> dict[str, float]:
    network = OriginalNetwork(source, resident_layers(source))
    with TemporaryDirectory(prefix="lsb-") as folder:
        options = CalibrationOptions(TOKENS, text[:CHARS])
        found = make_calibration(source, network, options, Path(folder), progress)
    assert found.sensitivity is not None
    return dict(found.sensitivity)
