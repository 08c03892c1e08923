"""A writer that was stopped, and another one that goes on: the bytes of one that was not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from container_files import BLOCK_BYTES, SHARD_BYTES, SHARDED, pattern, write_sharded

from loop_singular_bit.container import ContainerWriter
from loop_singular_bit.container.partial import PartialFile
from loop_singular_bit.container.shards import PartialShards
from loop_singular_bit.container.writer import Mark
from loop_singular_bit.errors import FormatError, ResourceError

NAMES = list(dict.fromkeys(record for record, _ in SHARDED))
# The names of each run; the first record belongs to none and is a part of its own.
RUNS = [["embed"], *([name, f"{name[0]}.q"] for name in NAMES if name.endswith("norm"))]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("straight")
    write_sharded(folder / "model.lsb")
    return files(folder)


def write(path: Path, marks: list[Mark], stop: int | None = None, torn: int = 2) -> None:
    """Writes what `marks` lack and adds to them. stop: run in which it ends, after `torn` of its
    records."""
    with ContainerWriter(
        path, {"model": "tiny"}, block_bytes=BLOCK_BYTES, shard_bytes=SHARD_BYTES, marks=marks
    ) as writer:
        for run in range(len(marks), len(RUNS)):
            if run > 0:
                writer.begin_run()
            for name in RUNS[run][: torn if run == stop else None]:
                extents = {e: data for (record, e), data in SHARDED.items() if record == name}
                writer.add(name, "raw", {}, extents)
            if run == stop:
                raise KeyboardInterrupt
            marks.append(writer.mark())
        writer.add_optional("notes", pattern(9, 7))


@pytest.mark.parametrize("torn", [0, 1, 2])
@pytest.mark.parametrize("stop", range(len(RUNS)))
def test_a_writer_that_goes_on_writes_the_same_bytes(
    stop: int, torn: int, tmp_path: Path, straight: dict[str, bytes]
) -> None:
    marks: list[Mark] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.lsb", marks, stop, torn)
    assert len(marks) == stop and not (tmp_path / "model.lsb").exists()
    write(tmp_path / "model.lsb", marks)
    assert files(tmp_path) == straight


def test_a_writer_stopped_again_and_again_ends(tmp_path: Path, straight: dict[str, bytes]) -> None:
    marks: list[Mark] = []
    for stop in range(len(RUNS)):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "model.lsb", marks, stop)
    write(tmp_path / "model.lsb", marks)
    assert files(tmp_path) == straight


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("fails_at", range(4))
def test_a_writer_stopped_between_two_names_goes_on(
    fails_at: int,
    killed: bool,
    tmp_path: Path,
    straight: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = os.replace, iter(range(100))

    def replace(old: Path, new: Path) -> None:
        if next(calls) == fails_at:
            raise OSError(5, "Input/output error")
        real(old, new)

    marks: list[Mark] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if killed:  # nothing is put back
            patch.setattr(PartialShards, "_withdraw", lambda *_: None)
        with pytest.raises(ResourceError, match="Input/output error"):
            write(tmp_path / "model.lsb", marks)
    assert len(marks) == len(RUNS)
    assert not (tmp_path / "model.lsb").exists()
    write(tmp_path / "model.lsb", marks)
    assert files(tmp_path) == straight


def test_what_is_behind_the_last_mark_is_cut_off(
    tmp_path: Path, straight: dict[str, bytes]
) -> None:
    """Of a writer that nobody has a mark of, too."""
    marks: list[Mark] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.lsb", marks, 4)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + b"x" * 10_000)
    (tmp_path / "model-00009.lsb.partial").write_bytes(b"x")
    write(tmp_path / "model.lsb", marks[:2])
    assert files(tmp_path) == straight


def test_a_file_shorter_than_its_marks_is_refused_and_kept(tmp_path: Path) -> None:
    marks: list[Mark] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.lsb", marks, 2, 0)
    partial = tmp_path / "model.lsb.partial"
    size = partial.stat().st_size
    os.truncate(partial, size - 1)
    with pytest.raises(ResourceError, match=rf"has {size - 1} bytes, .* at least {size} .*restart"):
        write(tmp_path / "model.lsb", marks)
    assert partial.stat().st_size == size - 1


def test_marks_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    marks: list[Mark] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.lsb", marks, 2)
    with pytest.raises(FormatError, match="0 checksums, its records have 1 blocks"):
        write(tmp_path / "model.lsb", [Mark(marks[0].records, ())])


def test_a_released_file_waits_for_the_next(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "a")
    first.write(0, b"kept, not kept")
    first.sync()
    first.release()
    first.release()
    second = PartialFile(tmp_path / "a", kept_bytes=4)
    second.write(4, b"!")
    second.finish(5)
    second.publish()
    assert (tmp_path / "a").read_bytes() == b"kept!"
