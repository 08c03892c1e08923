from __future__ import annotations

import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from container_files import (
    BLOCK_BYTES,
    LAYERED,
    patch,
    pattern,
    place_in,
    preamble,
    write_compact,
    write_layered,
)

from loop_singular_bit.container import (
    AlignedBuffer,
    Backend,
    ContainerReader,
    ContainerWriter,
)
from loop_singular_bit.container import reader as reader_module
from loop_singular_bit.errors import FormatError, InputRefusedError, ResourceError

# Tests that open a file hundreds of times need no direct I/O to freshly written bytes.
BUFFERED = Backend.DROP_BEHIND if sys.platform == "linux" else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.lsb"
    write_layered(path)
    return path


@pytest.fixture(params=[None, BUFFERED])
def reader(path: Path, request: pytest.FixtureRequest) -> ContainerReader:
    reader = ContainerReader.open(path, request.param)
    request.addfinalizer(reader.close)
    return reader


LAYERED_BLOCKS = 12


def _table_offset(path: Path) -> int:
    """The 64 bytes before the index: no table of these tests is longer."""
    (index_offset,) = struct.unpack_from("<Q", path.read_bytes(), 16)
    return int(index_offset) - 64


# --- what is read ------------------------------------------------------------------------------


def test_read_gives_every_extent(reader: ContainerReader) -> None:
    for (record, extent), data in LAYERED.items():
        array = reader.read(record, extent)
        assert array.dtype == np.uint8
        assert array.tobytes() == data
        assert not data or array.ctypes.data % 64 == 0
    assert reader.optional == ("notes",)
    assert reader.read_optional("notes").tobytes() == pattern(9, 7)


def test_arrays_outlive_the_reader(path: Path) -> None:
    with ContainerReader.open(path) as reader:
        array = reader.read("0.q", "plane1")
    assert array.tobytes() == LAYERED["0.q", "plane1"]


@pytest.mark.parametrize("sweep_bytes", [1, 2 * BLOCK_BYTES, 4 * 1024 * 1024])
def test_read_into_any_writable_memory(
    reader: ContainerReader, monkeypatch: pytest.MonkeyPatch, sweep_bytes: int
) -> None:
    monkeypatch.setattr(reader_module, "_SWEEP_BYTES", sweep_bytes)
    for (record, extent), data in LAYERED.items():
        unaligned = memoryview(bytearray(len(data) + 1))[1:]
        array = np.zeros(len(data), np.uint8)
        reader.read_into(record, extent, unaligned)
        reader.read_into(record, extent, array)
        assert unaligned == data
        assert array.tobytes() == data


def test_read_into_wants_the_exact_length(reader: ContainerReader) -> None:
    with pytest.raises(ValueError, match=r"record '1\.q' extent 'plane0': 6 bytes for 5"):
        reader.read_into("1.q", "plane0", bytearray(6))


@pytest.mark.parametrize("extent", [("embed", "rows"), ("0.q", "plane1"), ("0.q", "outliers")])
def test_read_part_is_the_slice(reader: ContainerReader, extent: tuple[str, str]) -> None:
    data = LAYERED[extent]
    edges = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, len(data)]
    for start in edges:
        for stop in edges:
            if start <= stop <= len(data):
                part = reader.read_part(*extent, start, stop - start)
                assert part.tobytes() == data[start:stop]


@pytest.mark.parametrize(("start", "size_bytes"), [(-1, 1), (0, -1), (0, 6), (5, 1)])
def test_read_part_stays_inside(reader: ContainerReader, start: int, size_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"record '1\.q' extent 'plane0'"):
        reader.read_part("1.q", "plane0", start, size_bytes)


def test_read_part_reads_only_its_blocks(path: Path) -> None:
    _, offset, _ = place_in(path, "0.q", "plane1")
    patch(path, offset + 2 * BLOCK_BYTES, b"\xff")
    with ContainerReader.open(path) as reader:
        good = reader.read_part("0.q", "plane1", 0, 2 * BLOCK_BYTES)
        assert good.tobytes() == LAYERED["0.q", "plane1"][: 2 * BLOCK_BYTES]
        with pytest.raises(ResourceError, match="block 2"):
            reader.read_part("0.q", "plane1", 2 * BLOCK_BYTES - 1, 2)


