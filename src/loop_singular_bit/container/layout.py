"""Where every byte of a container lies: pure functions, no I/O (docs/format.md).

`plan_layout` is the one source of byte counts: the writer asserts that the file equals it, the
reader refuses a file that differs, and a size estimate is its `file_bytes`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.index import (
    BLOCK_BYTES,
    INDEX_BYTES_MAX,
    ChecksumTable,
    Extent,
    Index,
    Record,
    check_block_bytes,
    check_name,
    check_values,
    encode_index,
)
from loop_singular_bit.errors import FormatError

MAGIC = b"LSBIT\r\n\x1a"
FORMAT_VERSION = 0
FEATURES_KNOWN = 0
PREAMBLE_BYTES = 64
ALIGN_BYTES = 64
RUN_ALIGN_BYTES = 4096
CHECKSUM_BYTES = 4

_PREAMBLE = struct.Struct("<8sIIQQQI")
_CRC_OFFSET = _PREAMBLE.size
_NEWER = "needs a newer version of loop-singular-bit: run `pip install -U loop-singular-bit`"


def align_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Preamble:
    """The fields of the first 64 bytes that vary."""

    index_offset: int
    index_bytes: int
    file_bytes: int
    index_crc32c: int


@dataclass(frozen=True)
class RecordPlan:
    """A record before it is written. `extents` maps each extent's name to its bytes, in order."""

    name: str
    kind: str
    attributes: Mapping[str, Any]
    extents: Mapping[str, int]
    begins_run: bool = False


@dataclass(frozen=True)
class Layout:
    """Every offset and byte count of a file. The CRC in `index.checksums` is still zero."""

    index: Index
    index_offset: int
    index_bytes: int

    @property
    def file_bytes(self) -> int:
        return self.index_offset + self.index_bytes


