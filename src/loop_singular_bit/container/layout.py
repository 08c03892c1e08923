"""Where every byte of a container lies: pure functions, no I/O (docs/format.md).

`plan_layout` is the one source of byte counts: the writer asserts that the files equal it, the
reader computes it again from the index, and a size estimate is its `file_bytes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from loop_singular_bit.container.index import (
    BLOCK_BYTES,
    SHARD_BYTES,
    Extent,
    Index,
    Record,
    check_block_bytes,
    check_name,
    check_shard_bytes,
    check_values,
    encode_index,
)
from loop_singular_bit.container.preamble import ALIGN_BYTES, PREAMBLE_BYTES
from loop_singular_bit.errors import FormatError

RUN_ALIGN_BYTES = 4096
CHECKSUM_BYTES = 4
SHARDS_MAX = 100_000


def align_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class RecordPlan:
    """A record before it is written. `extents` maps each extent's name to its bytes, in order."""

    name: str
    kind: str
    attributes: Mapping[str, Any]
    extents: Mapping[str, int]
    begins_run: bool = False


class Piece(msgspec.Struct, frozen=True, gc=False):
    """An extent and where it lies.

    record       name of its record ("" for an optional extent)
    shard        number of the file, 0 for the first
    offset       of its first byte in that file
    first_block  number of its first checksum block
    """

    record: str
    extent: Extent
    shard: int
    offset: int
    first_block: int

    @property
    def size_bytes(self) -> int:
        return self.extent.size_bytes

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.extent.size_bytes

    def __str__(self) -> str:
        record = f"record {self.record!r}" if self.record else "optional"
        return f"{record} extent {self.extent.name!r}"


