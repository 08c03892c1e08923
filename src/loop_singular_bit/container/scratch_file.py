"""A file without a name, for what does not fit in memory while a process runs.

Whole pages are written and read past the page cache, whose pages count against a memory limit.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loop_singular_bit.container.directio import PAGE_BYTES, AlignedBuffer, page_floor
from loop_singular_bit.errors import ResourceError

MOUNTS = Path("/proc/self/mountinfo")  # of Linux


class ScratchFile:
    """`size_bytes` of disk in the first of `folders` that has room; gone with the process.

    content: what a message calls it. Raises ResourceError with every folder's reason when none has
    room.
    """

    def __init__(self, folders: Sequence[Path], size_bytes: int, content: str) -> None:
        self._content = content
        reasons = []
        for folder in folders:
            try:
                self._fd, self._direct = _create(folder, size_bytes)
            except OSError as error:
                reasons.append(f"{folder}: {error.strerror}{_free(folder)}")
                continue
            self.folder, self.size_bytes = folder, size_bytes
            return
        raise ResourceError(
            f"no room for {size_bytes / 1e6:.1f} MB of {content} on disk ("
            + "; ".join(reasons)
            + "); lower --context, raise --ram-mb or set TMPDIR to a folder with room"
        )

    def write(self, offset: int, pages: memoryview) -> None:
        """Writes whole pages of an AlignedBuffer at a page. Raises ResourceError: disk full."""
        done = 0
        while done < len(pages):
            try:
                count = os.pwritev(self._fd, [pages[done:]], offset + done)
            except OSError as error:
                raise self._failed("writing", offset + done, len(pages) - done, error) from error
            done = page_floor(done + count)
            if not count:
                raise ResourceError(
                    f"{self.folder}: 0 of {len(pages)} bytes of {self._content} were written"
                )
        self._drop(offset, len(pages), written=True)

    def read(self, offset: int, pages: memoryview) -> None:
        """Fills whole pages of an AlignedBuffer from a page on. Raises ResourceError: too short."""
        done = 0
        while done < len(pages):
            try:
                count = os.preadv(self._fd, [pages[done:]], offset + done)
            except OSError as error:
                raise self._failed("reading", offset + done, len(pages) - done, error) from error
            if page_floor(done + count) == done:
                raise ResourceError(
                    f"{self.folder}: {self._content} on disk end at byte {offset + done + count}, "
                    f"expected {offset + len(pages)}; run the same command again"
                )
            done = page_floor(done + count)
        self._drop(offset, len(pages), written=False)

    def close(self) -> None:
        """Gives the disk back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _drop(self, offset: int, size_bytes: int, *, written: bool) -> None:
        """Where the cache could not be avoided, what passed through it is dropped."""
        if self._direct or sys.platform == "darwin":
            return
        if written:
            os.fdatasync(self._fd)  # a dirty page cannot be dropped
        os.posix_fadvise(self._fd, offset, size_bytes, os.POSIX_FADV_DONTNEED)

    def _failed(self, what: str, offset: int, size_bytes: int, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self.folder}: {what} {size_bytes} bytes of {self._content} at {offset}: "
            f"{error.strerror}{_free(self.folder)}"
        )


def _file_system(folder: Path) -> str | None:
    """What kind of file system a folder is on; None where that cannot be told."""
    try:
        device = os.stat(folder).st_dev
        mounts = MOUNTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    # "36 35 98:0 /root /mount options optional... - ext4 source options"
    kinds = {line.split()[2]: line.partition(" - ")[2].split()[0] for line in mounts}
    return kinds.get(f"{os.major(device)}:{os.minor(device)}")


def _create(folder: Path, size_bytes: int) -> tuple[int, bool]:
    """A file of its full size that has no name any more, and whether it passes the page cache."""
    kind = _file_system(folder)
    if kind in ("tmpfs", "ramfs"):
        raise OSError(errno.EINVAL, f"{kind} is memory, not disk")
    fd, name = tempfile.mkstemp(prefix=".lsb-", dir=folder)
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        os.unlink(name)
        # A disk that is too small is noticed here, not in the middle of an answer.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size_bytes)
        else:
            os.ftruncate(fd, size_bytes)
        direct = _pass_cache(fd)
        stack.pop_all()
    return fd, direct


if sys.platform == "linux":
    import fcntl

    def _pass_cache(fd: int) -> bool:
        """Turns direct I/O on; False where the file system refuses, some only on the first read."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(fd, [AlignedBuffer(PAGE_BYTES).view], 0)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into the cache
            return False
        return True
elif sys.platform == "darwin":
    import fcntl

    def _pass_cache(fd: int) -> bool:
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return True


def _free(folder: Path) -> str:
    """What a folder has left, for an error; nothing where that cannot be told."""
    try:
        return f", {shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    except OSError:
        return ""
