from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from loop_singular_bit.errors import TargetMissedError
from loop_singular_bit.measure.budgets import check_same_tokens, speed_plot


def run(limit: int | None, ids: str | None, drafted: str = "") -> dict[str, Any]:
    tokens = {
        "token_ids": ids, "drafted_ids": drafted, "generated_per_second": 0.5, "floor_seconds": 1.0,
    }  # fmt: skip
    return {
        "model": "m <1>", "limit_bytes": limit, "predicted": {"seconds": 2.0},
        "tokens": None if ids is None else tokens,
    }  # fmt: skip


def test_the_same_tokens_as_far_as_both_go() -> None:
    check_same_tokens([])
    check_same_tokens([run(None, "5 6 7", "5 6"), run(2 * 10**6, "5 6", "5"), run(10**6, None)])


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([run(None, "5 6 7"), run(2500000, "5 8 7")], "token 1 is 6 .* all but 8 .* --ram-mb 2.5"),
        ([run(10**6, "5 6 7", "5 6 1")], "token 2 is 7 .* but 1 with --ram-mb 1 with drafts"),
    ],
)
def test_another_token_is_told(runs: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(TargetMissedError, match=words):
        check_same_tokens(runs)


def test_a_plot_is_well_formed_and_names_budgets_and_lines() -> None:
    for runs in ([], [run(10**6, "1")], [run(10**6, "1"), run(2 * 10**6, None), run(None, "1")]):
        root = ElementTree.fromstring(speed_plot(runs))
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        assert {"measured", "predicted", "floor"} <= set(texts)
        assert ("all" in texts) == (len(runs) == 3)
        lines = [e for e in root.iter() if e.tag.endswith("polyline")]
        points = [len(line.attrib["points"].split()) for line in lines]
        assert points == [sum(run["tokens"] is not None for run in runs)] * 3
