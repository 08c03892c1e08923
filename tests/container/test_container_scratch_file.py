from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loop_singular_bit.container import PAGE_BYTES, AlignedBuffer
from loop_singular_bit.container import scratch_file as module
from loop_singular_bit.container.scratch_file import ScratchFile
from loop_singular_bit.errors import ResourceError


def pages(count: int, seed: int = 0) -> AlignedBuffer:
    buffer = AlignedBuffer(count * PAGE_BYTES)
    buffer.array[:] = np.random.default_rng(seed).integers(0, 256, buffer.size_bytes)
    return buffer


@pytest.fixture(params=["direct", "through the page cache"])
def file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ScratchFile:
    if request.param != "direct":
        monkeypatch.setattr(module, "_pass_cache", lambda fd: False)
    return ScratchFile([tmp_path], 8 * PAGE_BYTES, "rows")


def test_pages_come_back_as_they_were_written(file: ScratchFile) -> None:
    first, second, found = pages(3), pages(1, 1), AlignedBuffer(4 * PAGE_BYTES)
    file.write(PAGE_BYTES, first.view)
    file.write(4 * PAGE_BYTES, second.view)
    file.read(PAGE_BYTES, found.view)
    assert np.array_equal(found.array, np.concatenate([first.array, second.array]))
    file.close()
    file.close()


def test_the_file_has_no_name(file: ScratchFile) -> None:
    assert list(file.folder.iterdir()) == []
    file.close()


def test_short_reads_and_writes_are_continued(
    file: ScratchFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.preadv, os.pwritev
    one_page = slice(PAGE_BYTES)
    monkeypatch.setattr(os, "preadv", lambda fd, b, at: read(fd, [b[0][one_page]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, b, at: write(fd, [b[0][one_page]], at))
    sent, found = pages(3), AlignedBuffer(3 * PAGE_BYTES)
    file.write(0, sent.view)
    file.read(0, found.view)
    assert np.array_equal(found.array, sent.array)


def test_a_file_that_ends_early_is_an_error_with_both_numbers(file: ScratchFile) -> None:
    os.ftruncate(file._fd, 3 * PAGE_BYTES + 100)
    with pytest.raises(ResourceError, match=r"rows on disk end at byte 12388, expected 16384"):
        file.read(2 * PAGE_BYTES, pages(2).view)


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
def test_a_disk_that_fails_is_named(
    file: ScratchFile, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    name, act = ("reading", file.read) if call == "preadv" else ("writing", file.write)
    with pytest.raises(ResourceError, match=rf"{name} 8192 bytes of rows at 4096: No space left"):
        act(PAGE_BYTES, pages(2).view)


def test_a_write_that_makes_no_progress_ends(
    file: ScratchFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(ResourceError, match="0 of 4096 bytes of rows were written"):
        file.write(0, pages(1).view)


def test_a_file_system_in_memory_is_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    place = f"{os.major(device)}:{os.minor(device)}"
    mounts.write_text(f"1 0 0:999 / / rw - ext4 a rw\n2 1 {place} / /t rw shared:1 - tmpfs b rw\n")
    monkeypatch.setattr(module, "MOUNTS", mounts)
    with pytest.raises(ResourceError, match="tmpfs is memory, not disk"):
        ScratchFile([tmp_path], PAGE_BYTES, "rows")


def test_the_next_folder_is_taken_where_one_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ScratchFile([tmp_path / "missing", tmp_path], PAGE_BYTES, "rows")
    assert file.folder == tmp_path
    file.close()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ResourceError) as caught:
        ScratchFile([tmp_path / "missing", tmp_path], 7_000_000, "rows")
    message = str(caught.value)
    assert message.startswith("no room for 7.0 MB of rows on disk (")
    assert "missing: No such file or directory; " in message
    assert "No space left on device, " in message
    assert message.endswith("or set TMPDIR to a folder with room")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []
