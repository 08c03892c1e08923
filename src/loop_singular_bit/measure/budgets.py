"""One artefact under several memory budgets: the same tokens, at different speeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loop_singular_bit.errors import TargetMissedError
from loop_singular_bit.measure.plot import line_plot


def budget_name(limit_bytes: int | None) -> str:
    """A budget as `--ram-mb` takes it."""
    return "all" if limit_bytes is None else f"{limit_bytes / 1e6:g}"


def check_same_tokens(runs: Sequence[dict[str, Any]]) -> None:
    """Compares what the runs (MemoryFigures as dictionaries) generated, with drafts and without, as
    far as both go. Raises TargetMissedError naming the first token that differs."""
    found = [
        (f"--ram-mb {budget_name(run['limit_bytes'])}{drafts}", run["tokens"][key].split())
        for run in runs
        if run["tokens"] is not None
        for key, drafts in (("token_ids", ""), ("drafted_ids", " with drafts"))
    ]
    for name, ids in found[1:]:
        first, expected = found[0]
        for place, (one, other) in enumerate(zip(expected, ids, strict=False)):
            if one != other:
                raise TargetMissedError(
                    f"token {place} is {one} with {first} but {other} with {name}: a budget must "
                    "not change the text; run `lsb verify`, then report this"
                )


def speed_plot(runs: Sequence[dict[str, Any]]) -> str:
    """Tokens a second against budgets, as SVG; runs that did not finish are left out."""
    done = [run for run in runs if run["tokens"] is not None]
    return line_plot(
        f"{done[0]['model'] if done else 'nothing'}: tokens a second by --ram-mb",
        [budget_name(run["limit_bytes"]) for run in done],
        {
            "measured": [run["tokens"]["generated_per_second"] for run in done],
            "predicted": [1 / run["predicted"]["seconds"] for run in done],
            "floor": [1 / run["tokens"]["floor_seconds"] for run in done],
        },
    )
