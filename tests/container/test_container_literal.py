"""The format, byte for byte: a change here is a change of docs/format.md and of the version."""

from __future__ import annotations

import struct
from pathlib import Path

from crc_reference import crc32c

from loop_singular_bit.container import ContainerReader, ContainerWriter

PREAMBLE = bytes.fromhex(
    "4c534249540d0a1a"  # magic
    "00000000"  # version 0
    "00000000"  # required features: none
    "0011000000000000"  # index offset 4352
    "2f02000000000000"  # index bytes 559
    "2f13000000000000"  # file bytes 4911
    "6bf410d3"  # CRC-32C of the index
    "df06122b"  # CRC-32C of the 44 bytes before
    "00000000000000000000000000000000"
)
TABLE = bytes.fromhex("6e72374af4dd8f6b30534ca15769" + "9c70")
INDEX = (
    b'{"block_bytes":262144,'
    b'"checksums":{"bytes":16,"crc32c":"2684d283","offset":4288},'
    b'"meta":{"b":[true,null,-1.5],"name":"\xc3\xa9"},'
    b'"optional":[{"bytes":1,"checksums":3,"name":"note","offset":4224}],'
    b'"records":['
    b'{"attributes":{"rows":2},"extents":['
    b'{"bytes":4,"checksums":0,"name":"values","offset":64}],"kind":"raw","name":"norm"},'
    b'{"attributes":{},"extents":['
    b'{"bytes":3,"checksums":1,"name":"scale","offset":4096},'
    b'{"bytes":0,"checksums":2,"name":"outliers","offset":4160},'
    b'{"bytes":11,"checksums":2,"name":"plane0","offset":4160}],"kind":"planes","name":"q"}],'
    b'"runs":[1]}'
)
FILE = (
    PREAMBLE
    + (b"\x01\x02\x03\x04".ljust(4096 - 64, b"\0"))
    + b"abc".ljust(64, b"\0")
    + b"hello world".ljust(64, b"\0")
    + b"!".ljust(64, b"\0")
    + TABLE.ljust(64, b"\0")
    + INDEX
)


def test_checksums_follow_from_the_specification() -> None:
    blocks = (b"\x01\x02\x03\x04", b"abc", b"hello world", b"!")
    numbered = [crc32c(struct.pack("<Q", k) + block) for k, block in enumerate(blocks)]
    assert struct.pack("<4I", *numbered) == TABLE
    assert f"{crc32c(TABLE):08x}".encode() in INDEX
    assert struct.pack("<I", crc32c(INDEX)) == PREAMBLE[40:44]
    assert struct.pack("<I", crc32c(PREAMBLE[:44])) == PREAMBLE[44:48]


def test_writer_writes_these_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    with ContainerWriter(path, {"name": "é", "b": [True, None, -1.5]}) as writer:
        writer.add("norm", "raw", {"rows": 2}, {"values": b"\x01\x02\x03\x04"})
        writer.begin_run()
        extents = {"scale": b"abc", "outliers": b"", "plane0": b"hello world"}
        writer.add("q", "planes", {}, extents)
        writer.add_optional("note", b"!")
    assert path.read_bytes() == FILE


def test_reader_reads_these_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.lsb"
    path.write_bytes(FILE)
    with ContainerReader.open(path) as reader:
        assert reader.meta == {"name": "é", "b": [True, None, -1.5]}
        assert [(record.name, record.kind) for record in reader.records] == [
            ("norm", "raw"),
            ("q", "planes"),
        ]
        assert reader.record("norm").attributes == {"rows": 2}
        assert reader.read("norm", "values").tobytes() == b"\x01\x02\x03\x04"
        assert reader.read("q", "scale").tobytes() == b"abc"
        assert reader.read("q", "outliers").tobytes() == b""
        assert reader.read("q", "plane0").tobytes() == b"hello world"
        assert reader.read_optional("note").tobytes() == b"!"
        reader.verify_all()
