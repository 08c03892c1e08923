"""Artefacts of several files: what is written, what is read, and what is refused."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from container_files import (
    BLOCK_BYTES,
    SHARD_BYTES,
    SHARDED,
    patch,
    pattern,
    place_in,
    write_layered,
    write_sharded,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from loop_singular_bit.container import AlignedBuffer, ContainerReader, ContainerWriter
from loop_singular_bit.container.shards import PartialShards, shard_path
from loop_singular_bit.errors import FormatError, ResourceError, UsageError

FILES = ["model-00001.lsb", "model-00002.lsb", "model-00003.lsb", "model.lsb"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.lsb"
    write_sharded(path)
    return path


def _names(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


def _contents(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.parent.iterdir()}


def _read_all(path: Path) -> dict[tuple[str, str], bytes]:
    with ContainerReader.open(path) as reader:
        reader.verify_all()
        return {
            (record.name, extent.name): reader.read(record.name, extent.name).tobytes()
            for record in reader.records
            for extent in record.extents
        }


# --- what is written and read --------------------------------------------------------------------


def test_names_of_shards() -> None:
    first = Path("a.b") / "c.d.lsb"
    assert shard_path(first, 0) == first
    assert shard_path(first, 7) == Path("a.b") / "c.d-00007.lsb"
    assert shard_path(first, 99_999) == Path("a.b") / "c.d-99999.lsb"


def test_runs_fill_shards_up_to_the_limit(path: Path) -> None:
    assert _names(path) == FILES
    shards = [place_in(path, record, extent)[0] for record, extent in SHARDED]
    assert shards == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    sizes = [shard_path(path, number).stat().st_size for number in range(4)]
    assert sizes[1] <= SHARD_BYTES < sizes[2]
    with ContainerReader.open(path) as reader:
        assert reader.file_bytes == sum(sizes)
        assert [found.name for found in reader.paths] == [FILES[-1], *FILES[:-1]]


def test_every_extent_is_read_back(path: Path) -> None:
    assert _read_all(path) == SHARDED
    with ContainerReader.open(path) as reader:
        assert reader.read_optional("notes").tobytes() == pattern(9, 7)
        target = bytearray(3 * BLOCK_BYTES)
        reader.read_into("2.q", "plane0", target)
        assert target == SHARDED["2.q", "plane0"]
        part = reader.read_part("3.norm", "values", BLOCK_BYTES - 1, BLOCK_BYTES)
        assert part.tobytes() == SHARDED["3.norm", "values"][BLOCK_BYTES - 1 : 2 * BLOCK_BYTES - 1]
        for run in reader.runs:
            views = reader.read_span(run, AlignedBuffer(run.buffer_bytes))
            keys = [(piece.record, piece.extent.name) for piece in run.pieces]
            assert [view.tobytes() for view in views] == [SHARDED[key] for key in keys]


def test_a_run_that_outgrows_its_shard_late_moves_with_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    data = {(f"w{n}", "values"): pattern(5000, n) for n in range(4)}
    with ContainerWriter(path, block_bytes=BLOCK_BYTES, shard_bytes=23_000) as writer:
        for number, ((record, extent), values) in enumerate(data.items()):
            if number < 2:
                writer.begin_run()
            writer.add(record, "raw", {}, {extent: values})
            # w1 and w2 still fit into the first shard, w3 does not.
            assert len(_names(path)) == (2 if number == 3 else 1)
    assert [place_in(path, *key)[:2] for key in data] == [
        (0, 4096),
        (1, 4096),
        (1, 9152),
        (1, 14208),
    ]
    assert _read_all(path) == data


def test_limit_that_all_fits_into_makes_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    write_sharded(path, 10**6)
    assert _names(path) == ["model.lsb"]
    assert _read_all(path) == SHARDED


def test_spans_stay_in_one_shard(path: Path) -> None:
    with ContainerReader.open(path) as reader:
        with pytest.raises(ValueError, match=r"5 extents in shards \[0, 1\], not in one"):
            reader.span(("0.q", "plane0"), ("2.q", "plane0"))
        with pytest.raises(ValueError, match=r"shards \[0, 1, 2, 3\]"):
            reader.span(("1.q", "plane0"), ("", "notes"))


def test_verify_all_counts_the_bytes_of_every_shard(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    with ContainerReader.open(path) as reader:
        reader.verify_all(lambda done, total: calls.append((done, total)))
    shards = [path.with_name(name).stat().st_size for name in FILES[:-1]]
    first = sum(place_in(path, "", "notes")[1:])
    assert [done for done, _ in calls] == [first + sum(shards[:n]) for n in range(4)]
    assert {total for _, total in calls} == {first + sum(shards)}


# --- what is refused -----------------------------------------------------------------------------


def _refused(path: Path, name: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        ContainerReader.open(path)
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(f"{path.with_name(name)}: ")


@pytest.mark.parametrize("name", FILES[:-1])
def test_missing_shard(path: Path, name: str) -> None:
    size = path.with_name(name).stat().st_size
    path.with_name(name).unlink()
    _refused(path, name, f"no such file; model.lsb needs this shard of {size} bytes: copy or down")


def test_short_and_long_shard(path: Path) -> None:
    shard = path.with_name("model-00002.lsb")
    data = shard.read_bytes()
    for size in (0, 63, 64, len(data) - 1, len(data) + 1):
        shard.write_bytes((data + b"\0")[:size])
        _refused(path, shard.name, f"shard preamble.* the file has {size} bytes, expected")


def test_swapped_shards(path: Path) -> None:
    first, second = path.with_name(FILES[0]), path.with_name(FILES[2])
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    _refused(path, first.name, "shard preamble number: found 3, expected 1; copy or download it")


def test_shard_of_another_artefact(path: Path, tmp_path: Path) -> None:
    """Even where but one byte of one block of another shard differs."""
    other = tmp_path / "other" / "model.lsb"
    other.parent.mkdir()
    with ContainerWriter(other, {"model": "tiny"}, block_bytes=4096, shard_bytes=4200) as writer:
        for n in range(3):
            writer.begin_run()
            writer.add(f"w{n}", "raw", {}, {"v": b"a"})
            writer.begin_run()
            writer.add(f"x{n}", "raw", {}, {"v": bytes([n] * 100)})
    shutil.copy(other.with_name(FILES[1]), path.with_name(FILES[1]))
    _refused(path, FILES[1], "shard preamble artefact: found [0-9a-f]{32}, expected [0-9a-f]{32}")


def test_first_file_and_shard_in_each_others_place(path: Path) -> None:
    shard = path.with_name(FILES[0])
    with pytest.raises(FormatError, match=r"00001\.lsb: preamble magic: a further shard; open the"):
        ContainerReader.open(shard)
    shutil.copy(path, shard)
    _refused(
        path, shard.name, "shard preamble magic: found 4c534249540d0a1a, expected 4c534253480d"
    )


def test_shard_beyond_the_last_is_not_part_of_it(path: Path) -> None:
    path.with_name("model-00004.lsb").write_bytes(b"left over")
    assert _read_all(path) == SHARDED


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_refused_artefact_leaves_no_file_open(path: Path) -> None:
    path.with_name(FILES[2]).unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FormatError, match="no such file"):
        ContainerReader.open(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_damaged_block_names_its_file(path: Path) -> None:
    shard, offset, _ = place_in(path, "3.norm", "values")
    patch(shard_path(path, shard), offset + 4 * BLOCK_BYTES, b"\xff")
    message = r"model-00002\.lsb: record '3\.norm' extent 'values' block 4: crc32c found"
    with ContainerReader.open(path) as reader:
        run = reader.run("3.norm")
        with pytest.raises(ResourceError, match=message) as caught:
            reader.read("3.norm", "values")
        assert caught.value.exit_code == 5
        with pytest.raises(ResourceError, match=message):
            reader.read_span(run, AlignedBuffer(run.buffer_bytes))
        with pytest.raises(ResourceError, match=message):
            reader.verify_all()
        assert reader.read("4.q", "plane0").tobytes() == SHARDED["4.q", "plane0"]


def test_byte_between_preamble_and_first_run_is_caught(path: Path) -> None:
    patch(path.with_name(FILES[1]), 4000, b"\x01")
    with (
        ContainerReader.open(path) as reader,
        pytest.raises(ResourceError, match=r"00002\.lsb: record '3\.norm' .* the gap before it"),
    ):
        reader.verify_all()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_damage_in_any_file_is_detected(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "model.lsb"
    write_sharded(path)
    damaged = path.with_name(data.draw(st.sampled_from(FILES)))
    content = bytearray(damaged.read_bytes())
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255))
    for offset, mask in data.draw(
        st.lists(flips, min_size=1, max_size=4, unique_by=lambda f: f[0])
    ):
        content[offset] ^= mask
    damaged.write_bytes(content)
    with pytest.raises((FormatError, ResourceError), match=damaged.name):
        _read_all(path)


# --- appearing together or not at all ------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model.lsb"
    with pytest.raises(error), ContainerWriter(path, shard_bytes=4200) as writer:
        for n in range(3):
            writer.begin_run()
            writer.add(f"w{n}", "raw", {}, {"values": bytes(100)})
        assert len(_names(path)) == 3
        raise error
    assert _names(path) == []


def test_existing_shard_is_refused_at_once_and_kept(tmp_path: Path) -> None:
    shard = tmp_path / "model-00009.lsb"
    shard.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"model-00009\.lsb: exists; remove it or choose another"):
        ContainerWriter(tmp_path / "model.lsb")
    assert _contents(shard) == {"model-00009.lsb": b"old"}


def test_shard_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    files = PartialShards(path)
    files.write(0, b"first")
    files.next_shard(5)
    files.write(0, b"second")
    path.with_name(FILES[0]).write_bytes(b"other")
    with pytest.raises(UsageError, match=r"model-00001\.lsb: exists"):
        files.commit([5, 6])
    files.discard()
    assert _contents(path) == {FILES[0]: b"other"}


def test_partial_shards_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    for name in ("model.lsb", "model-00001.lsb", "model-00077.lsb"):
        (tmp_path / f"{name}.partial").write_bytes(b"x" * 100_000)
    (tmp_path / "model-1.lsb.partial").write_bytes(b"not ours")
    write_sharded(path)
    assert _names(path) == sorted([*FILES, "model-1.lsb.partial"])
    assert _read_all(path) == SHARDED


def test_second_writer_leaves_the_shards_of_the_first_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    with ContainerWriter(path, shard_bytes=4200) as writer:
        for n in range(2):
            writer.begin_run()
            writer.add(f"w{n}", "raw", {}, {"values": bytes(100)})
        with pytest.raises(UsageError, match="another process is writing it"):
            ContainerWriter(path)
    assert _names(path) == ["model-00001.lsb", "model.lsb"]
    assert len(_read_all(path)) == 2


def test_overwriting_removes_shards_that_are_not_used_any_more(path: Path) -> None:
    write_sharded(path, 60_000, overwrite=True)
    assert _names(path) == ["model-00001.lsb", "model.lsb"]
    assert _read_all(path) == SHARDED


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fails_at", range(4))
def test_no_mix_of_old_and_new_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, fails_at: int
) -> None:
    """Names are given one by one; whichever fails, what is left is old, new or refused."""
    path = tmp_path / "model.lsb"
    if overwrite:
        write_layered(path)
        shutil.move(path, tmp_path / "kept")
        write_sharded(path, 20_000)
    real, calls = os.replace, iter(range(100))

    def replace(old: Path, new: Path) -> None:
        if next(calls) == fails_at:
            raise OSError(5, "Input/output error")
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ResourceError, match="cannot be written: Input/output error"):
        write_sharded(path, overwrite=overwrite)
    if not overwrite:
        assert _names(path) == []
    elif fails_at == 0:
        assert _read_all(path) == SHARDED
    else:
        with pytest.raises(FormatError, match=r"model-00001\.lsb: no such file"):
            ContainerReader.open(path)


def test_power_lost_between_two_names_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new shard under its name, and the first file still that of the old artefact."""
    path = tmp_path / "model.lsb"
    write_sharded(path)
    old = path.read_bytes()
    write_sharded(path, SHARD_BYTES + 64, overwrite=True)
    path.write_bytes(old)
    with pytest.raises(FormatError, match=r"00001\.lsb: shard preamble artefact: found"):
        ContainerReader.open(path)


