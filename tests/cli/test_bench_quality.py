"""`lsb bench quality` on the tiny model: the table, the files, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Command

from loop_singular_bit.cli import quality_plot
from loop_singular_bit.compress import points as study
from loop_singular_bit.measure import llama_cpp

SHORT = ("--context", "64", "--tokens", "64", "--calibration-tokens", "256", "--threads", "1", "-q")


def texts(folder: Path) -> list[str]:
    """Two evaluation texts of different kinds, as flags."""
    kinds = {
        "story": "The miller counts 12 sacks of flour. ",
        "code": "for i in range(9): print(i)\n",
    }
    flags = []
    for name, text in kinds.items():
        (folder / f"{name}.txt").write_text(text * 60, "utf-8")
        flags += ["--text", str(folder / f"{name}.txt")]
    return flags


def test_points_are_measured_tabled_and_drawn(
    lsb: Command, tiny_model: Path, tmp_path: Path, calibration_file: Path
) -> None:
    output = tmp_path / "study"
    flags = ("--points", "8.0,int8,uniform1", "--calibration", calibration_file, *SHORT)
    outcome = lsb("bench", "quality", tiny_model, "-o", output, *texts(tmp_path), *flags)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].endswith("| top-1 | loss, KL story | loss, KL code |")
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    assert {row[1] for row in cells} == {"loops 8.0", "baseline uniform1", "baseline int8"}
    assert (bits := [float(row[2]) for row in cells]) == sorted(bits)
    assert (output / "quality.md").read_text("utf-8") == outcome.out
    assert "<svg" in (output / "quality.svg").read_text("utf-8")
    found = json.loads((output / "quality.json").read_text("utf-8"))
    assert [point["name"] for point in found["points"]] == ["8.0", "int8", "uniform1"]


def test_the_same_points_give_the_same_picture(
    tiny_model: Path, tmp_path: Path, lsb: Command, calibration_file: Path
) -> None:
    flags = ("--points", "int8", "--calibration", calibration_file, *SHORT)
    assert lsb("bench", "quality", tiny_model, "-o", tmp_path / "study", *flags).code == 0
    picture = tmp_path / "study" / "quality.svg"
    point = study.load_point(tmp_path / "study" / "int8.json")
    quality_plot.write_plot([point], tiny_model.name, tmp_path / "again.svg")
    assert picture.read_bytes() == (tmp_path / "again.svg").read_bytes()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--points", ","), 2, ("--points",)),
        (("--points", "20"), 2, ("20", "16 bits")),
        (("--points", "0.1", "--tokens", "64", "--context", "64"), 4, ("smallest",)),
    ],
)
def test_bad_points_are_refused(
    lsb: Command, tiny_model: Path, tmp_path: Path, flags: tuple[str, ...], code: int,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    outcome = lsb("bench", "quality", tiny_model, "-o", tmp_path / "study", "-q", *flags)
    assert outcome.refused(code, *words)


def test_llama_cpp_that_is_not_installed_is_named(
    lsb: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    llama_cpp._llama.cache_clear()
    outcome = lsb("bench", "quality", tiny_model, "-o", tmp_path / "s", "--points", "Q4_K_M")
    assert outcome.refused(2, "llama-cpp-python")


def test_the_plot_without_matplotlib_names_the_extra(
    lsb: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_plot, "find_spec", lambda name: None)
    outcome = lsb("bench", "quality", tiny_model, "-o", tmp_path / "study")
    assert outcome.refused(2, "loop-singular-bit[bench]")
    assert not (tmp_path / "study").exists()


def test_two_texts_of_one_name_are_refused(
    lsb: Command, tiny_model: Path, tmp_path: Path, calibration_file: Path
) -> None:
    flags = ("--text", calibration_file, "--text", calibration_file)
    outcome = lsb("bench", "quality", tiny_model, "-o", tmp_path / "study", *flags)
    assert outcome.refused(4, "calibration")
