"""The format, byte for byte: a change here is a change of docs/format.md and of the version."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from crc_reference import crc32c

from loop_singular_bit.container import ContainerReader, ContainerWriter

META = {"name": "é", "b": [True, None, -1.5]}
BLOCKS = (b"\x01\x02\x03\x04", b"abc", b"hello world", b"second run", b"!")
TABLE = bytes.fromhex("6e72374af4dd8f6b30534ca1bb80c4484da7fcb7")
FIRST_RUN = (
    b"\x01\x02\x03\x04".ljust(4096 - 64, b"\0")
    + b"abc".ljust(64, b"\0")
    + b"hello world".ljust(64, b"\0")
)  # fmt: skip


def index(shard_bytes: bytes) -> bytes:
    return (
        b'{"block_bytes":262144,'
        b'"meta":{"b":[true,null,-1.5],"name":"\xc3\xa9"},'
        b'"optional":[["note",1]],'
        b'"records":['
        b'{"attributes":{"rows":2},"extents":[["values",4]],"kind":"raw","name":"norm"},'
        b'{"attributes":{},"extents":[["scale",3],["outliers",0],["plane0",11]],'
        b'"kind":"planes","name":"q"},'
        b'{"attributes":{},"extents":[["plane0",10]],"kind":"planes","name":"k"}],'
        b'"runs":[1,2],'
        b'"shard_bytes":' + shard_bytes + b","
        b'"table_crc32c":"879abd8c"}'
    )


ONE_SHARD = {
    "model.lsb": bytes.fromhex(
        "4c534249540d0a1a"  # magic
        "01000000"  # version 1
        "00000000"  # required features: none
        "c020000000000000"  # index offset 8384
        "9b01000000000000"  # index bytes 411
        "5b22000000000000"  # file bytes 8795
        "36da9261"  # CRC-32C of the index
        "ac79af44"  # CRC-32C of the 44 bytes before
        "00000000000000000000000000000000"
    )
    + FIRST_RUN.ljust(8192 - 64, b"\0")
    + b"second run".ljust(64, b"\0")
    + b"!".ljust(64, b"\0")
    + TABLE.ljust(64, b"\0")
    + index(b"5000000000")
}
TWO_SHARDS = {
    "model.lsb": bytes.fromhex(
        "4c534249540d0a1a"  # magic
        "01000000"  # version 1
        "00000000"  # required features: none
        "0011000000000000"  # index offset 4352
        "9501000000000000"  # index bytes 405
        "9512000000000000"  # file bytes 4757
        "4fd07d61"  # CRC-32C of the index
        "b6c1ab0e"  # CRC-32C of the 44 bytes before
        "00000000000000000000000000000000"
    )
    + FIRST_RUN
    + b"!".ljust(64, b"\0")
    + TABLE.ljust(64, b"\0")
    + index(b"4200"),
    "model-00001.lsb": bytes.fromhex(
        "4c534253480d0a1a"  # magic of a further shard
        "01000000"  # version 1
        "01000000"  # shard 1
        "0a10000000000000"  # file bytes 4106
        "725b06415916753ae1c8ecd780e8cce8"  # half the SHA-256 of table and index
        "00000000"  # reserved
        "a2eb8c71"  # CRC-32C of the 44 bytes before
        "00000000000000000000000000000000"
    ).ljust(4096, b"\0")
    + b"second run",
}
CASES = pytest.mark.parametrize(
    ("files", "shard_bytes"), [(ONE_SHARD, 5_000_000_000), (TWO_SHARDS, 4200)]
)


@CASES
def test_checksums_follow_from_the_specification(files: dict[str, bytes], shard_bytes: int) -> None:
    numbered = [crc32c(struct.pack("<Q", k) + block) for k, block in enumerate(BLOCKS)]
    assert struct.pack("<5I", *numbered) == TABLE
    text = index(b"%d" % shard_bytes)
    assert f"{crc32c(TABLE):08x}".encode() in text
    assert struct.pack("<I", crc32c(text)) == files["model.lsb"][40:44]
    for data in files.values():
        assert struct.pack("<I", crc32c(data[:44])) == data[44:48]
    bound_to = hashlib.sha256(TABLE + text).digest()[:16]
    assert all(data[24:40] == bound_to for name, data in files.items() if "-" in name)


@CASES
def test_writer_writes_these_bytes(
    tmp_path: Path, files: dict[str, bytes], shard_bytes: int
) -> None:
    with ContainerWriter(tmp_path / "model.lsb", META, shard_bytes=shard_bytes) as writer:
        writer.add("norm", "raw", {"rows": 2}, {"values": b"\x01\x02\x03\x04"})
        writer.begin_run()
        extents = {"scale": b"abc", "outliers": b"", "plane0": b"hello world"}
        writer.add("q", "planes", {}, extents)
        writer.begin_run()
        writer.add("k", "planes", {}, {"plane0": b"second run"})
        writer.add_optional("note", b"!")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_default_limit(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "model.lsb"):
        pass
    assert b'"shard_bytes":5000000000,' in (tmp_path / "model.lsb").read_bytes()


@CASES
def test_reader_reads_these_bytes(
    tmp_path: Path, files: dict[str, bytes], shard_bytes: int
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with ContainerReader.open(tmp_path / "model.lsb") as reader:
        assert {path.name for path in reader.paths} == set(files)
        assert reader.file_bytes == sum(map(len, files.values()))
        assert reader.meta == META
        assert [(record.name, record.kind) for record in reader.records] == [
            ("norm", "raw"),
            ("q", "planes"),
            ("k", "planes"),
        ]
        assert reader.record("norm").attributes == {"rows": 2}
        assert reader.read("norm", "values").tobytes() == b"\x01\x02\x03\x04"
        assert reader.read("q", "scale").tobytes() == b"abc"
        assert reader.read("q", "outliers").tobytes() == b""
        assert reader.read("q", "plane0").tobytes() == b"hello world"
        assert reader.read("k", "plane0").tobytes() == b"second run"
        assert reader.read_optional("note").tobytes() == b"!"
        reader.verify_all()