def test_room_is_asked_for_what_is_not_written_yet(tmp_path: Path) -> None:
    files = PartialShards(tmp_path / "model.lsb", expected_bytes=10_000)
    files.write(0, bytes(4000))
    files.next_shard(4000)
    files._missing_bytes = 2**60
    with pytest.raises(ResourceError, match=r"model-00002\.lsb: the disk is full: \d+ bytes nee"):
        files.next_shard(0)
    files.discard()
    assert list(tmp_path.iterdir()) == []


# --- a mixture of experts ------------------------------------------------------------------------

MATRICES = ("gate", "up", "down")


def _expert(layer: int, expert: int, matrix: str) -> dict[str, bytes]:
    seed = 100 * layer + 10 * expert + MATRICES.index(matrix)
    return {"scale": pattern(64, seed), "plane0": pattern(3000, 1000 + seed)}


def _write_experts(path: Path, layers: int = 2, experts: int = 5) -> None:
    with ContainerWriter(path, block_bytes=BLOCK_BYTES, shard_bytes=SHARD_BYTES) as writer:
        for layer in range(layers):
            writer.begin_run()
            prefix = f"layers.{layer}."
            for name in ("attn_norm", "q_norm", "k_norm", "router"):
                writer.add(prefix + name, "vector", {"count": 4}, {"data": pattern(16, layer)})
            for expert in range(experts):
                writer.begin_run()
                for matrix in MATRICES:
                    name = f"{prefix}experts.{expert}.{matrix}"
                    writer.add(name, "planes", {}, _expert(layer, expert, matrix))


