"""The preamble of a further shard, one defect at a time, checksums right."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from container_files import write_sharded
from crc_reference import crc32c

from loop_singular_bit.container import ContainerReader
from loop_singular_bit.container.preamble import artefact_id
from loop_singular_bit.errors import FormatError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.lsb"
    write_sharded(path)
    return path


def _forge(shard: Path, **changes: Any) -> None:
    data = shard.read_bytes()
    names = ("magic", "version", "number", "file_bytes", "bound_to", "zero")
    fields = dict(zip(names, struct.unpack_from("<8sIIQ16sI", data), strict=True))
    flip, reserved = changes.pop("flip", 0), changes.pop("reserved", bytes(16))
    head = struct.pack("<8sIIQ16sI", *(fields | changes).values())
    shard.write_bytes(head + struct.pack("<I", crc32c(head) ^ flip) + reserved + data[64:])


def test_forging_nothing_gives_a_valid_shard(path: Path) -> None:
    _forge(path.with_name("model-00001.lsb"))
    with ContainerReader.open(path) as reader:
        reader.verify_all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"LSBSH\n\x1a\0"}, "magic: found 4c534253480a1a00, expected 4c534253480d0a1a"),
        ({"flip": 1}, "crc32c: found [0-9a-f]{8}, expected"),
        ({"version": 0}, "version: found 0, expected 1; written before the format was frozen"),
        ({"version": 2}, "version: found 2, expected 1; needs a newer version"),
        ({"number": 2}, "number: found 2, expected 1; copy or download it again"),
        ({"file_bytes": 9}, r"file bytes: found 9, expected \d+"),
        ({"bound_to": bytes(16)}, "artefact: found 0{32}, expected [0-9a-f]{32}: a shard of anoth"),
        ({"zero": 5}, "reserved: found 5, expected 0; needs a newer version"),
        ({"reserved": bytes(15) + b"\1"}, "reserved: found a byte that is not zero; needs a newer"),
    ],
)
def test_shard_preamble_defect(path: Path, changes: dict[str, Any], message: str) -> None:
    _forge(path.with_name("model-00001.lsb"), **changes)
    with pytest.raises(FormatError, match=rf"model-00001\.lsb: shard preamble {message}") as caught:
        ContainerReader.open(path)
    assert caught.value.exit_code == 4


def test_id_depends_on_table_and_index() -> None:
    found = {artefact_id(table, index) for table in (b"", b"t") for index in (b"i", b"j")}
    assert len(found) == 4
    assert artefact_id(b"", b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223"  # of FIPS 180-4
