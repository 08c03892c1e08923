from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from loop_singular_bit.measure.page_cache import evict, resident_bytes

SIZE = 3 * mmap.PAGESIZE + 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was just written, and is in the page cache for it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    return path


def test_what_was_written_is_in_the_cache_until_it_is_evicted(file: Path) -> None:
    if resident_bytes([file]) == 0:
        pytest.skip("this file system has no page cache of its own")
    assert resident_bytes([file]) == 4 * mmap.PAGESIZE
    assert evict([file]) == 0
    assert resident_bytes([file]) == 0
    file.read_bytes()
    assert resident_bytes([file]) == 4 * mmap.PAGESIZE


def test_pages_that_another_mapping_holds_are_told(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(
        opened.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED
    ) as mapped:  # fmt: skip
        assert mapped[SIZE - 1] == 0
        left = evict([file])
    assert left in (mmap.PAGESIZE, 4 * mmap.PAGESIZE)


def test_several_files_add_up_and_an_empty_one_is_nothing(file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert resident_bytes([empty]) == 0
    assert resident_bytes([file, file, empty]) == 2 * resident_bytes([file])