def test_an_expert_is_one_range_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    _write_experts(path)
    with ContainerReader.open(path) as reader:
        assert len(reader.paths) > 2
        for layer in range(2):
            for expert in range(5):
                run = reader.run(f"layers.{layer}.experts.{expert}.up")
                names = {f"layers.{layer}.experts.{expert}.{matrix}" for matrix in MATRICES}
                assert {piece.record for piece in run.pieces} == names
                assert run.offset % 4096 == 0
                data = shard_path(path, run.shard).read_bytes()[run.offset : run.end]
                for piece in run.pieces:
                    matrix = piece.record.rpartition(".")[2]
                    start = piece.offset - run.offset
                    stored = data[start : start + piece.size_bytes]
                    assert stored == _expert(layer, expert, matrix)[piece.extent.name]


def test_run_of_a_record(path: Path) -> None:
    with ContainerReader.open(path) as reader:
        assert [reader.run(f"{n}.q") for n in range(5)] == list(reader.runs)
        assert [reader.run(f"{n}.norm") for n in range(5)] == list(reader.runs)
        with pytest.raises(FormatError, match="record 'embed' belongs to no run"):
            reader.run("embed")
        with pytest.raises(FormatError, match="has no record 'nope'"):
            reader.run("nope")


def test_threads_read_experts_into_parts_of_one_buffer(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    _write_experts(path)
    with ContainerReader.open(path) as reader:
        runs = [reader.run(f"layers.{n % 2}.experts.{n % 5}.gate") for n in range(40)]
        slot_bytes = max(run.buffer_bytes for run in runs)
        arena = AlignedBuffer(len(runs) * slot_bytes)

        def read(number: int) -> Any:
            return reader.read_span(runs[number], arena.part(number * slot_bytes, slot_bytes))

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read, range(len(runs))))
    for number, views in enumerate(found):
        expected = [_expert(number % 2, number % 5, matrix) for matrix in MATRICES]
        flat = [data for extents in expected for data in extents.values()]
        assert [view.tobytes() for view in views] == flat
        start = arena.array.ctypes.data + number * slot_bytes
        assert views[0].ctypes.data == start
        assert all(view.ctypes.data % 64 == 0 for view in views)
