"""Reads that leave no trace in the page cache.

A buffered read charges every byte to the process's memory cgroup as page cache, and a mapped file
does so as well. Weights that are larger than the budget must therefore come in past the cache.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from enum import Enum
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from loop_singular_bit.errors import FormatError, ResourceError

PAGE_BYTES = 4096
# Drop-behind keeps at most this much of the file in the cache at a time.
_DROP_BYTES = 4 * 1024 * 1024
# What a file system answers when it does not do direct I/O (EOPNOTSUPP is ENOTSUP on Linux).
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)


class Backend(Enum):
    """How the page cache is kept out. The value is what a person is shown."""

    DIRECT = "direct (O_DIRECT)"
    DROP_BEHIND = "buffered, dropped behind (posix_fadvise)"
    NO_CACHE = "buffered, uncached (F_NOCACHE)"


def page_floor(value: int) -> int:
    """The largest multiple of the page size that is not above `value`."""
    return value // PAGE_BYTES * PAGE_BYTES


def page_ceil(value: int) -> int:
    """The smallest multiple of the page size that is not below `value`."""
    return -(-value // PAGE_BYTES) * PAGE_BYTES


class AlignedBuffer:
    """Page-aligned private anonymous memory of whole pages, zero until it is written.

    It goes back to the system when the last array made from it does.
    Raises ResourceError when the system has no memory left.
    """

    def __init__(self, size_bytes: int) -> None:
        rounded_bytes = max(page_ceil(size_bytes), PAGE_BYTES)
        try:
            # The default, MAP_SHARED, is memory of a hidden file and counts as page cache.
            memory = mmap.mmap(-1, rounded_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise ResourceError(
                f"no memory for a buffer of {rounded_bytes} bytes: {error}"
            ) from error
        self._take(memoryview(memory))

    def _take(self, view: memoryview) -> None:
        self._view = view
        self._array: npt.NDArray[np.uint8] = np.frombuffer(view, np.uint8)

    def part(self, start: int, size_bytes: int) -> Self:
        """Bytes [start, start + size_bytes), whole pages, as a buffer on the same memory."""
        if start % PAGE_BYTES or size_bytes % PAGE_BYTES:
            raise ValueError(f"part [{start}, +{size_bytes}): not pages")
        if start < 0 or size_bytes <= 0 or start + size_bytes > self.size_bytes:
            raise ValueError(f"part [{start}, +{size_bytes}) of {self.size_bytes} bytes")
        part = object.__new__(type(self))
        part._take(self._view[start : start + size_bytes])
        return part

    @property
    def size_bytes(self) -> int:
        return self._array.nbytes

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The memory, u8 [size_bytes]."""
        return self._array

    @property
    def view(self) -> memoryview:
        """The memory, format B."""
        return self._view


class PageFile:
    """A file that is read in whole pages. Any number of threads may read at once.

    Raises FormatError when `path` is no regular file, ResourceError when it cannot be opened, or
    cannot be opened the way `backend` says. None takes the best way that the file system has.
    """

    def __init__(self, path: Path, backend: Backend | None = None) -> None:
        self._path = path
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FormatError(f"{path}: not a regular file")
            self._backend, self._fd = _open(path, backend)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FormatError(f"{path}: no such file") from error
        except OSError as error:
            raise ResourceError(f"{path}: cannot be opened: {error.strerror}") from error
        self._size_bytes = os.fstat(self._fd).st_size

    @property
    def backend(self) -> Backend:
        return self._backend

    @property
    def size_bytes(self) -> int:
        """Length of the file when it was opened."""
        return self._size_bytes

    def read(self, offset: int, size_bytes: int, buffer: memoryview) -> None:
        """Fills buffer[:size_bytes] with the bytes of the file from `offset` on.

        `offset` is a multiple of PAGE_BYTES; `buffer` starts at a page and holds whole pages (the
        view of an AlignedBuffer, or a part of it); what is behind `size_bytes` in the last page
        is undefined afterwards. Raises ResourceError when the file fails or ends early.
        """
        if offset % PAGE_BYTES or len(buffer) < page_ceil(size_bytes):
            raise ValueError(f"offset {offset}, {len(buffer)} bytes for {size_bytes}: not pages")
        done = 0
        while done < size_bytes:
            end = done + self._read_some(offset + done, buffer[done : page_ceil(size_bytes)])
            if end >= size_bytes:
                return
            # A short read resumes at a page, since direct I/O cannot start inside one.
            resume = page_floor(end)
            if resume == done:
                raise ResourceError(
                    f"{self._path}: ends at byte {offset + end}, expected {offset + size_bytes}"
                )
            done = resume

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        try:
            if self._backend is not Backend.DROP_BEHIND:
                return os.preadv(self._fd, [buffer], offset)
            count = os.preadv(self._fd, [buffer[:_DROP_BYTES]], offset)
            _drop(self._fd, offset, count)
            return count
        except OSError as error:
            raise ResourceError(
                f"{self._path}: reading {len(buffer)} bytes at {offset}: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Closes the file; a read afterwards raises ResourceError."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: Path, backend: Backend | None) -> tuple[Backend, int]:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if sys.platform == "darwin":
        if backend in (None, Backend.NO_CACHE):
            return Backend.NO_CACHE, _open_no_cache(path, flags)
    else:
        if backend in (None, Backend.DIRECT):
            fd = _open_direct(path, flags)
            if fd is not None:
                return Backend.DIRECT, fd
        if backend in (None, Backend.DROP_BEHIND):
            return Backend.DROP_BEHIND, _open_drop_behind(path, flags)
    raise ResourceError(f"{path}: the file system or system cannot read {backend.value}")


def _open_direct(path: Path, flags: int) -> int | None:
    """None when the system or the file system refuses; some refuse only the first read."""
    if sys.platform != "linux":
        return None
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno in _REFUSALS:
            return None
        raise
    try:
        os.preadv(fd, [AlignedBuffer(PAGE_BYTES).view], 0)
    except OSError as error:
        os.close(fd)
        if error.errno in _REFUSALS:
            return None
        raise
    return fd


if sys.platform == "darwin":
    import fcntl

    def _open_no_cache(path: Path, flags: int) -> int:
        fd = os.open(path, flags)
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return fd

    def _drop(fd: int, offset: int, size_bytes: int) -> None:
        raise AssertionError("macOS has no posix_fadvise")
else:

    def _open_drop_behind(path: Path, flags: int) -> int:
        fd = os.open(path, flags)
        # Without it the kernel reads ahead, into pages that nobody drops.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd

    def _drop(fd: int, offset: int, size_bytes: int) -> None:
        start = page_floor(offset)
        length = page_ceil(offset + size_bytes) - start
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)
