"""The `lsb` command as a user meets it: exit code, standard output, standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Command, Outcome
from tiny import write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.cli import main
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.pipeline import Calibration, make_plan, write_artefacts
from loop_singular_bit.compress.source import open_source
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


@pytest.fixture(scope="session")
def deep_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers of planes with outliers; the embedding and the head apart."""
    folder = tmp_path_factory.mktemp("deep")
    source = open_source(str(write_tiny_model(folder / "m", layers=8, tied=False)))
    plan = make_plan(source, CodecOptions(planes=2, outlier_ratio=0.02), Budgets())
    (folder / "a").mkdir()
    tokens = np.full((2, 64), 7)
    write_artefacts(source, [(plan, folder / "a")], Calibration(tokens), 0)
    return folder / "a"