def test_runs_are_read_in_one_go_to_the_start_of_the_buffer(reader: ContainerReader) -> None:
    names = [[(piece.record, piece.extent.name) for piece in run.pieces] for run in reader.runs]
    keys = list(LAYERED)
    assert names == [keys[1:5], keys[5:]]
    for run, expected in zip(reader.runs, names, strict=True):
        assert run.offset == run.base
        assert run.buffer_bytes % 4096 == 0
        buffer = AlignedBuffer(run.buffer_bytes)
        views = reader.read_span(run, buffer)
        assert [view.tobytes() for view in views] == [LAYERED[key] for key in expected]
        assert views[0].ctypes.data == buffer.array.ctypes.data


def test_spans_start_anywhere_and_take_a_prefix_of_planes(reader: ContainerReader) -> None:
    keys = list(LAYERED)
    for start in range(len(keys)):
        for stop in range(start, len(keys)):
            span = reader.span(keys[start], keys[stop])
            views = reader.read_span(span, AlignedBuffer(span.buffer_bytes))
            assert [view.tobytes() for view in views] == [
                LAYERED[key] for key in keys[start : stop + 1]
            ]


def test_span_of_nothing_reads_nothing(reader: ContainerReader) -> None:
    span = reader.span(("0.q", "outliers"), ("0.q", "outliers"))
    (view,) = reader.read_span(span, AlignedBuffer(span.buffer_bytes))
    assert view.nbytes == 0


def test_span_misuse(reader: ContainerReader) -> None:
    with pytest.raises(ValueError, match="lies before"):
        reader.span(("0.q", "plane1"), ("0.q", "plane0"))
    with pytest.raises(ValueError, match="not pages"):
        reader.read_span(reader.runs[0], AlignedBuffer(1))


def test_threads_read_at_once(reader: ContainerReader) -> None:
    keys = list(LAYERED) * 10
    with ThreadPoolExecutor(4) as pool:
        for key, array in zip(keys, pool.map(lambda key: reader.read(*key), keys), strict=True):
            assert array.tobytes() == LAYERED[key]


def test_what_is_not_there(reader: ContainerReader) -> None:
    with pytest.raises(FormatError, match=r"model\.lsb: has no record 'nope'"):
        reader.record("nope")
    with pytest.raises(FormatError, match=r"has no record '0\.q' with an extent 'plane9'"):
        reader.read("0.q", "plane9")
    with pytest.raises(FormatError, match="notes"):
        reader.read("notes", "notes")
    with pytest.raises(FormatError, match="nope"):
        reader.read_optional("nope")


def test_closed_reader_refuses(path: Path) -> None:
    with ContainerReader.open(path) as reader:
        assert reader.file_bytes == path.stat().st_size
    with pytest.raises(ResourceError, match="reading"):
        reader.read("0.q", "plane0")


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [0, 1, 2])
def test_damaged_block_is_named_by_every_way_of_reading(path: Path, block: int) -> None:
    _, offset, _ = place_in(path, "0.q", "plane1")
    patch(path, offset + block * BLOCK_BYTES + 77, b"\xff")
    message = (
        f"model.lsb: record '0.q' extent 'plane1' block {block}: crc32c found [0-9a-f]{{8}}, "
        "expected [0-9a-f]{8}; the file or the disk is damaged"
    )
    with ContainerReader.open(path) as reader:
        run = reader.runs[0]
        with pytest.raises(ResourceError, match=message) as caught:
            reader.read("0.q", "plane1")
        assert caught.value.exit_code == 5
        with pytest.raises(ResourceError, match=message):
            reader.read_into("0.q", "plane1", bytearray(3 * BLOCK_BYTES))
        with pytest.raises(ResourceError, match=message):
            reader.read_part("0.q", "plane1", block * BLOCK_BYTES, 1)
        with pytest.raises(ResourceError, match=message):
            reader.read_span(run, AlignedBuffer(run.buffer_bytes))
        with pytest.raises(ResourceError, match=message):
            reader.verify_all()
        assert reader.read("0.q", "plane0").tobytes() == LAYERED["0.q", "plane0"]


