from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Command, copied


def test_json_is_computed_from_the_files(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("info", tiny_artefact, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert (found["family"], found["layers"], found["vocab"]) == ("llama", 2, 512)
    assert found["size_bytes"] == found["report"]["size_bytes"]
    assert "tensors" not in found and "tensors" not in found["report"]


def test_tensors_are_listed_on_request(tiny_artefact: Path, lsb: Command) -> None:
    found = json.loads(lsb("info", tiny_artefact, "--json", "--tensors").out)["tensors"]
    gate = next(tensor for tensor in found if tensor["name"] == "layers.0.gate")
    assert (gate["kind"], gate["shape"], gate["planes"]) == ("planes", "128 x 64", "4")
    assert float(gate["bits per weight"]) > 4
    assert {"embed", "embed.in", "layers.1.attn_norm", "final_norm"} <= {t["name"] for t in found}


def test_people_get_tables(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("info", tiny_artefact, "--tensors")
    assert outcome.code == 0
    assert "\nfamily\tllama\n" in outcome.out
    assert "report.json" in outcome.out
    assert "\nlayers.0.gate\tplanes\t128 x 64\t4\t" in outcome.out


def test_an_artefact_without_its_report(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    bare = copied(tiny_artefact, tmp_path / "bare")
    (bare / "report.json").unlink()
    assert json.loads(lsb("info", bare, "--json").out)["report"] is None
    assert lsb("info", bare).code == 0


@pytest.mark.parametrize(("text", "word"), [("{", "not JSON"), ("[]", "expected an object")])
def test_a_broken_report_is_refused(
    text: str, word: str, tiny_artefact: Path, tmp_path: Path, lsb: Command
) -> None:
    broken = copied(tiny_artefact, tmp_path / "broken")
    (broken / "report.json").write_text(text, "utf-8")
    assert lsb("info", broken).refused(4, "report.json", word)


def test_an_empty_directory_is_refused(tmp_path: Path, lsb: Command) -> None:
    assert lsb("info", tmp_path).refused(4, "config.json")
