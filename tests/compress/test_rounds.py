from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loop_singular_bit import LoopCompressor
from loop_singular_bit.compress import compressor as module
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import EvaluationOptions
from loop_singular_bit.compress.pipeline import CalibrationOptions
from loop_singular_bit.compress.rounds import (
    AIM,
    ROUNDS,
    Round,
    best_round,
    nats_of,
    next_goal,
    worth_a_round,
)
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.measure.probe import RunFigures


def test_the_first_goal_trusts_the_prediction() -> None:
    assert next_goal(1.0, []) == pytest.approx(AIM * math.log(1.01))


def test_a_loss_twice_as_predicted_halves_the_goal() -> None:
    found = Round(0.01, 100 * math.expm1(0.02), 1000)
    assert next_goal(1.0, [found]) == pytest.approx(AIM * nats_of(1.0) / 2)


def test_a_gain_does_not_ask_for_the_impossible() -> None:
    assert 0 < next_goal(1.0, [Round(0.01, -0.5, 1000)]) < math.inf


@pytest.mark.parametrize(
    ("rounds", "size", "expected"),
    [
        ([], 1000, True),
        ([Round(0.01, 2.0, 1000)], 1200, True),
        ([Round(0.01, 2.0, 1000)], 1000, False),  # nothing left to spend
        ([Round(0.01, 0.5, 1000)], 900, True),
        ([Round(0.01, 0.9, 1000)], 985, False),  # too little to save
        ([Round(0.01, 2.0, 1000)] * ROUNDS, 1200, False),
    ],
)
def test_what_is_worth_a_round(rounds: list[Round], size: int, expected: bool) -> None:
    assert worth_a_round(1.0, rounds, size) is expected


def test_the_smallest_that_holds_the_limit_is_best() -> None:
    rounds = [Round(1, 0.2, 1200), Round(1, 0.9, 1000), Round(1, 1.1, 990)]
    assert best_round(1.0, rounds) == 1
    assert best_round(0.1, rounds) == 0  # none holds it


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "probe_run", lambda _: RunFigures(50_000_000, "direct", 8, 8, 100.0, 100.0)
    )


def compress(model: Path, output: Path, **targets: Any) -> Mapping[str, Any]:
    given: dict[str, Any] = {
        "codec": CodecOptions(),
        "calibration": CalibrationOptions(tokens=256),
        "evaluation": EvaluationOptions(context=64, tokens=128),
        "target_ram_mb": None, "target_storage_gb": None,
    }  # fmt: skip
    return LoopCompressor(**given | targets).compress_model(model, output)


def test_a_loss_allowed_is_held_with_fewer_bytes_than_one_half_of_it(
    tiny_model: Path, tmp_path: Path, probed: None
) -> None:
    sizes = {}
    for limit in (1.0, 8.0):
        out = tmp_path / f"{limit}"
        result = compress(tiny_model, out, quality_threshold=limit)
        rounds = result["rounds"]
        assert 1 <= len(rounds) <= ROUNDS
        kept = rounds[best_round(limit, [Round(**each) for each in rounds])]
        assert kept["size_bytes"] == result["size_bytes"]
        assert kept["loss_percent"] == result["quality_loss"]
        assert not [path for path in out.iterdir() if path.is_dir()]
        ResidentNetwork(out).close()
        sizes[limit] = result["size_bytes"]
    assert sizes[8.0] < sizes[1.0]


def test_storage_is_a_limit_to_what_a_loss_may_take(
    tiny_model: Path, tmp_path: Path, probed: None
) -> None:
    free = compress(tiny_model, tmp_path / "free", quality_threshold=0.5)
    storage_gb = 0.8 * free["size_bytes"] / 1e9
    result = compress(
        tiny_model, tmp_path / "held", quality_threshold=0.5, target_storage_gb=storage_gb
    )
    assert result["size_bytes"] <= 1e9 * storage_gb
    assert len(result["rounds"]) == 1  # nothing was left to spend


def test_a_miss_is_corrected(
    tiny_model: Path, tmp_path: Path, probed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, losses = module.evaluate_written, iter((20.0, 4.9))

    def found(*args: Any) -> list[Any]:
        return [replace(quality, quality_loss=next(losses)) for quality in evaluate(*args)]

    monkeypatch.setattr(module, "evaluate_written", found)
    result = compress(tiny_model, tmp_path / "out", quality_threshold=5.0)
    first, second = result["rounds"]
    assert (first["loss_percent"], second["loss_percent"]) == (20.0, 4.9)
    assert second["predicted"] < first["predicted"] / 3
    assert first["size_bytes"] < second["size_bytes"] == result["size_bytes"]


def test_fixed_planes_close_no_loop(tiny_model: Path, tmp_path: Path, probed: None) -> None:
    result = compress(
        tiny_model, tmp_path / "out", quality_threshold=1.0, codec=CodecOptions(planes=2)
    )
    assert result["rounds"] == []
