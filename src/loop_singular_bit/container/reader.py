"""Reads a container: everything is validated on opening, every block verified on reading."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.checksum import block_crc32c
from loop_singular_bit.container.directio import (
    PAGE_BYTES,
    AlignedBuffer,
    Backend,
    PageFile,
    page_ceil,
    page_floor,
)
from loop_singular_bit.container.index import Extent, Index, Record, decode_index
from loop_singular_bit.container.layout import (
    PREAMBLE_BYTES,
    check_layout,
    data_end,
    unpack_preamble,
)
from loop_singular_bit.errors import FormatError, ResourceError

U8 = npt.NDArray[np.uint8]

# What passes through a buffer of the reader's own passes in pieces of about this size.
_SWEEP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Piece:
    """An extent and the name of its record ("" for an optional extent)."""

    record: str
    extent: Extent

    def __str__(self) -> str:
        record = f"record {self.record!r}" if self.record else "optional"
        return f"{record} extent {self.extent.name!r}"


@dataclass(frozen=True)
class Span:
    """Extents that follow each other in the file and are read in one go."""

    pieces: tuple[Piece, ...]

    @property
    def offset(self) -> int:
        """Where the first extent starts."""
        return self.pieces[0].extent.offset

    @property
    def end(self) -> int:
        """Where the last extent ends."""
        return self.pieces[-1].extent.end

    @property
    def base(self) -> int:
        """The offset in the file of the buffer's first byte: the page that `offset` lies in."""
        return page_floor(self.offset)

    @property
    def buffer_bytes(self) -> int:
        """Bytes that an AlignedBuffer needs to take the span: whole pages."""
        return page_ceil(self.end - self.base)


class _Block(NamedTuple):
    """A checksum block; the bytes are [offset, end) of the file."""

    number: int
    offset: int
    end: int
    piece: Piece


