from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.container import AlignedBuffer, Backend, PageFile
from loop_singular_bit.container.directio import PAGE_BYTES, page_ceil
from loop_singular_bit.errors import FormatError, ResourceError

DATA = np.random.default_rng(3).integers(0, 256, 5 * PAGE_BYTES + 123, np.uint8).tobytes()
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="O_DIRECT and posix_fadvise")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return path


def _backends(path: Path) -> list[Backend]:
    """The back end chosen here and, where there is one, the other."""
    file = PageFile(path)
    file.close()
    return list(dict.fromkeys([file.backend, *([Backend.DROP_BEHIND] * (sys.platform == "linux"))]))


def _read(file: PageFile, offset: int, size_bytes: int) -> bytes:
    buffer = AlignedBuffer(size_bytes)
    file.read(offset, size_bytes, buffer.view)
    return buffer.view[:size_bytes].tobytes()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, 4097, 1_000_000])
def test_buffer_is_whole_zero_pages_at_a_page(size_bytes: int) -> None:
    buffer = AlignedBuffer(size_bytes)
    assert buffer.size_bytes == max(page_ceil(size_bytes), PAGE_BYTES)
    assert buffer.array.ctypes.data % PAGE_BYTES == 0
    assert not buffer.array.any()
    buffer.view[0] = 7
    assert buffer.array[0] == 7


def test_buffer_lives_as_long_as_its_arrays() -> None:
    part = AlignedBuffer(PAGE_BYTES).array[10:20]
    part[:] = 5
    assert part.tolist() == [5] * 10


@LINUX
def test_parts_of_a_buffer_share_its_memory_and_keep_it() -> None:
    whole = AlignedBuffer(4 * PAGE_BYTES)
    address = whole.array.ctypes.data
    part = whole.part(PAGE_BYTES, 2 * PAGE_BYTES).part(PAGE_BYTES, PAGE_BYTES)
    assert part.size_bytes == PAGE_BYTES
    assert part.array.ctypes.data == address + 2 * PAGE_BYTES
    part.view[3] = 9
    assert whole.array[2 * PAGE_BYTES + 3] == 9
    del whole
    assert part.array[3] == 9


@pytest.mark.parametrize(
    ("start", "size_bytes", "message"),
    [
        (1, PAGE_BYTES, "not pages"),
        (0, 5, "not pages"),
        (0, 0, "of 8192 bytes"),
        (-PAGE_BYTES, PAGE_BYTES, "of 8192 bytes"),
        (PAGE_BYTES, 2 * PAGE_BYTES, "of 8192 bytes"),
    ],
)
def test_parts_are_whole_pages_inside(start: int, size_bytes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignedBuffer(2 * PAGE_BYTES).part(start, size_bytes)


def test_buffer_is_private_memory() -> None:
    buffer = AlignedBuffer(PAGE_BYTES)
    address = buffer.array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, permissions, *_ = line.split()
        start, stop = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < stop:
            assert permissions == "rw-p"
            return
    raise AssertionError(f"{address:#x} is not mapped")


def test_buffer_beyond_memory() -> None:
    with pytest.raises(ResourceError, match=f"no memory for a buffer of {2**60} bytes"):
        AlignedBuffer(2**60)


def test_every_backend_gives_the_bytes(path: Path) -> None:
    for backend in _backends(path):
        file = PageFile(path, backend)
        assert file.backend is backend
        assert file.size_bytes == len(DATA)
        for offset in range(0, len(DATA), PAGE_BYTES):
            for size_bytes in {0, 1, PAGE_BYTES, len(DATA) - offset}:
                size = min(size_bytes, len(DATA) - offset)
                assert _read(file, offset, size) == DATA[offset : offset + size]
        file.close()


@LINUX
@pytest.mark.parametrize("step", [PAGE_BYTES, PAGE_BYTES + 1000])
def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = os.preadv
    for backend in _backends(path):
        file = PageFile(path, backend)

        def short(fd: int, buffers: list[memoryview], offset: int) -> int:
            whole = real(fd, buffers, offset)
            return min(whole, step)

        monkeypatch.setattr(os, "preadv", short)
        assert _read(file, 0, len(DATA)) == DATA
        monkeypatch.setattr(os, "preadv", real)
        file.close()


def test_file_that_shrank(path: Path) -> None:
    for backend in _backends(path):
        path.write_bytes(DATA)
        file = PageFile(path, backend)
        os.truncate(path, 2 * PAGE_BYTES)
        with pytest.raises(ResourceError, match=f"ends at byte 8192, expected {len(DATA)}"):
            _read(file, 0, len(DATA))
        file.close()


def test_failing_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PageFile(path)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ResourceError, match="data: reading 4096 bytes at 4096: Input/output error"):
        _read(file, PAGE_BYTES, 10)
    file.close()