def test_blocks_that_changed_places_are_caught(path: Path) -> None:
    _, start, _ = place_in(path, "0.q", "plane1")
    data = LAYERED["0.q", "plane1"]
    swapped = data[BLOCK_BYTES : 2 * BLOCK_BYTES] + data[:BLOCK_BYTES]
    patch(path, start, swapped)
    with ContainerReader.open(path) as reader, pytest.raises(ResourceError, match="block 0"):
        reader.read("0.q", "plane1")


def test_equal_blocks_have_unequal_checksums(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    with ContainerWriter(path, block_bytes=BLOCK_BYTES) as writer:
        writer.add("w", "raw", {}, {"values": bytes(2 * BLOCK_BYTES)})
    data = path.read_bytes()
    first, second = struct.unpack_from("<2I", data, _table_offset(path))
    assert first != second


def test_optional_extents_nobody_knows_are_skipped(path: Path) -> None:
    """Not even damage in one keeps the records from being read."""
    patch(path, place_in(path, "", "notes")[1], b"\xff")
    with ContainerReader.open(path) as reader:
        for (record, extent), data in LAYERED.items():
            assert reader.read(record, extent).tobytes() == data
        assert {record.name for record in reader.records} == {record for record, _ in LAYERED}


def test_damaged_optional_extent_is_named(path: Path) -> None:
    patch(path, place_in(path, "", "notes")[1], b"\xff")
    with (
        ContainerReader.open(path) as reader,
        pytest.raises(ResourceError, match="optional extent 'notes' block 0"),
    ):
        reader.read_optional("notes")


def test_byte_in_a_gap_is_caught(path: Path) -> None:
    _, offset, _ = place_in(path, "0.q", "plane1")
    patch(path, offset - 1, b"\x01")
    with ContainerReader.open(path) as reader:
        run = reader.runs[0]
        message = "record '0.q' extent 'plane1' the gap before it"
        with pytest.raises(ResourceError, match=message):
            reader.read_span(run, AlignedBuffer(run.buffer_bytes))
        with pytest.raises(ResourceError, match=message):
            reader.verify_all()


def test_byte_beside_the_table_is_refused(path: Path) -> None:
    table = _table_offset(path)
    for offset in (table - 1, table + 4 * LAYERED_BLOCKS):
        patch(path, offset, b"\x01")
        with pytest.raises(FormatError, match="checksum table: found a byte beside it"):
            ContainerReader.open(path)
        patch(path, offset, b"\0")
    ContainerReader.open(path).close()


def test_damaged_table_is_refused(path: Path) -> None:
    patch(path, _table_offset(path), b"\xff")
    with pytest.raises(FormatError, match=r"index table_crc32c: found [0-9a-f]{8}, expected"):
        ContainerReader.open(path)


@pytest.mark.parametrize("sweep_bytes", [1, 2 * BLOCK_BYTES, 4 * 1024 * 1024])
def test_verify_all_reports_progress_to_the_end(
    reader: ContainerReader, monkeypatch: pytest.MonkeyPatch, sweep_bytes: int
) -> None:
    monkeypatch.setattr(reader_module, "_SWEEP_BYTES", sweep_bytes)
    calls: list[tuple[int, int]] = []
    reader.verify_all(lambda done, total: calls.append((done, total)))
    done = [done for done, _ in calls]
    assert done == sorted(set(done))
    assert {total for _, total in calls} == {done[-1]}
    assert (len(calls) == 1) == (sweep_bytes > 100_000)
    assert len(calls) <= done[-1] // sweep_bytes + 1


def _open_and_verify(path: Path) -> None:
    with ContainerReader.open(path, BUFFERED) as reader:
        reader.verify_all()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    write_compact(path)
    data = path.read_bytes()
    assert len(data) < 1000
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(FormatError, match="preamble"):
            ContainerReader.open(path, BUFFERED)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match=f"has {len(data) + 1} bytes, expected {len(data)}"):
        ContainerReader.open(path, BUFFERED)