class Placer:
    """Hands out places in file order and opens a shard when a run does not fit into the current.

    pieces  every place so far
    ends    for each shard, where the last extent that holds bytes ends
    blocks  number of the next checksum block
    """

    def __init__(self, block_bytes: int, shard_bytes: int) -> None:
        self.pieces: list[Piece] = []
        self.ends = [PREAMBLE_BYTES]
        self.blocks = 0
        self._block_bytes = block_bytes
        self._shard_bytes = shard_bytes
        # The current run: its first piece, and where the shard ended before it.
        self._run_piece: int | None = None
        self._run_floor = PREAMBLE_BYTES

    def record(self, record: Record, begins_run: bool) -> None:
        """Places the next record. Its whole run moves to the next shard when it outgrows this."""
        if begins_run:
            self._run_piece, self._run_floor = len(self.pieces), self.ends[-1]
        run, shard = self._run_piece, len(self.ends) - 1
        for extent in record.extents:
            # Up to its first byte, a run looks for a page.
            starts = run is not None and self.ends[-1] == self._run_floor
            self._put(record.name, extent, shard, RUN_ALIGN_BYTES if starts else ALIGN_BYTES)
        alone = self._run_floor == PREAMBLE_BYTES
        outgrown = self.ends[-1] > max(self._shard_bytes, self._run_floor)
        if run is not None and outgrown and not alone:
            self._move(run)

    def optional(self, extent: Extent) -> None:
        """Places an extent behind the records of the first shard."""
        self._put("", extent, 0, ALIGN_BYTES)

    def _put(self, record: str, extent: Extent, shard: int, alignment: int) -> None:
        offset = align_up(self.ends[shard], alignment)
        self.pieces.append(Piece(record, extent, shard, offset, self.blocks))
        if extent.size_bytes:
            self.ends[shard] = offset + extent.size_bytes
            self.blocks += -(-extent.size_bytes // self._block_bytes)

    def _move(self, first: int) -> None:
        """Moves the pieces from `first` on, a run, to a new shard."""
        if len(self.ends) == SHARDS_MAX:
            raise FormatError(
                f"shard {SHARDS_MAX}: the format allows {SHARDS_MAX} files; raise shard_bytes "
                f"above {self._shard_bytes}"
            )
        number = len(self.ends)
        shift = RUN_ALIGN_BYTES - align_up(self._run_floor, RUN_ALIGN_BYTES)
        self.pieces[first:] = [
            Piece(p.record, p.extent, number, p.offset + shift, p.first_block)
            for p in self.pieces[first:]
        ]
        end, self.ends[-1] = self.ends[-1] + shift, self._run_floor
        self.ends.append(end)
        self._run_floor = PREAMBLE_BYTES


@dataclass(frozen=True)
class Layout:
    """Every offset and byte count of an artefact.

    pieces       every extent's place, the optional ones last
    shard_ends   for each shard, where its last extent that holds bytes ends
    blocks       number of checksum blocks
    index_bytes  length of the index as it stands in the file
    Where it is planned, `index.table_crc32c` is still zero.
    """

    index: Index
    pieces: Sequence[Piece]
    shard_ends: tuple[int, ...]
    blocks: int
    index_bytes: int

    @property
    def table_offset(self) -> int:
        """Where the checksum table starts, in the first shard."""
        return align_up(self.shard_ends[0], ALIGN_BYTES)

    @property
    def table_bytes(self) -> int:
        return self.blocks * CHECKSUM_BYTES

    @property
    def index_offset(self) -> int:
        """Where the index starts, in the first shard."""
        return align_up(self.table_offset + self.table_bytes, ALIGN_BYTES)

    @property
    def shard_file_bytes(self) -> tuple[int, ...]:
        """Length of each file."""
        return (self.index_offset + self.index_bytes, *self.shard_ends[1:])

    @property
    def file_bytes(self) -> int:
        """Length of all files together."""
        return sum(self.shard_file_bytes)


def lay_out(index: Index, index_bytes: int) -> Layout:
    """The layout that an index stands for. Raises FormatError for more shards than allowed."""
    placer = Placer(index.block_bytes, index.shard_bytes)
    runs = frozenset(index.runs)
    for number, record in enumerate(index.records):
        placer.record(record, number in runs)
    for extent in index.optional:
        placer.optional(extent)
    return Layout(index, tuple(placer.pieces), tuple(placer.ends), placer.blocks, index_bytes)


def plan_layout(
    records: Iterable[RecordPlan],
    meta: Mapping[str, Any],
    optional: Mapping[str, int] | None = None,
    block_bytes: int = BLOCK_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> Layout:
    """The layout of an artefact of `records` and the `optional` extents (name -> bytes).

    Exact to the byte for the given meta and attributes. An estimate made before an attribute is
    known must put a value of the same JSON length in its place.
    Raises FormatError for anything that docs/format.md does not allow.
    """
    check_block_bytes(block_bytes)
    check_shard_bytes(shard_bytes)
    check_values("meta", dict(meta))
    plans = list(records)
    runs = tuple(number for number, plan in enumerate(plans) if plan.begins_run)
    placed = tuple(map(checked_record, plans))
    _check_unique("record", (record.name for record in placed))
    for name in optional or {}:
        check_name("optional extent name", name)
    sections = tuple(Extent(*item) for item in (optional or {}).items())
    # The digits of the CRC stand for those that the writer puts there: the same length.
    index = Index(block_bytes, dict(meta), sections, placed, runs, shard_bytes, "00000000")
    return lay_out(index, len(encode_index(index)))


def checked_record(plan: RecordPlan) -> Record:
    """The record of a plan. Raises FormatError for a bad name, kind, attribute or count."""
    check_name("record name", plan.name)
    check_name(f"record {plan.name!r} kind", plan.kind)
    check_values(f"record {plan.name!r} attributes", dict(plan.attributes))
    if not plan.extents:
        raise FormatError(f"record {plan.name!r}: 0 extents, expected at least 1")
    for name in plan.extents:
        check_name(f"record {plan.name!r} extent name", name)
    extents = tuple(Extent(*item) for item in plan.extents.items())
    return Record(plan.name, plan.kind, dict(plan.attributes), extents)


def check_index(index: Index) -> None:
    """Refuses an index whose names repeat or whose runs are not ascending record numbers.

    Raises FormatError naming the place, found and expected.
    """
    _check_unique("index record", (record.name for record in index.records))
    _check_unique("index optional extent", (extent.name for extent in index.optional))
    for record in index.records:
        if len(record.extents) > 1:
            names = (extent.name for extent in record.extents)
            _check_unique(f"index record {record.name!r} extent", names)
    for position, (before, first) in enumerate(pairwise((-1, *index.runs))):
        if not before < first < len(index.records):
            raise FormatError(
                f"index runs[{position}]: found record {first}, expected {before + 1} to "
                f"{len(index.records) - 1}"
            )


def _check_unique(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    if len(set(listed)) < len(listed):
        name, count = Counter(listed).most_common(1)[0]
        raise FormatError(f"{what} name: {name!r} stands {count} times, expected once")
