from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.errors import BudgetError, ResourceError
from loop_singular_bit.measure import probe
from loop_singular_bit.measure.probe import RunFigures, RunRequest, probe_run, run_here


@pytest.fixture(scope="module")
def figures(tiny_artefact: Path) -> RunFigures:
    return probe_run(RunRequest(str(tiny_artefact), None, None, 1))


def test_figures_are_those_of_a_whole_run(figures: RunFigures) -> None:
    assert (figures.prompt_tokens, figures.new_tokens) == (64, 32)
    assert figures.prompt_per_second > 0
    assert figures.generated_per_second > 0
    assert figures.reader


def test_memory_plan_holds_the_measured_peak(tiny_artefact: Path, figures: RunFigures) -> None:
    """Libraries of another system may take a little more; far less would refuse what fits."""
    with open_model(tiny_artefact, threads=1) as model:
        planned = model.ledger.total_bytes
    assert planned / 2 < figures.ram_peak_bytes <= planned * 1.1


@pytest.mark.parametrize(
    ("context", "prompt", "new"), [(1, 1, 0), (2, 1, 1), (40, 8, 32), (80, 48, 32), (256, 64, 32)]
)
def test_short_contexts_are_filled_and_not_overrun(
    tiny_artefact: Path, context: int, prompt: int, new: int
) -> None:
    found = run_here(RunRequest(str(tiny_artefact), None, context, 1))
    assert (found.prompt_tokens, found.new_tokens) == (prompt, new)
    assert (found.generated_per_second > 0) == (new > 0)


def test_budget_that_cannot_hold_is_the_same_error_as_here(tiny_artefact: Path) -> None:
    request = RunRequest(str(tiny_artefact), 9_000_000, None, 1)
    with pytest.raises(BudgetError) as here:
        run_here(request)
    with pytest.raises(BudgetError) as there:
        probe_run(request)
    assert str(there.value) == str(here.value)


def test_failure_of_the_child_is_one_line(tiny_artefact: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_artefact, directory)
    (directory / WEIGHTS_FILE).write_bytes(b"not weights")
    with pytest.raises(ResourceError, match=r"exit code 1: .*FormatError: ") as caught:
        probe_run(RunRequest(str(directory), None, None, 1))
    assert "\n" not in str(caught.value)


def test_child_that_was_killed_is_told_by_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -9, "", "")

    monkeypatch.setattr(probe.subprocess, "run", killed)
    with pytest.raises(ResourceError, match="failed with exit code -9: no message"):
        probe_run(RunRequest("somewhere", None, None, None))


def test_request_reaches_the_child_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    request = RunRequest("a directory", 5, 6, 7)
    seen: list[list[str]] = []

    def record(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        figures = RunFigures(1, "direct", 2, 3, 4.0, 5.0)
        return subprocess.CompletedProcess(command, 0, probe.json.dumps(asdict(figures)), "")

    monkeypatch.setattr(probe.subprocess, "run", record)
    assert probe_run(request) == RunFigures(1, "direct", 2, 3, 4.0, 5.0)
    assert RunRequest(**probe.json.loads(seen[0][-1])) == request
