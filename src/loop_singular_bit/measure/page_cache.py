"""How much of a file the page cache holds, and how to empty it of that file (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from loop_singular_bit.errors import ResourceError

_WINDOW_BYTES = 1 << 30  # of a file that is mapped at a time


def resident_bytes(paths: Iterable[Path]) -> int:
    """Bytes of these files in the page cache, whole pages. Asking reads nothing.

    Who may not write a file is told by the kernel that all of it is there.
    Raises ResourceError where the system cannot tell.
    """
    return sum(_resident(path) for path in paths)


def evict(paths: Iterable[Path]) -> int:
    """Drops these files from the page cache; the bytes that are still in it afterwards (pages
    that another process has mapped, or that are not on disk yet, stay)."""
    listed = list(paths)
    for path in listed:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)  # a page that is not on disk yet cannot be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return resident_bytes(listed)


@cache
def _mincore() -> ctypes._NamedFuncPointer:
    try:
        function = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError) as error:
        raise ResourceError("this system has no mincore: the page cache cannot be seen") from error
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    return function


def _resident(path: Path) -> int:
    pages = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _WINDOW_BYTES):
            length = min(_WINDOW_BYTES, size - start)
            # A private mapping that may be written is only how ctypes gets its address.
            with mmap.mmap(
                file.fileno(), length, flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=start,
            ) as mapped:  # fmt: skip
                pages += _resident_pages(mapped, length, path)
    return pages * mmap.PAGESIZE


def _resident_pages(mapped: mmap.mmap, length: int, path: Path) -> int:
    states = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    first = ctypes.c_char.from_buffer(mapped)
    failed = _mincore()(ctypes.addressof(first), length, states.ctypes.data)
    del first  # or the mapping cannot be closed
    if failed:
        raise ResourceError(f"{path}: mincore: {os.strerror(ctypes.get_errno())}")
    return int((states & 1).sum())
