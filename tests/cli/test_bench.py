from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from cli_runs import Command

from loop_singular_bit.measure import speed
from loop_singular_bit.measure.speed import SpeedFigures

SHORT = ("--prompt", "8", "--generate", "4", "--repeats", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "KERNEL_SHAPE", (64, 256))


def test_json_has_every_figure(lsb: Command, tiny_artefact: Path) -> None:
    outcome = lsb("bench", "speed", str(tiny_artefact), *SHORT, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert set(found) == {field.name for field in fields(SpeedFigures)}
    assert found["prompt_tokens"] == 8


def test_people_get_a_markdown_table(lsb: Command, tiny_artefact: Path) -> None:
    outcome = lsb("bench", "speed", str(tiny_artefact), *SHORT)
    assert outcome.code == 0
    assert outcome.out.startswith("| | |\n|---|---|\n| model | ")
    assert "\n| generation of 4 | " in outcome.out
    assert "\n| ratio to the floor | " in outcome.out


def test_nothing_to_measure_is_a_usage_error(lsb: Command, tiny_artefact: Path) -> None:
    outcome = lsb("bench", "speed", str(tiny_artefact), "--repeats", "0")
    assert outcome.code == 2
    assert "must be at least 1" in outcome.err