def test_misuse(path: Path) -> None:
    file = PageFile(path)
    with pytest.raises(ValueError, match="not pages"):
        file.read(1, 10, AlignedBuffer(10).view)
    with pytest.raises(ValueError, match="not pages"):
        file.read(0, PAGE_BYTES + 1, AlignedBuffer(PAGE_BYTES).view)
    file.close()
    file.close()
    with pytest.raises(ResourceError, match="Bad file descriptor"):
        _read(file, 0, 10)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="none: no such file"):
        PageFile(tmp_path / "none")
    with pytest.raises(FormatError, match="not a regular file"):
        PageFile(tmp_path)


@LINUX
@pytest.mark.parametrize("where", ["open", "first read"])
def test_file_system_without_direct_io_is_read_drop_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _refuse_direct(monkeypatch, where)
    before = _open_files()
    file = PageFile(path)
    assert file.backend is Backend.DROP_BEHIND
    assert _read(file, 0, len(DATA)) == DATA
    file.close()
    with pytest.raises(ResourceError, match="cannot read direct"):
        PageFile(path, Backend.DIRECT)
    with pytest.raises(ResourceError, match="F_NOCACHE"):
        PageFile(path, Backend.NO_CACHE)
    assert _open_files() == before


def _refuse_direct(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    real_open, real_read = os.open, os.preadv
    direct: set[int] = set()

    def fake_open(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and where == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        fd = real_open(path, flags & ~os.O_DIRECT, mode)
        direct.discard(fd)
        if flags & os.O_DIRECT:
            direct.add(fd)
        return fd

    def fake_read(fd: int, buffers: list[memoryview], offset: int) -> int:
        if fd in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_read(fd, buffers, offset)

    monkeypatch.setattr(os, "open", fake_open)
    monkeypatch.setattr(os, "preadv", fake_read)


def _resident_pages(path: Path, size_bytes: int) -> int:
    """Pages of a file in the page cache (mincore)."""
    fd = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(fd, size_bytes, access=mmap.ACCESS_COPY)
    os.close(fd)
    anchor = ctypes.c_char.from_buffer(mapped)
    pages = (ctypes.c_ubyte * -(-size_bytes // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(ctypes.addressof(anchor))
    assert libc.mincore(address, ctypes.c_size_t(size_bytes), pages) == 0
    del anchor
    mapped.close()
    return sum(page & 1 for page in pages)


def _drop(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@LINUX
def test_reads_leave_no_page_in_the_cache(tmp_path: Path) -> None:
    path, size_bytes = tmp_path / "large", 9 * 1024 * 1024 + 5
    path.write_bytes(bytes(size_bytes))
    _drop(path)
    if _resident_pages(path, size_bytes):
        pytest.skip("this file system keeps its pages in memory")
    for backend in _backends(path):
        file = PageFile(path, backend)
        # A small read first: what the kernel reads ahead of it must not stay either.
        assert _read(file, 0, 10) == bytes(10)
        assert _resident_pages(path, size_bytes) == 0, backend
        assert _read(file, 0, size_bytes) == bytes(size_bytes)
        file.close()
        assert _resident_pages(path, size_bytes) == 0, backend
    path.read_bytes()
    assert _resident_pages(path, size_bytes) > 0
