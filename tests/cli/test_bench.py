from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from cli_runs import Command

from loop_singular_bit.measure import capped_run, disk, memory_bench, speed
from loop_singular_bit.measure.capped_run import Cap, Ended
from loop_singular_bit.measure.memory_bench import MemoryFigures, MemoryOptions
from loop_singular_bit.measure.speed import SpeedFigures

SHORT = ("--prompt", "8", "--generate", "4", "--repeats", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "KERNEL_SHAPE", (64, 256))
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.05)


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


def test_a_shape_is_written_and_says_what_it_is(lsb: Command, tmp_path: Path) -> None:
    directory = tmp_path / "shape"
    outcome = lsb("bench", "make-shape", "tiny", "-o", directory, "--bpw", "4.5", "-q")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{directory}: synthetic tiny, ")
    assert json.loads(lsb("info", directory, "--json").out)["synthetic"] == "random, tiny"
    assert "synthetic\trandom, tiny" in lsb("info", directory).out
    assert lsb("verify", "-q", directory).code == 0


def test_a_real_artefact_is_not_called_synthetic(lsb: Command, tiny_artefact: Path) -> None:
    assert "synthetic" not in json.loads(lsb("info", tiny_artefact, "--json").out)


def test_json_of_a_shape_is_its_report(lsb: Command, tmp_path: Path) -> None:
    flags = ("-o", tmp_path / "shape", "--bpw", "4.5", "--seed", "2", "-q", "--json")
    found = json.loads(lsb("bench", "make-shape", "tiny", *flags).out)
    assert found == json.loads((tmp_path / "shape" / "report.json").read_text("utf-8"))
    assert found["seed"] == 2


def test_unknown_shape_is_refused_with_the_known_ones(lsb: Command, tmp_path: Path) -> None:
    outcome = lsb("bench", "make-shape", "gpt-5", "-o", tmp_path / "new", "-q")
    assert outcome.refused(2, "gpt-5", "mistral-7b")


RUN = ("--context", "64", "--prompt", "8", "--generate", "4", "--threads", "1")


def test_memory_is_measured_printed_and_saved(
    lsb: Command, tiny_artefact: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "memory.json"
    outcome = lsb("bench", "memory", tiny_artefact, *RUN, "--json", "--save", saved)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found == json.loads(saved.read_text("utf-8"))
    assert set(found) == {f.name for f in fields(MemoryFigures)} | {"kept"}
    assert (found["limit_bytes"], found["outcome"], found["kept"]) == (
        400_000_000,
        "finished",
        True,
    )
    assert found["estimated_bytes"] == sum(found["tokens"]["ledger"].values())


def test_people_get_the_memory_as_a_table(lsb: Command, tiny_artefact: Path) -> None:
    outcome = lsb("bench", "memory", tiny_artefact, *RUN, "--ram-mb", "all")
    assert outcome.code == 0
    rows = dict(line.split("\t") for line in outcome.out.splitlines()[1:])
    assert rows["limit"] == "none"
    assert rows["outcome"] == "finished"
    assert rows["peak with page cache"].endswith(" MB")
    assert "process" in rows["ledger"]


def test_several_budgets_give_one_table_and_a_plot(
    lsb: Command, tiny_artefact: Path, tmp_path: Path
) -> None:
    files = ("--save", tmp_path / "all.json", "--plot", tmp_path / "speed.svg")
    outcome = lsb("bench", "memory", tiny_artefact, *RUN, "--ram-mb", "300,all", *files)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.split("\t") for line in outcome.out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["--ram-mb", "300", "all"]
    assert all(len(line) == len(lines[0]) for line in lines)
    runs = json.loads((tmp_path / "all.json").read_text("utf-8"))["runs"]
    assert [run["limit_bytes"] for run in runs] == [300_000_000, None]
    assert len(runs[0]["tokens"]["token_ids"].split()) == 4
    assert "300" in (tmp_path / "speed.svg").read_text("utf-8")


def test_other_tokens_under_another_budget_are_a_missed_target(
    lsb: Command, tiny_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = memory_bench.measure_memory

    def changed(directory: Path, options: MemoryOptions) -> MemoryFigures:
        found = measured(directory, options)
        if options.ram_bytes is None or found.tokens is None:
            return found
        return replace(found, tokens=replace(found.tokens, token_ids="-1 -1 -1 -1"))

    monkeypatch.setattr(memory_bench, "measure_memory", changed)
    outcome = lsb("bench", "memory", tiny_artefact, *RUN, "--ram-mb", "all,300")
    assert outcome.code == 3
    outcome.one_line("token 0 is", "--ram-mb all", "-1 with --ram-mb 300")


def test_a_peak_beyond_the_budget_is_a_missed_target(
    lsb: Command, tiny_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself is real; it is told of a larger limit than the one that is held against it."""

    def larger(command: list[str], cap: Cap, files: list[Path]) -> Ended:
        ended = capped_run.run_capped(command, replace(cap, limit_bytes=None), files)
        use = replace(ended.use, peak_bytes=cap.limit_bytes + 1)
        return replace(ended, use=use)

    monkeypatch.setattr(memory_bench, "run_capped", larger)
    outcome = lsb("bench", "memory", tiny_artefact, *RUN)
    assert outcome.code == 3
    assert "outcome\tfinished" in outcome.out
    outcome.one_line("--ram-mb 400", "peak 400.0 MB")


def test_a_budget_that_the_engine_refuses_is_refused(lsb: Command, tiny_artefact: Path) -> None:
    assert lsb("bench", "memory", tiny_artefact, *RUN, "--ram-mb", "9").refused(4, "--ram-mb 9")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--ram-mb", "much"), ("much", "number")),
        (("--prompt", "4096"), ("4096", "--context")),
        (("--cgroup", "."), ("not a memory control group",)),
    ],
)
def test_bad_memory_options_are_usage_errors(
    lsb: Command, tiny_artefact: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert lsb("bench", "memory", tiny_artefact, *flags).refused(2, *words)
