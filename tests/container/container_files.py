"""Small containers, and a way to forge them that shares no code with the package."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crc_reference import crc32c

from loop_singular_bit.container import ContainerWriter

MAGIC = bytes.fromhex("4c534249540d0a1a")
BLOCK_BYTES = 4096


def pattern(size_bytes: int, start: int = 1) -> bytes:
    """Bytes in which no two blocks and no two extents are alike."""
    return b"".join(struct.pack("<I", (start << 20) + word) for word in range(-(-size_bytes // 4)))[
        :size_bytes
    ]


def write_compact(path: Path) -> None:
    """About 1 KB, no run: every byte of it can be tried."""
    with ContainerWriter(path, {"model": "tiny"}, block_bytes=BLOCK_BYTES) as writer:
        writer.add("norm", "raw", {"rows": 2}, {"values": pattern(70), "bias": b""})
        writer.add("q", "planes", {"loops": 1}, {"plane0": pattern(33, 2)})


LAYERED = {
    ("embed", "rows"): pattern(2 * BLOCK_BYTES + 100, 1),
    ("0.norm", "values"): pattern(64, 2),
    ("0.q", "plane0"): pattern(BLOCK_BYTES + 1, 3),
    ("0.q", "plane1"): pattern(3 * BLOCK_BYTES, 4),
    ("0.q", "outliers"): b"",
    ("1.norm", "values"): pattern(64, 5),
    ("1.q", "plane0"): pattern(5, 6),
}


def write_layered(path: Path) -> None:
    """A record outside of runs, two runs, extents of none to three blocks, an optional extent."""
    with ContainerWriter(path, {"model": "tiny"}, block_bytes=BLOCK_BYTES) as writer:
        for name in dict.fromkeys(record for record, _ in LAYERED):
            if name.endswith("norm"):
                writer.begin_run()
            extents = {extent: data for (record, extent), data in LAYERED.items() if record == name}
            writer.add(name, "raw", {}, extents)
        writer.add_optional("notes", pattern(9, 7))


# Shards of two runs, one run, one run that is longer than the limit, and one run.
SHARD_BYTES = 36_864
SHARDED = {
    (name, extent): pattern(size, start)
    for start, (name, extent, size) in enumerate(
        [
            ("embed", "rows", 500),
            ("0.norm", "values", 64),
            ("0.q", "plane0", 3 * BLOCK_BYTES),
            ("1.norm", "values", 64),
            ("1.q", "plane0", 3 * BLOCK_BYTES),
            ("2.norm", "values", 64),
            ("2.q", "plane0", 3 * BLOCK_BYTES),
            ("2.q", "outliers", 0),
            ("3.norm", "values", 10 * BLOCK_BYTES),
            ("3.q", "plane0", 1),
            ("4.norm", "values", 0),
            ("4.q", "plane0", 7),
        ],
        10,
    )
}


def write_sharded(path: Path, shard_bytes: int = SHARD_BYTES, **options: Any) -> None:
    """Five runs of which the fourth is longer than a shard, and an optional extent."""
    with ContainerWriter(
        path, {"model": "tiny"}, block_bytes=BLOCK_BYTES, shard_bytes=shard_bytes, **options
    ) as writer:
        for name in dict.fromkeys(record for record, _ in SHARDED):
            if name.endswith("norm"):
                writer.begin_run()
            extents = {e: data for (record, e), data in SHARDED.items() if record == name}
            writer.add(name, "raw", {}, extents)
        writer.add_optional("notes", pattern(9, 7))


Places = dict[tuple[str, str], tuple[int, int, int]]


def places(index: dict[str, Any]) -> Places:
    """(shard, offset, bytes) of every extent, as docs/format.md says and not as the package does:
    each run's length is known before it is placed."""
    found: Places = {}
    ends = [64]
    starts = [*index["runs"], len(index["records"])]
    groups = [(False, index["records"][: starts[0]])]
    groups += [(True, index["records"][a:b]) for a, b in itertools.pairwise(starts)]
    for is_run, records in groups:
        extents = [(r["name"], name, size) for r in records for name, size in r["extents"]]
        offsets, end = _run_places(extents, ends[-1], is_run)
        holds_bytes = any(size for _, _, size in extents)
        if is_run and holds_bytes and ends[-1] > 64 and end > index["shard_bytes"]:
            ends.append(64)
            offsets, end = _run_places(extents, 64, is_run)
        ends[-1] = end
        for (record, name, size), offset in zip(extents, offsets, strict=True):
            found[record, name] = len(ends) - 1, offset, size
    for name, size in index["optional"]:
        offset = -(-ends[0] // 64) * 64
        found["", name] = 0, offset, size
        ends[0] = offset + size if size else ends[0]
    return found


def _run_places(
    extents: list[tuple[str, str, int]], end: int, is_run: bool
) -> tuple[list[int], int]:
    offsets = []
    empty = is_run
    for _, _, size in extents:
        step = 4096 if empty else 64
        offsets.append(-(-end // step) * step)
        if size:
            end, empty = offsets[-1] + size, False
    return offsets, end


def place_in(path: Path, record: str, extent: str) -> tuple[int, int, int]:
    """(shard, offset, bytes) of one extent of a file."""
    return places(read_index(path.read_bytes()))[record, extent]


def patch(path: Path, offset: int, data: bytes) -> None:
    """Overwrites bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read_index(data: bytes) -> dict[str, Any]:
    """The index of a file as plain objects."""
    offset, size_bytes = struct.unpack_from("<QQ", data, 16)
    index: dict[str, Any] = json.loads(data[offset : offset + size_bytes])
    return index


def preamble(
    index_offset: int,
    index: bytes,
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    features: int = 0,
    index_bytes: int | None = None,
    file_bytes: int | None = None,
    index_crc32c: int | None = None,
    flip: int = 0,
    reserved: bytes = bytes(16),
) -> bytes:
    """A preamble with right checksums, but for the fields that are given."""
    index_bytes = len(index) if index_bytes is None else index_bytes
    file_bytes = index_offset + len(index) if file_bytes is None else file_bytes
    index_crc32c = crc32c(index) if index_crc32c is None else index_crc32c
    head = struct.pack(
        "<8sIIQQQI", magic, version, features, index_offset, index_bytes, file_bytes, index_crc32c
    )
    return head + struct.pack("<I", crc32c(head) ^ flip) + reserved


def forge_index_bytes(path: Path, index: bytes) -> None:
    """Puts other index bytes into a file and makes every checksum right again."""
    data = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 16)
    path.write_bytes(preamble(offset, index) + data[64:offset] + index)


def forge_index(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the index of a file and makes every checksum right again."""
    index = read_index(path.read_bytes())
    change(index)
    text = json.dumps(index, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    forge_index_bytes(path, text.encode())