def test_a_flipped_bit_in_any_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    write_compact(path)
    data = bytearray(path.read_bytes())
    bits = np.random.default_rng(5).integers(0, 8, len(data))
    for position, bit in enumerate(bits.tolist()):
        data[position] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises((FormatError, ResourceError)):
            _open_and_verify(path)
        data[position] ^= 1 << bit
    path.write_bytes(data)
    _open_and_verify(path)


def test_random_flipped_bits_in_a_file_with_runs_are_detected(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for flip in np.random.default_rng(6).integers(0, 8 * len(data), 200).tolist():
        data[flip // 8] ^= 1 << flip % 8
        path.write_bytes(data)
        with pytest.raises((FormatError, ResourceError)):
            _open_and_verify(path)
        data[flip // 8] ^= 1 << flip % 8


# --- the preamble, one defect at a time, checksums right -----------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"LSBIT\n\x1a\0"}, "preamble magic: found 4c534249540a1a00, expected 4c5342"),
        ({"flip": 1}, "preamble crc32c: found [0-9a-f]{8}, expected"),
        (
            {"version": 0},
            "preamble version: found 0, expected 1; written before the format was fro",
        ),
        ({"version": 2}, "preamble version: found 2, expected 1; needs a newer version"),
        ({"features": 4}, "preamble features: found 0x4, known 0x0: bit 2 is not known; needs a n"),
        ({"features": 1 << 31 | 1}, "bit 0, 31 is not known; needs a newer version"),
        ({"reserved": bytes(15) + b"\1"}, "preamble reserved: found a byte that is not zero"),
        ({"file_bytes": 1}, r"preamble file bytes: the file has \d+ bytes, expected 1"),
        ({"index_bytes": 0}, "preamble index bytes: found 0, expected 1 to 268435456"),
        ({"index_bytes": 2**28 + 1}, "preamble index bytes: found 268435457"),
        ({"index_bytes": 5}, "preamble index end: found"),
        ({"index_offset": 0}, "preamble index offset: found 0, expected a multiple of 64 from 64"),
        ({"index_offset": 65}, "preamble index offset: found 65"),
        ({"index_offset": 2**63}, "preamble index end: found 92233720368547"),
        ({"index_crc32c": 7}, "index crc32c: found [0-9a-f]{8}, expected 00000007"),
    ],
)
def test_preamble_defect(path: Path, changes: dict[str, Any], message: str) -> None:
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 16)
    fields = {"index_offset": offset, "file_bytes": len(data)} | changes
    path.write_bytes(preamble(index=data[offset:], **fields) + data[64:])
    with pytest.raises(FormatError, match=message) as caught:
        ContainerReader.open(path)
    assert caught.value.exit_code == 4


def test_index_range_that_begins_early_is_refused_by_the_layout(path: Path) -> None:
    """The index may swallow the table's last bytes only if it is not JSON any more."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 16)
    start = offset - 64
    path.write_bytes(preamble(start, data[start:]) + data[64:])
    with pytest.raises(FormatError, match="index: not JSON"):
        ContainerReader.open(path)


def test_index_after_a_hole_is_refused_by_the_layout(path: Path) -> None:
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 16)
    index = data[offset:]
    path.write_bytes(preamble(offset + 64, index) + data[64:offset] + bytes(64) + index)
    message = f"preamble index offset: found {offset + 64}, expected {offset}"
    with pytest.raises(FormatError, match=message):
        ContainerReader.open(path)


@pytest.mark.parametrize("content", [b"", b"x", b"LSBIT\r\n\x1a", bytes(64), b"x" * 10_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.lsb"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.lsb: preamble"):
        ContainerReader.open(path)


def test_missing_file_is_an_input_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="no such file"):
        ContainerReader.open(tmp_path / "model.lsb")
