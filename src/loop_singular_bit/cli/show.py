"""What every command prints with: progress, tables, JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from loop_singular_bit.compress.pipeline import Progress

_STAGES = {
    "fetch": "fetching the model", "sample": "sampling calibration text",
    "guide": "finding what the loss depends on", "layer": "encoding layers",
    "evaluate": "evaluating", "cut": "leaving out planes", "point": "points measured",
    "kept sample": "kept: calibration text", "kept guide": "kept: what the loss depends on",
    "kept layer": "kept: encoded layers",
}  # fmt: skip
_PLAIN_SECONDS = 5.0  # a line this often when the output is not a terminal


@contextmanager
def progress_on_stderr(quiet: bool = False) -> Iterator[Progress]:
    """A progress function: a bar with the time left on a terminal, plain lines elsewhere."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _PlainLines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:26}"), BarColumn(),
        TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks or bars.tasks[tasks[stage]].finished:
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


class _PlainLines:
    """A line every few seconds, with the time left."""

    def __init__(self) -> None:
        self._stage, self._started, self._said, self._first = "", 0.0, 0.0, 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage.startswith("kept"):
            click.echo(f"{_STAGES[stage]}: {done}/{total}", err=True)
        elif stage != self._stage or done < 2:
            self._stage, self._started, self._said, self._first = stage, now, now, done
        elif done == total or now - self._said >= _PLAIN_SECONDS:
            self._said = now
            left = (now - self._started) / max(done - self._first, 1) * (total - done)
            click.echo(f"{_STAGES.get(stage, stage)}: {done}/{total}, {left:.0f} s left", err=True)


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(dict(values), indent=1))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, tab-separated elsewhere."""
    if not sys.stdout.isatty():
        click.echo(title)
        for row in (header, *rows):
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def size_text(size_bytes: float) -> str:
    """Bytes for people, decimal units."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.1f} MB"
