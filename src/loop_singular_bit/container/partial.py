"""A file that appears under its name whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from loop_singular_bit.errors import ResourceError, UsageError

_COPY_BYTES = 4 * 1024 * 1024
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class PartialFile:
    """`<path>.partial`, exclusively locked, until `publish` gives it its name.

    The name is fixed so that what a killed process leaves is reused, not piled up; the lock tells
    such a file from one that is being written. The new file is empty, or has the first `kept_bytes`
    of what was left.
    Raises UsageError when `path` exists (unless `overwrite`) or another process is writing it,
    ResourceError when the disk fails, has less than `expected_bytes` free, or less than
    `kept_bytes` was left.
    """

    def __init__(
        self,
        path: Path,
        overwrite: bool = False,
        expected_bytes: int = 0,
        kept_bytes: int = 0,
    ) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._overwrite = overwrite
        self._expected_bytes = expected_bytes
        self._refuse_existing()
        try:
            self._fd = self._open_locked(kept_bytes)
            free_bytes = self._free_bytes()
        except OSError as error:
            raise self._failed(error) from error
        if expected_bytes > free_bytes:
            self.discard()
            raise self._full(expected_bytes, free_bytes)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of `data` at `offset`. What lies before it and was never written is zero."""
        done = 0
        view = memoryview(data)
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError as error:
            if error.errno in _NO_SPACE:
                end = max(self._expected_bytes, offset + len(view))
                raise self._full(end - offset - done, self._free_bytes()) from error
            raise self._failed(error) from error

    def copy_to(self, start: int, other: PartialFile, offset: int) -> None:
        """Copies the bytes from `start` to the end to `offset` of another file."""
        while data := self._read(start):
            other.write(offset, data)
            start, offset = start + len(data), offset + len(data)

    def truncate(self, size_bytes: int) -> None:
        """Drops the bytes from `size_bytes` on."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self, size_bytes: int) -> None:
        """Makes the file, which is `size_bytes` long, durable."""
        try:
            found_bytes = os.fstat(self._fd).st_size
            if found_bytes != size_bytes:
                raise AssertionError(f"wrote {found_bytes} bytes, planned {size_bytes}")
        except OSError as error:
            raise self._failed(error) from error
        self.sync()

    def sync(self) -> None:
        """Makes what was written durable."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def publish(self) -> None:
        """Gives the finished file its name; `sync_directory` makes that durable."""
        self._refuse_existing()
        try:
            os.replace(self._partial, self._path)
        except OSError as error:
            raise self._failed(error) from error
        self._close()

    def discard(self) -> None:
        """Removes the file. Does nothing after `publish` or a second time."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                self._partial.unlink()
            self._close()

    def release(self) -> None:
        """Leaves the file, not published, to a later process. Does nothing after `publish` or a
        second time."""
        if self._fd >= 0:
            self._close()

    def _read(self, offset: int) -> bytes:
        try:
            return os.pread(self._fd, _COPY_BYTES, offset)
        except OSError as error:
            raise self._failed(error) from error

    def _open_locked(self, kept_bytes: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._partial, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held the lock may have renamed or removed the file since it was opened.
            if not os.path.samestat(os.fstat(fd), os.stat(self._partial)):
                raise BlockingIOError
            self._refuse_shorter(os.fstat(fd).st_size, kept_bytes)
            os.ftruncate(fd, kept_bytes)
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(fd)
            raise UsageError(f"{self._partial}: another process is writing it") from error
        except (OSError, ResourceError):
            os.close(fd)
            raise
        return fd

    def _refuse_shorter(self, found_bytes: int, kept_bytes: int) -> None:
        if found_bytes < kept_bytes:
            raise ResourceError(
                f"{self._partial}: has {found_bytes} bytes, expected at least {kept_bytes} that "
                "were finished; start over with --restart"
            )

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _free_bytes(self) -> int:
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def _refuse_existing(self) -> None:
        if not self._overwrite and os.path.lexists(self._path):
            raise UsageError(f"{self._path}: exists; remove it or choose another output directory")

    def _full(self, needed_bytes: int, free_bytes: int) -> ResourceError:
        return ResourceError(
            f"{self._path}: the disk is full: {needed_bytes} bytes needed, {free_bytes} free; "
            "free some space or choose another output directory"
        )

    def _failed(self, error: OSError) -> ResourceError:
        return ResourceError(f"{self._path}: cannot be written: {error.strerror}")


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises ResourceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