class Placer:
    """Hands out places in file order. `end` is the first free byte, `blocks` the next block."""

    def __init__(self, block_bytes: int) -> None:
        self.end = PREAMBLE_BYTES
        self.blocks = 0
        self._block_bytes = block_bytes

    def extent(self, name: str, size_bytes: int, begins_run: bool = False) -> Extent:
        """The next extent's place."""
        offset = align_up(self.end, RUN_ALIGN_BYTES if begins_run else ALIGN_BYTES)
        extent = Extent(name, offset, size_bytes, self.blocks)
        self.end = offset + size_bytes
        self.blocks += -(-size_bytes // self._block_bytes)
        return extent

    def table(self) -> ChecksumTable:
        """The checksum table's place behind the last extent."""
        offset = align_up(self.end, ALIGN_BYTES)
        # The digits of the CRC stand for those that the writer puts there: the same length.
        return ChecksumTable(offset, self.blocks * CHECKSUM_BYTES, "00000000")


def index_offset_after(table: ChecksumTable) -> int:
    """Where the index starts."""
    return align_up(table.offset + table.size_bytes, ALIGN_BYTES)


def data_end(index: Index) -> int:
    """Where the last extent that holds bytes ends."""
    return max((e.end for e in index.extents() if e.size_bytes), default=PREAMBLE_BYTES)


def plan_layout(
    records: Iterable[RecordPlan],
    meta: Mapping[str, Any],
    optional: Mapping[str, int] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Layout:
    """The layout of a file that holds `records` and the `optional` extents (name -> bytes).

    Exact to the byte for the given meta and attributes. An estimate made before an attribute is
    known must put a value of the same JSON length in its place.
    Raises FormatError for anything that docs/format.md does not allow.
    """
    check_block_bytes(block_bytes)
    check_values("meta", dict(meta))
    placer = Placer(block_bytes)
    placed: list[Record] = []
    runs: list[int] = []
    for plan in records:
        if plan.begins_run:
            runs.append(len(placed))
        placed.append(place_record(placer, plan))
    _check_unique("record", (record.name for record in placed))
    sections = []
    for name, size_bytes in (optional or {}).items():
        check_name("optional extent name", name)
        sections.append(placer.extent(name, size_bytes))
    table = placer.table()
    index = Index(block_bytes, table, dict(meta), tuple(sections), tuple(placed), tuple(runs))
    return Layout(index, index_offset_after(table), len(encode_index(index)))


def place_record(placer: Placer, plan: RecordPlan) -> Record:
    """The next record's place. Raises FormatError for a bad name, kind, attribute or count."""
    check_name("record name", plan.name)
    check_name(f"record {plan.name!r} kind", plan.kind)
    check_values(f"record {plan.name!r} attributes", dict(plan.attributes))
    if not plan.extents:
        raise FormatError(f"record {plan.name!r}: 0 extents, expected at least 1")
    # All checks come first: a refused record must not have moved the placer.
    for name in plan.extents:
        check_name(f"record {plan.name!r} extent name", name)
    extents: list[Extent] = []
    for name, size_bytes in plan.extents.items():
        extents.append(placer.extent(name, size_bytes, plan.begins_run and not extents))
    return Record(plan.name, plan.kind, dict(plan.attributes), tuple(extents))


def check_layout(index: Index, preamble: Preamble) -> None:
    """Refuses an index whose names repeat or whose places are not those of the format.

    Raises FormatError naming record, extent and field, found and expected.
    """
    _check_unique("index record", (record.name for record in index.records))
    _check_unique("index optional extent", (extent.name for extent in index.optional))
    runs = _check_runs(index.runs, len(index.records))
    placer = Placer(index.block_bytes)
    for number, record in enumerate(index.records):
        where = f"index record {record.name!r}"
        _check_unique(f"{where} extent", (extent.name for extent in record.extents))
        for position, extent in enumerate(record.extents):
            _check_extent(where, placer, extent, number in runs and position == 0)
    for extent in index.optional:
        _check_extent("index optional", placer, extent, False)
    table = placer.table()
    _expect("index checksums offset", index.checksums.offset, table.offset)
    _expect("index checksums bytes", index.checksums.size_bytes, table.size_bytes)
    _expect("preamble index offset", preamble.index_offset, index_offset_after(table))


def pack_preamble(preamble: Preamble) -> bytes:
    """The first 64 bytes of a file."""
    head = _PREAMBLE.pack(
        MAGIC,
        FORMAT_VERSION,
        0,
        preamble.index_offset,
        preamble.index_bytes,
        preamble.file_bytes,
        preamble.index_crc32c,
    )
    return (head + struct.pack("<I", crc32c(head))).ljust(PREAMBLE_BYTES, b"\0")


def unpack_preamble(data: bytes, file_bytes: int) -> Preamble:
    """The preamble of a file that is `file_bytes` long. Raises FormatError naming the field."""
    if len(data) < PREAMBLE_BYTES:
        raise FormatError(f"preamble: the file has {file_bytes} bytes, expected {PREAMBLE_BYTES}")
    magic, version, features, *rest = _PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise FormatError(f"preamble magic: found {magic.hex()}, expected {MAGIC.hex()}")
    (found,) = struct.unpack_from("<I", data, _CRC_OFFSET)
    expected = crc32c(data[:_CRC_OFFSET])
    if found != expected:
        raise FormatError(f"preamble crc32c: found {found:08x}, expected {expected:08x}")
    if version != FORMAT_VERSION:
        raise FormatError(f"preamble version: found {version}, expected {FORMAT_VERSION}; {_NEWER}")
    if features & ~FEATURES_KNOWN:
        raise FormatError(
            f"preamble features: found {features:#x}, known {FEATURES_KNOWN:#x}; {_NEWER}"
        )
    if any(data[_CRC_OFFSET + 4 : PREAMBLE_BYTES]):
        raise FormatError(f"preamble reserved: found a byte that is not zero; {_NEWER}")
    preamble = Preamble(*rest)
    _check_ranges(preamble, file_bytes)
    return preamble


def _check_ranges(preamble: Preamble, file_bytes: int) -> None:
    if preamble.file_bytes != file_bytes:
        raise FormatError(
            f"preamble file bytes: the file has {file_bytes} bytes, expected "
            f"{preamble.file_bytes}; copy or download it again"
        )
    if not 1 <= preamble.index_bytes <= INDEX_BYTES_MAX:
        raise FormatError(
            f"preamble index bytes: found {preamble.index_bytes}, expected 1 to {INDEX_BYTES_MAX}"
        )
    if preamble.index_offset < PREAMBLE_BYTES or preamble.index_offset % ALIGN_BYTES:
        raise FormatError(
            f"preamble index offset: found {preamble.index_offset}, expected a multiple of "
            f"{ALIGN_BYTES} from {PREAMBLE_BYTES}"
        )
    _expect("preamble index end", preamble.index_offset + preamble.index_bytes, file_bytes)


def _check_extent(where: str, placer: Placer, found: Extent, begins_run: bool) -> None:
    expected = placer.extent(found.name, found.size_bytes, begins_run)
    if found != expected:
        _expect(f"{where} extent {found.name!r} offset", found.offset, expected.offset)
        _expect(f"{where} extent {found.name!r} checksums", found.first_block, expected.first_block)


def _check_runs(runs: Sequence[int], record_count: int) -> frozenset[int]:
    floor = 0
    for position, first in enumerate(runs):
        if not floor <= first < record_count:
            raise FormatError(
                f"index runs[{position}]: found record {first}, expected {floor} to "
                f"{record_count - 1}"
            )
        floor = first + 1
    return frozenset(runs)


def _check_unique(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    if len(set(listed)) < len(listed):
        name, count = Counter(listed).most_common(1)[0]
        raise FormatError(f"{what} name: {name!r} stands {count} times, expected once")


def _expect(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise FormatError(f"{what}: found {found}, expected {expected}")
