from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Command, copied, flip_data_bit
from tiny import TEXT


@pytest.fixture
def short(tmp_path: Path) -> tuple[str, ...]:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(TEXT) * 2, "utf-8")
    return ("--text", str(text), "--context", "64", "--tokens", "128", "--threads", "1", "-q")


def test_people_get_layers_model_and_targets(
    lsb: Command, tiny_artefact: Path, tiny_model: Path, short: tuple[str, ...]
) -> None:
    outcome = lsb("validate", tiny_artefact, "--against", tiny_model, "--max-loss", "400", *short)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.split("\t")[0] for line in lines[2:6]] == [
        "layer 0", "layer 1", "final_norm", "embed"
    ]  # fmt: skip
    assert lines[2].split("\t")[1] == "4"
    assert lines[2].endswith("\tyes")
    assert "KL mean / median / 99.9 %" in outcome.out
    assert outcome.out.count("\tmet") == 3


def test_a_missed_target_is_printed_and_is_the_exit_code(
    lsb: Command, tiny_artefact: Path, tiny_model: Path, short: tuple[str, ...]
) -> None:
    flags = ("--against", tiny_model, "--max-loss", "400", "--ram-mb", "30")
    outcome = lsb("validate", tiny_artefact, *flags, *short, "--json")
    assert outcome.code == 3
    outcome.one_line("missed: ram")
    found = json.loads(outcome.out)
    assert not found["all_targets_achieved"]
    assert found["targets"]["storage"]["met"]
    assert found["targets"]["ram"] == {"limit": 30.0, "measured": None, "met": False}
    assert len(found["tensors"]) == 20


def test_alone_it_needs_no_original(
    lsb: Command, tiny_artefact: Path, short: tuple[str, ...]
) -> None:
    outcome = lsb("validate", tiny_artefact, *short)
    assert (outcome.code, outcome.err) == (0, "")
    assert "quality" not in outcome.out
    assert outcome.out.count("\tmet") == 2


def test_damage_is_told_by_its_record(
    lsb: Command, tiny_artefact: Path, tmp_path: Path, short: tuple[str, ...]
) -> None:
    damaged = copied(tiny_artefact, tmp_path / "damaged")
    flip_data_bit(damaged)
    assert lsb("validate", damaged, *short).refused(5, "layers.1.gate", "damaged")
