"""What a run of `lsb` gave."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
from loop_singular_bit.engine.kv import KV_BITS_DEFAULT
from loop_singular_bit.engine.memory_plan import Setting, as_plans, resident_plan, streamed_plan


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> bool:
        """Asserts `code`, nothing on stdout, and one line on stderr with all of `words`."""
        assert (self.code, self.out) == (code, "")
        self.one_line(*words)
        return True

    def one_line(self, *words: str) -> None:
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("lsb: ")
        for word in words:
            assert word in lines[0]


Command = Callable[..., Outcome]


def copied(artefact: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(artefact, to)
    return to


def flip_data_bit(artefact: Path) -> None:
    """One bit of a tensor in the middle of the weights."""
    path = artefact / "model.lsb"
    with ContainerReader.open(path) as reader:
        name = reader.record("layers.1.gate").extents[-1].name
        piece = reader.piece("layers.1.gate", name)
    data = bytearray(path.read_bytes())
    data[piece.offset + piece.size_bytes // 2] ^= 4
    path.write_bytes(data)


def set_version(artefact: Path, version: int) -> None:
    """A preamble that says `version`, with a checksum that agrees (docs/format.md)."""
    path = artefact / "model.lsb"
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, version)
    struct.pack_into("<I", data, 44, crc32c(bytes(data[:44])))
    path.write_bytes(data)


def streaming_bytes(artefact: Path, context: int, kv_bits: str = KV_BITS_DEFAULT) -> int:
    """The least budget, which must not hold everything."""
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        spec, records = read_spec(artefact), as_plans(reader.records)
    setting = Setting(context, kv_bits=kv_bits)
    least = streamed_plan(spec, records, setting).ledger.total_bytes
    assert least < resident_plan(spec, records, setting).ledger.total_bytes
    return least
