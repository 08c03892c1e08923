"""The `lsb` command as a user meets it: exit code, standard output, standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_runs import Command, Outcome

from loop_singular_bit.cli import main
from loop_singular_bit.measure.probe import RunFigures, RunRequest


@pytest.fixture
def lsb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `main` with the arguments given."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["lsb", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[RunRequest]:
    """Requests for a measured run, answered without starting a process: 50 MB."""
    requests: list[RunRequest] = []

    def probe(request: RunRequest) -> RunFigures:
        requests.append(request)
        return RunFigures(50_000_000, "direct", 8, 8, 100.0, 100.0)

    monkeypatch.setattr("loop_singular_bit.compress.compressor.probe_run", probe)
    monkeypatch.setattr("loop_singular_bit.measure.probe.probe_run", probe)
    return requests


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for one calibration sequence."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("The river runs slowly past the old mill. " * 40, "utf-8")
    return path
