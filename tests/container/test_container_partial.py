from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from loop_singular_bit.container import partial
from loop_singular_bit.container.partial import PartialFile
from loop_singular_bit.errors import ResourceError, UsageError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_commit_gives_the_name_and_discard_removes_all(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "a")
    file.write(2, b"xy")
    assert _names(tmp_path) == ["a.partial"]
    file.finish(4)
    file.publish()
    file.discard()
    assert (tmp_path / "a").read_bytes() == b"\0\0xy"
    other = PartialFile(tmp_path / "b")
    other.write(0, b"xy")
    other.discard()
    other.discard()
    assert _names(tmp_path) == ["a"]


def test_wrong_length_is_not_committed(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "a")
    file.write(0, b"xy")
    with pytest.raises(AssertionError, match="wrote 2 bytes, planned 3"):
        file.finish(3)
    file.discard()
    assert _names(tmp_path) == []


def test_existing_target_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UsageError, match="a: exists; remove it or choose another"):
        PartialFile(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert _names(tmp_path) == ["a"]


def test_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="exists"):
        PartialFile(tmp_path / "a")


def test_target_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"other")
    file.finish(0)
    with pytest.raises(UsageError, match="exists"):
        file.publish()
    file.discard()
    assert (tmp_path / "a").read_bytes() == b"other"
    assert _names(tmp_path) == ["a"]


def test_overwrite_keeps_the_old_file_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    file = PartialFile(tmp_path / "a", overwrite=True)
    file.write(0, b"new!")
    assert (tmp_path / "a").read_bytes() == b"old"
    file.finish(4)
    file.publish()
    assert (tmp_path / "a").read_bytes() == b"new!"


def test_what_a_killed_process_left_is_reused(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(b"x" * 100)
    file = PartialFile(tmp_path / "a")
    file.write(3, b"y")
    file.finish(4)
    file.publish()
    assert (tmp_path / "a").read_bytes() == b"\0\0\0y"
    assert _names(tmp_path) == ["a"]


def test_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "a")
    first.write(0, b"first")
    with pytest.raises(UsageError, match=r"a\.partial: another process is writing it"):
        PartialFile(tmp_path / "a", overwrite=True)
    first.finish(5)
    first.publish()
    assert (tmp_path / "a").read_bytes() == b"first"


def test_lock_on_a_file_that_lost_its_name_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_then_lose(path: Path, flags: int, mode: int = 0o777) -> int:
        fd = real(path, flags, mode)
        os.replace(path, tmp_path / "a")  # what another writer's commit does
        return fd

    monkeypatch.setattr(os, "open", open_then_lose)
    with pytest.raises(UsageError, match="another process"):
        PartialFile(tmp_path / "a")


def test_partial_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"keep")
    (tmp_path / "a.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(ResourceError, match="a: cannot be written"):
        PartialFile(tmp_path / "a")
    assert (tmp_path / "precious").read_bytes() == b"keep"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written: No such file or directory"):
        PartialFile(tmp_path / "none" / "a")


def test_too_little_room_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=rf"disk is full: {2**60} bytes needed, \d+ free"):
        PartialFile(tmp_path / "a", expected_bytes=2**60)
    assert _names(tmp_path) == []


@pytest.mark.parametrize(("expected_bytes", "needed"), [(0, 60), (1000, 960)])
def test_full_disk_says_what_is_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_bytes: int, needed: int
) -> None:
    calls: list[int] = []

    def half_then_full(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return 40

    monkeypatch.setattr(os, "pwrite", half_then_full)
    file = PartialFile(tmp_path / "a", expected_bytes=expected_bytes)
    with pytest.raises(ResourceError, match=rf"a: the disk is full: {needed} bytes .*, \d+ free"):
        file.write(0, bytes(100))
    file.discard()
    assert calls == [0, 40]
    assert _names(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    file = PartialFile(tmp_path / "a")
    data = bytes(range(100))
    file.write(0, data)
    file.finish(100)
    file.publish()
    assert (tmp_path / "a").read_bytes() == data


def test_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    file = PartialFile(tmp_path / "a")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="a: cannot be written: Input/output error"):
        file.finish(0)
    file.discard()
    assert _names(tmp_path) == []


def test_tail_is_copied_and_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_COPY_BYTES", 7)
    one, other = PartialFile(tmp_path / "a"), PartialFile(tmp_path / "b")
    data = bytes(range(100))
    one.write(0, data)
    one.copy_to(40, other, 5)
    one.truncate(30)
    one.copy_to(30, other, 0)  # nothing is left to copy
    for file, size_bytes in ((one, 30), (other, 65)):
        file.finish(size_bytes)
        file.publish()
    assert (tmp_path / "a").read_bytes() == data[:30]
    assert (tmp_path / "b").read_bytes() == bytes(5) + data[40:]


@pytest.mark.parametrize("call", ["pread", "ftruncate"])
def test_failing_disk_while_a_tail_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    one, other = PartialFile(tmp_path / "a"), PartialFile(tmp_path / "b")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match="a: cannot be written: Input/output error"):
        one.truncate(0) if call == "ftruncate" else one.copy_to(0, other, 0)
    one.discard()
    other.discard()
    assert _names(tmp_path) == []


def test_directory_that_cannot_be_made_durable(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="none: cannot be written: No such file"):
        partial.sync_directory(tmp_path / "none")
