"""Running a command under a memory limit while watching what it takes, page cache included.

With a control group (measure/memory_group.py) the kernel limits and counts. Without one,
RLIMIT_DATA stops anonymous memory, the resident set is sampled, and the page cache is looked at
file by file: nothing stops it there, but nothing of it stays unseen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType

from loop_singular_bit.errors import InterruptedRunError
from loop_singular_bit.measure.memory_group import MemoryGroup, memory_group
from loop_singular_bit.measure.page_cache import resident_bytes

SAMPLE_SECONDS = 0.02
CACHE_SECONDS = 0.5  # between looks at the page cache, which cost a millisecond a gigabyte
# Address space that an interpreter with numpy and two threads reserves and never touches, which
# RLIMIT_DATA counts (thread stacks, arenas): 75 to 90 MB on Linux x86-64 with Python 3.11.
RESERVED_BYTES = 96_000_000
WITHOUT_GROUP = "RLIMIT_DATA, sampled resident set, page-cache probe"


@dataclass(frozen=True)
class Cap:
    """limit_bytes None: no limit. group: a control group handed over for this; None: without.
    seconds: when the command is killed; None: never."""

    limit_bytes: int | None
    group: Path | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class MemoryUse:
    """What a process took.

    method           who limited and counted
    peak_bytes       most memory at once, page cache of its files included
    anonymous_bytes  largest anonymous part seen in the samples
    file_bytes       the same of pages of files: mapped, or cached on its behalf
    oom_kills        by the group's limit
    read_bytes       from disk, past or through the page cache, up to the last sample
    """

    method: str
    peak_bytes: int
    anonymous_bytes: int
    file_bytes: int
    major_faults: int
    oom_kills: int
    read_bytes: int


@dataclass(frozen=True)
class Ended:
    """A command that has ended. returncode as in subprocess: negative for a signal.
    timed_out: it was killed for the time it took."""

    returncode: int
    stdout: str
    stderr: str
    use: MemoryUse
    timed_out: bool = False

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL


@dataclass
class _Seen:
    """Largest values over all samples."""

    peak: int = 0
    anonymous: int = 0
    file: int = 0
    read: int = 0
    file_then: int = 0  # mapped or cached at the last look at the page cache
    looked: float = field(default=-1e9)


def run_capped(command: list[str], cap: Cap, files: Sequence[Path]) -> Ended:
    """Runs `command` to its end; `files` are those whose page cache counts without a group.

    The process and the group are gone afterwards, also when this one is interrupted (SIGINT,
    SIGTERM: InterruptedRunError). Raises UsageError and ResourceError as `memory_group` does.
    """
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        group = None
        if cap.group is not None:
            group = stack.enter_context(memory_group(cap.group, cap.limit_bytes))
            command = group.command(command)
        elif cap.limit_bytes is not None:
            command = _with_data_limit(command, cap.limit_bytes)
        out, err = (stack.enter_context(TemporaryFile("w+")) for _ in range(2))
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        try:
            seen, faults, timed_out = _watch(process, group, files, cap.seconds)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        for stream in (out, err):
            stream.seek(0)
        use = _use(seen, faults, group)
        return Ended(process.returncode, out.read(), err.read(), use, timed_out)


def _with_data_limit(command: list[str], limit_bytes: int) -> list[str]:
    kilobytes = (limit_bytes + RESERVED_BYTES) // 1024
    return ["/bin/sh", "-c", 'ulimit -d "$0" && exec "$@"', str(kilobytes), *command]


def _use(seen: _Seen, major_faults: int, group: MemoryGroup | None) -> MemoryUse:
    return MemoryUse(
        method=WITHOUT_GROUP if group is None else group.interface.version,
        peak_bytes=seen.peak if group is None else group.peak_bytes,
        anonymous_bytes=seen.anonymous,
        file_bytes=seen.file,
        major_faults=major_faults,
        oom_kills=0 if group is None else group.oom_kills,
        read_bytes=seen.read,
    )


def _watch(
    process: subprocess.Popen[bytes] | subprocess.Popen[str],
    group: MemoryGroup | None,
    files: Sequence[Path],
    seconds: float | None,
) -> tuple[_Seen, int, bool]:
    """Samples until the process ends; what was seen, its major faults, and whether its time was
    up."""
    seen, started, timed_out = _Seen(), time.monotonic(), False
    while True:
        _sample(process.pid, group, files, seen)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            if group is None:  # what came into the cache since the last look is still there
                seen.file = max(seen.file, resident_bytes(files))
                seen.peak = max(seen.peak, seen.file)
            return seen, usage.ru_majflt, timed_out
        if seconds is not None and not timed_out and time.monotonic() - started > seconds:
            timed_out = True
            process.kill()
        time.sleep(SAMPLE_SECONDS)


def _sample(pid: int, group: MemoryGroup | None, files: Sequence[Path], seen: _Seen) -> None:
    process = Path("/proc") / str(pid)
    status = _fields(process / "status")
    seen.read = max(seen.read, _fields(process / "io").get("read_bytes", 0))
    if group is not None:
        anonymous, file = group.split()
    elif "RssAnon" in status:  # not there once a process is a zombie
        anonymous = 1024 * (status["RssAnon"] + status["RssShmem"])
        file = _file_bytes(process, 1024 * status["RssFile"], files, seen)
        seen.peak = max(seen.peak, 1024 * status["VmHWM"], anonymous + file)
    else:
        return
    seen.anonymous, seen.file = max(seen.anonymous, anonymous), max(seen.file, file)


def _fields(path: Path) -> dict[str, int]:
    """The lines "name: number ..." of a file of /proc; none when the process is gone."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.partition(":") for line in lines)
    words = ((name, rest.split()) for name, _, rest in pairs)
    return {name: int(found[0]) for name, found in words if found and found[0].isdigit()}


def _file_bytes(process: Path, mapped_bytes: int, files: Sequence[Path], seen: _Seen) -> int:
    """Mapped bytes and those of `files` that are only in the page cache.

    Between two looks a cached page may be mapped: then it is counted once, as one or the other.
    """
    now = time.monotonic()
    if now - seen.looked >= CACHE_SECONDS:
        cached = resident_bytes(files)
        unmapped = max(0, cached - _mapped_bytes(process, files)) if cached else 0
        # What was mapped or unmapped while we looked must not count as both: the next look is near.
        mapped_after = 1024 * _fields(process / "status").get("RssFile", 0)
        seen.looked, seen.file_then = now, min(mapped_bytes, mapped_after) + unmapped
    return max(mapped_bytes, seen.file_then)


def _mapped_bytes(process: Path, files: Sequence[Path]) -> int:
    """Resident bytes of the process's mappings of `files`; none when the process has ended."""
    names = {str(path.resolve()) for path in files}
    total, inside = 0, False
    try:
        lines = (process / "smaps").read_text("utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):  # the head of a mapping ends in its file's name
            inside = len(words) > 5 and line.split(maxsplit=5)[5] in names
        elif inside and words[0] == "Rss:":
            total += 1024 * int(words[1])
    return total


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the block as an exception, so that what was made is taken down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedRunError(f"stopped by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
