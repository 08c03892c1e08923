from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result
from fake_model import FakeModel, FakeSession, write_tokenizer

from loop_singular_bit.cli.chat import chat
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import UsageError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def model(directory: Path, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """A fake behind `open_model`; what it was opened with is in `model.opened`."""
    model = FakeModel(Text.open(directory))

    @contextmanager
    def open_model(path: Path, **options: object) -> Iterator[FakeModel]:
        model.opened = {"directory": path, **options}  # type: ignore[attr-defined]
        yield model

    runtime = ModuleType("runtime")
    runtime.open_model = open_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "loop_singular_bit.engine.runtime", runtime)
    return model


def run(directory: Path, lines: str | bytes, *flags: str) -> Result:
    arguments = [str(directory), "--temperature", "0", "--max-tokens", "6", *flags]
    return CliRunner().invoke(chat, arguments, input=lines, catch_exceptions=False)


def test_answers_line_by_line_until_the_end_of_input(directory: Path, model: FakeModel) -> None:
    result = run(directory, "one\n\ntwo\n")
    assert result.exit_code == 0
    session = model.sessions[0]
    prompts = [advance for advance in session.advances if len(advance) > 1]
    assert len(prompts) == 2
    assert "> " not in result.stdout  # no prompt without a terminal
    text = model.text.decode(session.ids)
    assert "user\none\n" in text
    assert "user\ntwo\n" in text
    assert result.stderr == ""


def test_reset_repeats_the_first_answer(directory: Path, model: FakeModel) -> None:
    once = run(directory, "one\n").stdout
    assert run(directory, "one\n/reset\none\n").stdout == once + once


def test_exit_ends(directory: Path, model: FakeModel) -> None:
    assert run(directory, "one\n/exit\ntwo\n").stdout == run(directory, "one\n").stdout


def test_unknown_command_is_named(directory: Path, model: FakeModel) -> None:
    result = run(directory, "/quit\n")
    assert "/quit" in result.stderr
    assert model.sessions[0].advances == []


def test_options_reach_the_engine(directory: Path, model: FakeModel) -> None:
    flags = ("--ram-mb", "5", "--context", "99", "--threads", "1", "--kv", "8:4")
    flags += ("--system", "Be brief.")
    run(directory, "one\n", *flags)
    assert model.opened == {  # type: ignore[attr-defined]
        "directory": directory,
        "ram_bytes": 5_000_000,
        "context": 99,
        "threads": 1,
        "kv_bits": "8:4",
        "unpack": False,
    }
    assert "system\nBe brief." in model.text.decode(model.sessions[0].ids)


def test_message_that_does_not_fit_is_said_and_the_chat_goes_on(
    directory: Path, model: FakeModel
) -> None:
    model.context = 40
    result = run(directory, "x" * 99 + "\none\n")
    assert "the context holds 40" in result.stderr
    assert "/reset" in result.stderr
    assert len(result.stdout.strip()) > 0


def test_interrupt_cuts_the_answer_and_the_chat_goes_on(directory: Path, model: FakeModel) -> None:
    def interrupt(session: FakeSession) -> None:
        if len(session.advances) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    model.before_advance = interrupt
    result = run(directory, "one\ntwo\n", "--max-tokens", "50")
    assert result.exit_code == 0
    advances = model.sessions[0].advances
    lengths = [len(advance) for advance in advances]
    second = next(index for index in range(1, len(lengths)) if lengths[index] > 1)
    assert second == 3  # the prompt, one token, and the one that was interrupted
    assert len(lengths) > 40
    assert signal.getsignal(signal.SIGINT) is before


def test_input_that_is_not_utf8_is_refused(directory: Path, model: FakeModel) -> None:
    result = CliRunner().invoke(chat, [str(directory)], input=b"\xff\n")
    assert "not UTF-8" in str(result.exception) or "surrogate" in result.stderr


def test_drafts_do_not_change_a_conversation(directory: Path, model: FakeModel) -> None:
    model.order = 1
    plain, drafted = (run(directory, "one\ntwo\n", "--draft", n).stdout for n in ("0", "4"))
    assert plain == drafted
    assert model.sessions[0].looks == []
    assert model.sessions[1].looks != []


def test_sampling_out_of_range_is_named_before_the_model_opens(
    directory: Path, model: FakeModel
) -> None:
    with pytest.raises(UsageError, match=r"top_p is 1\.5"):
        run(directory, "", "--top-p", "1.5")
    assert model.sessions == []
