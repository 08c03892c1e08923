"""A directory of finished stages: what a stopped command need not do again.

Whoever opens it holds its lock. It belongs to one set of settings, and a file in it is whole or not
there, whenever the process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit.container.partial import sync_directory
from loop_singular_bit.errors import InputRefusedError, ResourceError, UsageError

Arrays = dict[str, npt.NDArray[Any]]
Settings = Mapping[str, Any]  # JSON values by the name a person knows them by

SETTINGS_FILE = "settings.json"
LOCK_FILE = "lock"
_NEW = ".new"  # of a file until it is whole
_SCRATCH = "scratch"


class Stages:
    """An open directory of stages; see `open_stages`."""

    def __init__(self, folder: Path, way_out: str) -> None:
        self.folder, self._way_out = folder, way_out

    def load(self, name: str) -> Arrays | None:
        """The arrays of a finished stage, else None. Raises ResourceError when they are damaged."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ResourceError(f"{path} is damaged ({error}): {self._way_out}") from error

    def save(self, name: str, arrays: Arrays) -> None:
        """Finishes a stage: its arrays are durable when this returns."""
        path = self.folder / f"{name}.npz"
        _write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def scratch(self) -> Path:
        """An empty directory for what nobody needs later."""
        path = self.folder / _SCRATCH
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


@contextmanager
def open_stages(
    folder: Path, settings: Settings, way_out: str, *, restart: bool = False
) -> Iterator[Stages]:
    """The stages in `folder`, made where there are none; a folder with nothing in it is removed.

    way_out: what a person can do about stages of other settings; restart: they are removed.
    Raises InputRefusedError for other settings or a directory that holds something else, and
    UsageError when another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            if restart:
                _empty(folder)
            _settle(folder, settings, way_out)
            shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
            yield Stages(folder, way_out)
        finally:
            if folder.exists() and _is_bare(folder):
                shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK_FILE
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock may have removed the file since it was opened.
        if not os.path.samestat(os.fstat(fd), os.stat(path)):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(fd)
        raise UsageError(f"{folder}: another process is writing it") from error
    try:
        yield
    finally:
        os.close(fd)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _is_bare(folder: Path) -> bool:
    """There is nothing in it but what opening it makes."""
    made = {LOCK_FILE, SETTINGS_FILE + _NEW}
    if (folder / SETTINGS_FILE).exists():
        made |= {SETTINGS_FILE, _SCRATCH}
    return all(found.name in made for found in folder.iterdir())


def _settle(folder: Path, settings: Settings, way_out: str) -> None:
    """Writes the settings of a new directory, or compares them with those that are there."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        if not _is_bare(folder):
            raise InputRefusedError(
                f"{folder} has no {SETTINGS_FILE}: something else or an older version left it; "
                f"{way_out}"
            )
        text = json.dumps(settings, indent=1) + "\n"
        _write_whole(path, lambda file: file.write(text.encode()))
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ResourceError(f"{path} is damaged ({error}): {way_out}") from error
    if other := differences(found, json.loads(json.dumps(settings))):
        raise InputRefusedError(f"{folder} was begun with other settings: {other}; {way_out}")


def differences(before: Settings, now: Settings) -> str:
    """What changed, for people; empty where nothing did."""
    parts = []
    for name in dict.fromkeys((*before, *now)):
        was, is_now = before.get(name), now.get(name)
        if was == is_now:
            continue
        if isinstance(was, dict) and isinstance(is_now, dict):
            changed = sorted(k for k in was | is_now if was.get(k) != is_now.get(k))
            parts.append(f"{name} ({', '.join(changed)}) changed")
        else:
            parts.append(f"{name} was {_text(was)}, is {_text(is_now)}")
    return ", ".join(parts)


def _text(value: object) -> str:
    return "not given" if value is None else f"{value}"


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file that appears under its name whole and durable."""
    new = path.with_name(path.name + _NEW)
    with new.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_directory(path.parent)