class ContainerReader:
    """An open container, as a context manager. Any number of threads may read at once.

    Every read verifies the blocks it touches and raises ResourceError when one is damaged or the
    file fails. Asking for a record or an extent that is not there raises FormatError.
    """

    def __init__(self, path: Path, file: PageFile, index: Index, checksums: Sequence[int]) -> None:
        """Not for callers: use `open`, which validates."""
        self._path = path
        self._file = file
        self._index = index
        self._checksums = checksums
        self._records = {record.name: record for record in index.records}
        self._pieces = tuple(_pieces(index))
        self._positions = {
            (piece.record, piece.extent.name): position
            for position, piece in enumerate(self._pieces)
        }
        self._runs = tuple(self._build_runs())

    @classmethod
    def open(cls, path: Path, backend: Backend | None = None) -> Self:
        """Opens a container after validating its preamble, index, layout and checksum table.

        `backend` None takes the best one for the file system. Raises FormatError naming the field,
        found and expected; ResourceError when the file cannot be read.
        """
        with ExitStack() as stack:
            file = PageFile(path, backend)
            stack.callback(file.close)
            try:
                index, checksums = _read_header(file)
            except FormatError as error:
                raise FormatError(f"{path}: {error}") from error
            reader = cls(path, file, index, checksums)
            stack.pop_all()
            return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; arrays that were read stay valid."""
        self._file.close()

    @property
    def backend(self) -> Backend:
        return self._file.backend

    @property
    def file_bytes(self) -> int:
        return self._file.size_bytes

    @property
    def meta(self) -> Mapping[str, Any]:
        """The object of the layers above."""
        return self._index.meta

    @property
    def records(self) -> tuple[Record, ...]:
        """Every record in file order."""
        return self._index.records

    @property
    def runs(self) -> tuple[Span, ...]:
        """Every run in file order; a run's span starts at a page."""
        return self._runs

    @property
    def optional(self) -> tuple[str, ...]:
        """The names of the optional extents."""
        return tuple(extent.name for extent in self._index.optional)

    def record(self, name: str) -> Record:
        """A record by name."""
        if name not in self._records:
            raise FormatError(f"{self._path}: has no record {name!r}")
        return self._records[name]

    def span(self, first: tuple[str, str], last: tuple[str, str]) -> Span:
        """The span from one (record, extent) to another that does not lie before it."""
        start, stop = self._position(*first), self._position(*last)
        if stop < start:
            raise ValueError(f"{last} lies before {first}")
        return Span(self._pieces[start : stop + 1])

    def read(self, record: str, extent: str) -> U8:
        """An extent in memory of its own: u8 [bytes], aligned as in the file (64 bytes)."""
        return self._read_piece(self._pieces[self._position(record, extent)])

    def read_optional(self, name: str) -> U8:
        """An optional extent: u8 [bytes]."""
        return self._read_piece(self._pieces[self._position("", name)])

    def read_part(self, record: str, extent: str, start: int, size_bytes: int) -> U8:
        """Bytes [start, start + size_bytes) of an extent; only the blocks they lie in are read."""
        piece = self._pieces[self._position(record, extent)]
        if start < 0 or size_bytes < 0 or start + size_bytes > piece.extent.size_bytes:
            raise ValueError(f"{piece}: [{start}, +{size_bytes}) of {piece.extent.size_bytes}")
        step = self._index.block_bytes
        blocks = list(self._blocks(piece, start // step, -(-(start + size_bytes) // step)))
        return self._array(blocks, piece.extent.offset + start, size_bytes)

    def read_into(self, record: str, extent: str, buffer: bytearray | memoryview | U8) -> None:
        """Fills `buffer`, writable, contiguous and exactly as long as the extent."""
        piece = self._pieces[self._position(record, extent)]
        target = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
        if target.nbytes != piece.extent.size_bytes:
            raise ValueError(f"{piece}: {target.nbytes} bytes for {piece.extent.size_bytes}")
        if not target.nbytes:
            return
        target = target.cast("B")
        bounce = self._sweep_buffer(target.nbytes)
        origin = piece.extent.offset
        for blocks in _groups(self._blocks(piece), origin):
            base = self._load(blocks[0].offset, blocks, bounce)
            start, stop = blocks[0].offset, blocks[-1].end
            target[start - origin : stop - origin] = bounce.view[start - base : stop - base]

    def read_span(self, span: Span, buffer: AlignedBuffer) -> tuple[U8, ...]:
        """Reads a span in one go to the start of `buffer` (at least span.buffer_bytes).

        Returns one view into the buffer for each of span.pieces: u8 [bytes], aligned to 64 bytes;
        the span's first byte is at `span.offset - span.base`. The zeros between extents are
        verified too.
        """
        blocks = list(chain.from_iterable(map(self._blocks, span.pieces)))
        if blocks:
            self._load(span.offset, blocks, buffer)
        base, array = span.base, buffer.array
        extents = (piece.extent for piece in span.pieces)
        return tuple(array[extent.offset - base : extent.end - base] for extent in extents)

    def verify_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads every extent and every gap once, in a few MiB of memory.

        `progress` is called with (bytes done, bytes in all). What opening verified is not read
        again. Raises ResourceError at the first damage.
        """
        total_bytes = data_end(self._index)
        buffer = self._sweep_buffer(total_bytes)
        cursor = PREAMBLE_BYTES
        for blocks in _groups(chain.from_iterable(map(self._blocks, self._pieces)), cursor):
            self._load(cursor, blocks, buffer)
            cursor = blocks[-1].end
            if progress is not None:
                progress(cursor, total_bytes)

    def _read_piece(self, piece: Piece) -> U8:
        extent = piece.extent
        return self._array(list(self._blocks(piece)), extent.offset, extent.size_bytes)

    def _array(self, blocks: Sequence[_Block], begin: int, size_bytes: int) -> U8:
        if not size_bytes:
            return np.empty(0, np.uint8)
        start = blocks[0].offset
        buffer = AlignedBuffer(blocks[-1].end - page_floor(start))
        base = self._load(start, blocks, buffer)
        return buffer.array[begin - base : begin - base + size_bytes]

    def _load(self, start: int, blocks: Sequence[_Block], buffer: AlignedBuffer) -> int:
        """Reads and verifies [start, end of blocks); gives the file offset of the buffer's start.

        `start` is the first block's offset or, to verify the gap before it, the end of the block
        that comes before it in the file.
        """
        base = page_floor(start)
        view = buffer.view
        self._file.read(base, blocks[-1].end - base, view)
        cursor = start
        for block in blocks:
            if view[cursor - base : block.offset - base].tobytes().strip(b"\0"):
                raise self._damaged(block.piece, "the gap before it holds a byte that is not zero")
            found = block_crc32c(block.number, view[block.offset - base : block.end - base])
            expected = self._checksums[block.number]
            if found != expected:
                number = block.number - block.piece.extent.first_block
                message = f"block {number}: crc32c found {found:08x}, expected {expected:08x}"
                raise self._damaged(block.piece, message)
            cursor = block.end
        return base

    def _damaged(self, piece: Piece, message: str) -> ResourceError:
        return ResourceError(
            f"{self._path}: {piece} {message}; the file or the disk is damaged: copy, download or "
            "compress it again"
        )

    def _blocks(self, piece: Piece, start: int = 0, stop: int | None = None) -> Iterator[_Block]:
        """Blocks [start, stop) of an extent, counted from its first."""
        extent, step = piece.extent, self._index.block_bytes
        offsets = range(extent.offset, extent.end, step)[start:stop]
        for number, offset in enumerate(offsets, extent.first_block + start):
            yield _Block(number, offset, min(offset + step, extent.end), piece)

    def _position(self, record: str, extent: str) -> int:
        position = self._positions.get((record, extent))
        if position is None:
            raise FormatError(f"{self._path}: has no record {record!r} with an extent {extent!r}")
        return position

    def _build_runs(self) -> Iterator[Span]:
        starts = [self._first_position(number) for number in self._index.runs]
        for start, stop in pairwise([*starts, len(self._pieces) - len(self._index.optional)]):
            yield Span(self._pieces[start:stop])

    def _first_position(self, record_number: int) -> int:
        record = self._index.records[record_number]
        return self._positions[record.name, record.extents[0].name]

    def _sweep_buffer(self, size_bytes: int) -> AlignedBuffer:
        # A group is below _SWEEP_BYTES before its last block, which adds a gap and itself; its
        # start lies in a page.
        largest = _SWEEP_BYTES + self._index.block_bytes + PAGE_BYTES
        return AlignedBuffer(min(size_bytes, largest) + PAGE_BYTES)


def _pieces(index: Index) -> Iterator[Piece]:
    for record in index.records:
        for extent in record.extents:
            yield Piece(record.name, extent)
    for extent in index.optional:
        yield Piece("", extent)


def _groups(blocks: Iterable[_Block], start: int) -> Iterator[list[_Block]]:
    """Consecutive blocks, cut where a group reaches _SWEEP_BYTES."""
    group: list[_Block] = []
    for block in blocks:
        group.append(block)
        if block.end - start >= _SWEEP_BYTES:
            yield group
            group, start = [], block.end
    if group:
        yield group


def _read_header(file: PageFile) -> tuple[Index, Sequence[int]]:
    """The validated index and the verified checksum table."""
    preamble = unpack_preamble(
        _range(file, 0, min(file.size_bytes, PREAMBLE_BYTES)), file.size_bytes
    )
    data = _range(file, preamble.index_offset, preamble.index_bytes)
    if crc32c(data) != preamble.index_crc32c:
        raise FormatError(
            f"index crc32c: found {crc32c(data):08x}, expected {preamble.index_crc32c:08x}"
        )
    index = decode_index(data)
    check_layout(index, preamble)
    return index, _read_table(file, index, preamble.index_offset)


def _read_table(file: PageFile, index: Index, index_offset: int) -> Sequence[int]:
    """The checksum table; the gaps on both sides of it are verified with it."""
    start = data_end(index)
    data = _range(file, start, index_offset - start)
    table_start = index.checksums.offset - start
    table = data[table_start : table_start + index.checksums.size_bytes]
    if any(data[:table_start]) or any(data[table_start + len(table) :]):
        raise FormatError("checksum table: found a byte beside it that is not zero")
    found = f"{crc32c(table):08x}"
    if found != index.checksums.crc32c:
        raise FormatError(
            f"index checksums crc32c: found {found}, expected {index.checksums.crc32c}"
        )
    return [number for (number,) in struct.iter_unpack("<I", table)]


def _range(file: PageFile, offset: int, size_bytes: int) -> bytes:
    """Any bytes of the file, copied."""
    skip = offset - page_floor(offset)
    buffer = AlignedBuffer(skip + size_bytes)
    file.read(offset - skip, skip + size_bytes, buffer.view)
    return buffer.view[skip : skip + size_bytes].tobytes()
