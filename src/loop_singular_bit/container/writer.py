"""Writes a container: extents are streamed, then the checksum table, the index, the preamble."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.checksum import block_crc32c
from loop_singular_bit.container.index import (
    BLOCK_BYTES,
    SHARD_BYTES,
    Extent,
    Record,
    check_block_bytes,
    check_name,
    check_shard_bytes,
    check_values,
    encode_index,
)
from loop_singular_bit.container.layout import (
    Layout,
    Piece,
    Placer,
    RecordPlan,
    checked_record,
    plan_layout,
)
from loop_singular_bit.container.preamble import (
    PREAMBLE_BYTES,
    Preamble,
    ShardPreamble,
    artefact_id,
    pack_preamble,
    pack_shard_preamble,
)
from loop_singular_bit.container.shards import PartialShards
from loop_singular_bit.errors import FormatError

Payload = bytes | bytearray | memoryview | npt.NDArray[Any]


class Mark(msgspec.Struct, frozen=True):
    """What a writer has made durable since the mark before: records and checksums of their
    blocks."""

    records: tuple[RecordPlan, ...]
    checksums: tuple[int, ...]


class ContainerWriter:
    """A container on its way to `path` and its further shards, as a context manager.

    Bytes go to `<path>.partial` and the like, which take their final names when the block ends
    well and are removed when it does not, unless `marks` are given. Raises UsageError when a file
    exists (unless `overwrite`) or another process is writing it, ResourceError when the disk fails
    or is full, FormatError for what docs/format.md does not allow.
    """

    def __init__(
        self,
        path: Path,
        meta: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        block_bytes: int = BLOCK_BYTES,
        shard_bytes: int = SHARD_BYTES,
        expected_bytes: int = 0,
        marks: Sequence[Mark] | None = None,
    ) -> None:
        """`expected_bytes` (a Layout's file_bytes) refuses a disk with less room at once.

        A run that would make a shard longer than `shard_bytes` begins the next one.
        marks: all that a stopped writer of the same container gave, none for the first; this one
        goes on behind the last of them, and leaves its files when it is stopped in turn.
        """
        check_block_bytes(block_bytes)
        check_shard_bytes(shard_bytes)
        self._block_bytes = block_bytes
        self._shard_bytes = shard_bytes
        self._placer = Placer(block_bytes, shard_bytes)
        self._plans: list[RecordPlan] = []
        self._names: set[str] = set()
        self._optional: dict[str, int] = {}
        self._checksums = array("I")
        self._begins_run = False
        self._meta: dict[str, Any] = {}
        self.set_meta(meta or {})
        for mark in marks or ():
            self._repeat(mark)
        self._marked = len(self._plans), len(self._checksums)
        kept = None if marks is None else self._kept_bytes()
        self._files = PartialShards(path, overwrite, expected_bytes, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._files.discard()

    def set_meta(self, meta: Mapping[str, Any]) -> None:
        """Replaces the object for the layers above; the one set last is written."""
        check_values("meta", dict(meta))
        self._meta = dict(meta)

    def begin_run(self) -> None:
        """The next record starts a run: records up to the next run are read together."""
        self._begins_run = True

    def add(
        self,
        name: str,
        kind: str,
        attributes: Mapping[str, Any],
        extents: Mapping[str, Payload],
    ) -> Record:
        """Writes a record, its extents in the order given, and returns it as a reader will."""
        if name in self._names:
            raise FormatError(f"record name: {name!r} stands twice, expected once")
        self._refuse_after_optional(name)
        views = {key: _bytes_of(f"record {name!r}", key, data) for key, data in extents.items()}
        sizes = {key: len(view) for key, view in views.items()}
        plan = RecordPlan(name, kind, dict(attributes), sizes, self._begins_run)
        record = checked_record(plan)
        self._place(record)
        for piece, view in zip(self._placer.pieces[-len(views) :], views.values(), strict=True):
            self._write(piece, view)
        self._plans.append(plan)
        self._names.add(name)
        self._begins_run = False
        return record

    def mark(self) -> Mark:
        """Makes all that was written durable, and returns what is new since the last mark. Only
        between two runs: behind it, a record begins a run."""
        self._files.sync()
        records, blocks = self._marked
        self._marked = len(self._plans), len(self._checksums)
        return Mark(tuple(self._plans[records:]), tuple(self._checksums[blocks:]))

    def add_optional(self, name: str, data: Payload) -> None:
        """Writes an extent that a reader may skip. No record can follow."""
        check_name("optional extent name", name)
        if name in self._optional:
            raise FormatError(f"optional extent name: {name!r} stands twice, expected once")
        view = _bytes_of("optional", name, data)
        self._placer.optional(Extent(name, len(view)))
        self._write(self._placer.pieces[-1], view)
        self._optional[name] = len(view)

    def layout(self) -> Layout:
        """The layout of the artefact if it ended here."""
        return plan_layout(
            self._plans, self._meta, self._optional, self._block_bytes, self._shard_bytes
        )

    def _repeat(self, mark: Mark) -> None:
        """Takes over what is in the files already."""
        for plan in mark.records:
            self._placer.record(checked_record(plan), plan.begins_run)
            self._plans.append(plan)
            self._names.add(plan.name)
        self._checksums.extend(mark.checksums)
        if len(self._checksums) != self._placer.blocks:
            raise FormatError(
                f"mark: {len(self._checksums)} checksums, its records have {self._placer.blocks} "
                "blocks; start over with --restart"
            )

    def _kept_bytes(self) -> list[int]:
        """Of each file; one without records has no preamble yet."""
        return [0 if end == PREAMBLE_BYTES else end for end in self._placer.ends]

    def _place(self, record: Record) -> None:
        shards = len(self._placer.ends)
        self._placer.record(record, self._begins_run)
        if len(self._placer.ends) > shards:
            self._files.next_shard(self._placer.ends[-2])

    def _write(self, piece: Piece, view: memoryview) -> None:
        for start in range(0, len(view), self._block_bytes):
            block = view[start : start + self._block_bytes]
            self._checksums.append(block_crc32c(len(self._checksums), block))
        self._files.write(piece.offset, view, piece.shard)

    def _finish(self) -> None:
        layout = self.layout()
        if list(layout.pieces) != self._placer.pieces:
            raise AssertionError("the records written are not where the layout has them")
        table = np.array(self._checksums, "<u4").tobytes()
        digits = f"{crc32c(table):08x}"
        index = encode_index(msgspec.structs.replace(layout.index, table_crc32c=digits))
        sizes = layout.shard_file_bytes
        first = Preamble(layout.index_offset, layout.index_bytes, sizes[0], crc32c(index))
        self._files.write(layout.table_offset, table, 0)
        self._files.write(layout.index_offset, index, 0)
        self._files.write(0, pack_preamble(first), 0)
        bound_to = artefact_id(table, index)
        for number, size_bytes in enumerate(sizes[1:], 1):
            preamble = ShardPreamble(number, size_bytes, bound_to)
            self._files.write(0, pack_shard_preamble(preamble), number)
        self._files.commit(sizes)

    def _refuse_after_optional(self, name: str) -> None:
        if self._optional:
            raise FormatError(f"record {name!r}: comes after an optional extent, expected before")


def _bytes_of(where: str, name: str, data: Payload) -> memoryview:
    view = data.data if isinstance(data, np.ndarray) else memoryview(data)
    if not view.c_contiguous:
        raise FormatError(f"{where} extent {name!r}: the array is not contiguous; copy it first")
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")
