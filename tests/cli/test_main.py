from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_runs import Command

import loop_singular_bit.cli as cli_module
from loop_singular_bit.errors import (
    BudgetError,
    ConfigError,
    FormatError,
    InputRefusedError,
    InterruptedRunError,
    LoopError,
    ResourceError,
    TargetMissedError,
    TensorError,
    TokenizerError,
    UsageError,
)

COMMANDS = ("estimate", "compress", "eval", "run", "chat", "serve", "info", "verify", "doctor",
            "demo")  # fmt: skip


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """`lsb doctor` raises `error`."""

    @click.command("doctor")
    def doctor() -> None:
        raise error

    monkeypatch.setattr("loop_singular_bit.cli.doctor.doctor", doctor)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LoopError("what"), 1),
        (UsageError("what"), 2),
        (TargetMissedError("what"), 3),
        (InputRefusedError("what"), 4),
        (ConfigError("what"), 4),
        (TensorError("what"), 4),
        (TokenizerError("what"), 4),
        (FormatError("what"), 4),
        (BudgetError("what"), 4),
        (ResourceError("what"), 5),
        (InterruptedRunError("what"), 6),
        (OSError(28, "what: no space"), 5),
        (MemoryError("what"), 5),
        (click.BadParameter("what"), 2),
        (click.UsageError("what"), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_code_and_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, lsb: Command
) -> None:
    raising(monkeypatch, error)
    assert lsb("doctor").refused(code, "what")


def test_a_message_of_many_lines_becomes_one(monkeypatch: pytest.MonkeyPatch, lsb: Command) -> None:
    raising(monkeypatch, FormatError("first\n  second\n\nthird"))
    assert lsb("doctor").err == "lsb: first second third\n"


def test_an_interrupt_is_code_6(monkeypatch: pytest.MonkeyPatch, lsb: Command) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    outcome = lsb("doctor")
    assert (outcome.code, outcome.out, outcome.err.split()) == (6, "", ["lsb:", "stopped"])


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("a bug"))
    monkeypatch.setattr(sys, "argv", ["lsb", "doctor"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli_module.main()


def test_an_unknown_command_is_a_usage_error(lsb: Command) -> None:
    assert lsb("compres").refused(2, "compres")


def test_a_missing_argument_is_a_usage_error(lsb: Command) -> None:
    assert lsb("run").refused(2, "DIRECTORY")


def test_no_command_shows_the_commands(lsb: Command) -> None:
    outcome = lsb()
    assert outcome.code == 2
    assert all(f"\n  {name} " in outcome.out + outcome.err for name in COMMANDS)


def test_help_lists_the_commands_and_the_exit_codes(lsb: Command) -> None:
    for flag in ("-h", "--help"):
        outcome = lsb(flag)
        assert (outcome.code, outcome.err) == (0, "")
        assert all(f"\n  {name} " in outcome.out for name in COMMANDS)
        assert "Exit codes: 0 done" in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, lsb: Command) -> None:
    outcome = lsb(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"lsb {name}" in outcome.out


def test_the_module_is_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loop_singular_bit", "info", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("lsb: ") and done.stderr.count("\n") == 1


def test_a_reader_of_a_pipe_may_leave(tiny_artefact: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "loop_singular_bit", "info", str(tiny_artefact), "--tensors"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
