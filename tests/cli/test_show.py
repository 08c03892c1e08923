from __future__ import annotations

import io
import json
import sys

import pytest

from loop_singular_bit.cli import show
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0.0 MB"), (98_000_000, "98.0 MB"), (3_530_000_000, "3.53 GB")]
)
def test_sizes_are_decimal(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_a_table_is_tab_separated_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ("name", "value"), [("size", "1"), ("loss", "2")])
    assert capsys.readouterr().out == "title\nname\tvalue\nsize\t1\nloss\t2\n"


def test_a_table_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table("title", ("name", "value"), [("size", "12345")])
    drawn = sys.stdout.getvalue()
    assert "title" in drawn and "12345" in drawn and "\t" not in drawn


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": 1, "b": {"c": None}})
    assert json.loads(capsys.readouterr().out) == {"a": 1, "b": {"c": None}}


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr(quiet=True) as progress:
        progress("layer", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_plain_lines_come_at_the_end_and_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 1.0, 10.0, 11.0, 20.0])
    monkeypatch.setattr(show.time, "monotonic", lambda: next(now))
    with progress_on_stderr() as progress:
        for done in (1, 2, 3, 4, 5):
            progress("layer", done, 5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "encoding layers: 3/5, 10 s left",
        "encoding layers: 5/5, 0 s left",
    ]


def test_what_is_kept_is_said_at_once_and_counts_for_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr(show.time, "monotonic", lambda: next(now))
    with progress_on_stderr() as progress:
        progress("kept layer", 6, 9)
        for done in (7, 8, 9):
            progress("layer", done, 9)
    assert capsys.readouterr().err.splitlines() == [
        "kept: encoded layers: 6/9",
        "encoding layers: 8/9, 10 s left",
        "encoding layers: 9/9, 0 s left",
    ]


def test_bars_are_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_on_stderr() as progress:
        progress("layer", 1, 2)
        progress("layer", 2, 2)
        progress("evaluate", 1, 1)
    drawn = sys.stderr.getvalue()
    assert "encoding layers" in drawn and "2/2" in drawn and "evaluating" in drawn
