"""A memory control group for one process (Linux), below a group that was handed over for it.

Only a group that its owner names is touched: the group that a process finds itself in belongs to
whoever started it (a service manager, a container runtime), and moving processes out of it would
hide them from that owner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loop_singular_bit.errors import ResourceError, UsageError

_REMOVE_SECONDS = 5.0  # the kernel may need a moment after the last process of a group has ended


@dataclass(frozen=True)
class Interface:
    """The names that one version of the kernel's interface has."""

    version: str
    limit: str
    swap_limit: str
    swap_value: str  # "" stands for the limit itself
    peak: str
    anonymous: str
    file: str
    events: str


V1 = Interface(
    "cgroup v1", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "",
    "memory.max_usage_in_bytes", "total_rss", "total_cache", "memory.oom_control",
)  # fmt: skip
V2 = Interface(
    "cgroup v2", "memory.max", "memory.swap.max", "0", "memory.peak", "anon", "file",
    "memory.events",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryGroup:
    """One group: what it may use and what it has used."""

    directory: Path
    interface: Interface

    def limit(self, limit_bytes: int) -> None:
        """Page cache counts; there is no swapping out of it."""
        face = self.interface
        self._write(face.limit, str(limit_bytes))
        # Kernels without swap accounting have no such file, and then nothing is swapped for it.
        if (self.directory / face.swap_limit).exists():
            self._write(face.swap_limit, face.swap_value or str(limit_bytes))

    def command(self, command: list[str]) -> list[str]:
        """`command` inside the group: it enters before it begins, so every page of it counts."""
        script = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", script, str(self.directory / "cgroup.procs"), *command]

    @property
    def peak_bytes(self) -> int:
        return int(self._read(self.interface.peak))

    @property
    def oom_kills(self) -> int:
        return self._table(self.interface.events).get("oom_kill", 0)

    def split(self) -> tuple[int, int]:
        """Anonymous bytes and file bytes (page cache) now."""
        table = self._table("memory.stat")
        return table[self.interface.anonymous], table[self.interface.file]

    def _table(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in self._read(name).splitlines())
        return {key: int(value) for key, value in lines}

    def _read(self, name: str) -> str:
        try:
            return (self.directory / name).read_text("ascii")
        except OSError as error:
            raise ResourceError(f"{self.directory / name}: {error.strerror}") from error

    def _write(self, name: str, value: str) -> None:
        try:
            (self.directory / name).write_text(value, "ascii")
        except OSError as error:
            raise ResourceError(f"{self.directory / name} = {value}: {error.strerror}") from error


@contextmanager
def memory_group(parent: Path, limit_bytes: int | None) -> Iterator[MemoryGroup]:
    """A new group below `parent`, removed at the end; its processes must have ended by then.

    Raises UsageError when `parent` is no memory control group that can be used, ResourceError when
    the kernel refuses.
    """
    interface = _interface(parent)
    directory = parent / f"lsb-bench-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        raise UsageError(
            f"--cgroup {parent}: no group can be made in it: {error.strerror}"
        ) from error
    try:
        group = MemoryGroup(directory, interface)
        if not (directory / interface.limit).exists():
            raise UsageError(
                f"--cgroup {parent}: its groups have no {interface.limit}; "
                "write +memory to its cgroup.subtree_control"
            )
        if limit_bytes is not None:
            group.limit(limit_bytes)
        yield group
    finally:
        _remove(directory)


def _interface(parent: Path) -> Interface:
    if (parent / V1.limit).is_file():
        return V1
    if (parent / "cgroup.controllers").is_file():
        return V2
    raise UsageError(f"--cgroup {parent}: not a memory control group")


def _remove(directory: Path) -> None:
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            directory.rmdir()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ResourceError(f"{directory}: cannot be removed: {error.strerror}") from error
            time.sleep(0.05)
