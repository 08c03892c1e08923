"""Small containers, and a way to forge them that shares no code with the package."""

from __future__ import annotations

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
    version: int = 0,
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
