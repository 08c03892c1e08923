"""A directory that appears whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loop_singular_bit.compress.stages import SETTINGS_FILE
from loop_singular_bit.errors import InputRefusedError, InterruptedRunError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears at `path` complete or not at all.

    Raises InputRefusedError when `path` exists and is not an empty directory, or a compression
    that can go on lies where this would be written.
    """
    refuse_existing(path)
    partial = path.with_name(path.name + ".partial")
    if (partial / SETTINGS_FILE).exists():
        raise InputRefusedError(
            f"{partial} holds what a stopped `lsb compress` has finished: let it go on, remove it, "
            "or name another output"
        )
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"stopped; nothing of {path} was left behind, run again"
        ) from error
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def refuse_existing(path: Path) -> None:
    """Raises InputRefusedError when `path` exists and is not an empty directory."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputRefusedError(f"output {path} exists and is not an empty directory: name another")
