"""Reads a container: everything is validated on opening, every block verified on reading."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, pairwise
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from loop_singular_bit._native import damaged_block
from loop_singular_bit.container.checksum import block_crc32c
from loop_singular_bit.container.directio import (
    PAGE_BYTES,
    AlignedBuffer,
    Backend,
    page_ceil,
    page_floor,
)
from loop_singular_bit.container.index import Index, Record
from loop_singular_bit.container.layout import Piece
from loop_singular_bit.container.opening import Opened, open_files
from loop_singular_bit.container.preamble import PREAMBLE_BYTES
from loop_singular_bit.container.shards import shard_path
from loop_singular_bit.errors import FormatError, ResourceError

U8 = npt.NDArray[np.uint8]

# What passes through a buffer of the reader's own passes in pieces of about this size.
_SWEEP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Span:
    """Extents that follow each other in one shard and are read in one go.

    Raises ValueError for none, or for extents of several shards.
    """

    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        shards = sorted({piece.shard for piece in self.pieces})
        if len(shards) != 1:
            raise ValueError(f"a span of {len(self.pieces)} extents in shards {shards}, not in one")

    @property
    def shard(self) -> int:
        """The number of the file."""
        return self.pieces[0].shard

    @property
    def offset(self) -> int:
        """Where the first extent starts."""
        return self.pieces[0].offset

    @property
    def end(self) -> int:
        """Where the last extent that holds bytes ends."""
        return next((p.end for p in reversed(self.pieces) if p.size_bytes), self.offset)

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

    def __init__(self, path: Path, opened: Opened) -> None:
        """Not for callers: use `open`, which validates."""
        self._path = path
        self._opened = opened
        self._index = opened.layout.index
        self._pieces = opened.layout.pieces
        self._checksums = opened.checksums
        self._numbers = {record.name: n for n, record in enumerate(self._index.records)}
        counts = (len(record.extents) for record in self._index.records)
        # Where each record's pieces start; the last entry is where the optional ones do.
        self._starts = list(accumulate(counts, initial=0))
        self._positions: dict[str, Mapping[str, int]] = {}
        self._runs = tuple(self._build_runs())

    @classmethod
    def open(cls, path: Path, backend: Backend | None = None) -> Self:
        """Opens a container and its further shards after validating all but the extents.

        `backend` None takes the best one for the file system. Raises FormatError naming file and
        field, found and expected; ResourceError when a file cannot be read.
        """
        return cls(path, open_files(path, backend))

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
        """Closes the files; arrays that were read stay valid."""
        self._opened.close()

    @property
    def backend(self) -> Backend:
        """How the first file is read."""
        return self._opened.files[0].backend

    @property
    def file_bytes(self) -> int:
        """Length of all files together."""
        return self._opened.layout.file_bytes

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file of every shard."""
        return tuple(shard_path(self._path, n) for n in range(len(self._opened.files)))

    @property
    def index(self) -> Index:
        """All that the file says about itself."""
        return self._index

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
        """Every run in file order; a run's span starts at a page and lies in one shard."""
        return self._runs

    @property
    def optional(self) -> tuple[str, ...]:
        """The names of the optional extents."""
        return tuple(extent.name for extent in self._index.optional)

    def record(self, name: str) -> Record:
        """A record by name."""
        return self._index.records[self._number(name)]

    def piece(self, record: str, extent: str) -> Piece:
        """Where an extent lies."""
        return self._pieces[self._position(record, extent)]

    def run(self, record: str) -> Span:
        """The run that a record belongs to, such as an expert by one of its matrices."""
        place = bisect_right(self._index.runs, self._number(record))
        if not place:
            raise FormatError(f"{self._path}: record {record!r} belongs to no run")
        return self._runs[place - 1]

    def span(self, first: tuple[str, str], last: tuple[str, str]) -> Span:
        """The span from one (record, extent) to another that does not lie before it."""
        start, stop = self._position(*first), self._position(*last)
        if stop < start:
            raise ValueError(f"{last} lies before {first}")
        return Span(tuple(self._pieces[start : stop + 1]))

    def read(self, record: str, extent: str) -> U8:
        """An extent in memory of its own: u8 [bytes], aligned as in the file (64 bytes)."""
        return self._read_piece(self.piece(record, extent))

    def read_optional(self, name: str) -> U8:
        """An optional extent: u8 [bytes]."""
        return self._read_piece(self.piece("", name))

    def read_part(self, record: str, extent: str, start: int, size_bytes: int) -> U8:
        """Bytes [start, start + size_bytes) of an extent; only the blocks they lie in are read."""
        piece = self.piece(record, extent)
        if start < 0 or size_bytes < 0 or start + size_bytes > piece.size_bytes:
            raise ValueError(f"{piece}: [{start}, +{size_bytes}) of {piece.size_bytes}")
        step = self._index.block_bytes
        blocks = list(self._blocks(piece, start // step, -(-(start + size_bytes) // step)))
        return self._array(piece, blocks, piece.offset + start, size_bytes)

    def read_into(self, record: str, extent: str, buffer: bytearray | memoryview | U8) -> None:
        """Fills `buffer`, writable, contiguous and exactly as long as the extent."""
        piece = self.piece(record, extent)
        target = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
        if target.nbytes != piece.size_bytes:
            raise ValueError(f"{piece}: {target.nbytes} bytes for {piece.size_bytes}")
        if not target.nbytes:
            return
        target = target.cast("B")
        bounce = self._sweep_buffer(target.nbytes)
        origin = piece.offset
        for blocks in _groups(self._blocks(piece), origin):
            start, end = blocks[0].offset, blocks[-1].end
            base = self._load(piece.shard, start, end, blocks, bounce)
            target[start - origin : end - origin] = bounce.view[start - base : end - base]

    def read_span(self, span: Span, buffer: AlignedBuffer) -> tuple[U8, ...]:
        """Reads a span in one go to the start of `buffer` (at least span.buffer_bytes) and
        verifies it, all in the calling thread.

        Returns one view into the buffer for each of span.pieces: u8 [bytes], aligned to 64 bytes;
        the span's first byte is at `span.offset - span.base`. The zeros between extents are
        verified too. `AlignedBuffer.part` lets many spans share one buffer.
        """
        if span.end > span.offset:
            blocks = chain.from_iterable(map(self._blocks, span.pieces))
            self._load(span.shard, span.offset, span.end, blocks, buffer)
        base, array = span.base, buffer.array
        return tuple(array[piece.offset - base : piece.end - base] for piece in span.pieces)

    def verify_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads every extent and every gap once, in a few MiB of memory.

        `progress` is called with (bytes done, bytes in all). What opening verified is not read
        again. Raises ResourceError at the first damage.
        """
        ends = self._opened.layout.shard_ends
        total_bytes, done = sum(ends), 0
        buffer = self._sweep_buffer(max(ends))
        for shard, shard_end in enumerate(ends):
            cursor = PREAMBLE_BYTES
            pieces = (piece for piece in self._pieces if piece.shard == shard)
            for blocks in _groups(chain.from_iterable(map(self._blocks, pieces)), cursor):
                self._load(shard, cursor, blocks[-1].end, blocks, buffer)
                cursor = blocks[-1].end
                if progress is not None:
                    progress(done + cursor, total_bytes)
            done += shard_end

    def _read_piece(self, piece: Piece) -> U8:
        return self._array(piece, list(self._blocks(piece)), piece.offset, piece.size_bytes)

    def _array(self, piece: Piece, blocks: Sequence[_Block], begin: int, size_bytes: int) -> U8:
        if not size_bytes:
            return np.empty(0, np.uint8)
        start, end = blocks[0].offset, blocks[-1].end
        buffer = AlignedBuffer(end - page_floor(start))
        base = self._load(piece.shard, start, end, blocks, buffer)
        return buffer.array[begin - base : begin - base + size_bytes]

    def _load(
        self, shard: int, start: int, end: int, blocks: Iterable[_Block], buffer: AlignedBuffer
    ) -> int:
        """Reads and verifies [start, end of the last block) of a shard; gives the file offset of
        the buffer's start.

        `start` is the first block's offset or, to verify the gap before it, the end of the block
        that comes before it in the file.
        """
        base = page_floor(start)
        self._opened.files[shard].read(base, end - base, buffer.view)
        self._verify(blocks, buffer.array, base, start)
        return base

    def _verify(self, blocks: Iterable[_Block], array: U8, base: int, cursor: int) -> None:
        """Checks blocks, those of an extent at once, and that only zeros lie between extents from
        the offset `cursor` on. array: the bytes of the file from `base` on."""
        for piece, group in groupby(blocks, key=attrgetter("piece")):
            listed = list(group)
            begin, end = listed[0].offset, listed[-1].end
            if array[cursor - base : begin - base].any():
                raise self._damaged(piece, "the gap before it holds a byte that is not zero")
            first, step = listed[0].number, self._index.block_bytes
            expected = self._checksums[first : first + len(listed)]
            place = damaged_block(array[begin - base : end - base], first, step, expected)
            if place >= 0:
                raise self._damaged_block(listed[place], array, base)
            cursor = end

    def _damaged_block(self, block: _Block, array: U8, base: int) -> ResourceError:
        found = block_crc32c(block.number, array[block.offset - base : block.end - base].data)
        number, expected = block.number - block.piece.first_block, self._checksums[block.number]
        message = f"block {number}: crc32c found {found:08x}, expected {expected:08x}"
        return self._damaged(block.piece, message)

    def _damaged(self, piece: Piece, message: str) -> ResourceError:
        return ResourceError(
            f"{shard_path(self._path, piece.shard)}: {piece} {message}; the file or the disk is "
            "damaged: copy, download or compress it again"
        )

    def _blocks(self, piece: Piece, start: int = 0, stop: int | None = None) -> Iterator[_Block]:
        """Blocks [start, stop) of an extent, counted from its first."""
        step = self._index.block_bytes
        offsets = range(piece.offset, piece.end, step)[start:stop]
        for number, offset in enumerate(offsets, piece.first_block + start):
            yield _Block(number, offset, min(offset + step, piece.end), piece)

    def _number(self, record: str) -> int:
        number = self._numbers.get(record)
        if number is None:
            raise FormatError(f"{self._path}: has no record {record!r}")
        return number

    def _position(self, record: str, extent: str) -> int:
        position = self._extents(record).get(extent)
        if position is None:
            raise FormatError(f"{self._path}: has no record {record!r} with an extent {extent!r}")
        return position

    def _extents(self, record: str) -> Mapping[str, int]:
        """The position of each extent of a record, listed when it is first asked for."""
        found = self._positions.get(record)
        if found is None:
            start, stop = self._starts[-1], len(self._pieces)
            if record:
                number = self._number(record)
                start, stop = self._starts[number : number + 2]
            found = {self._pieces[place].extent.name: place for place in range(start, stop)}
            self._positions[record] = found
        return found

    def _build_runs(self) -> Iterator[Span]:
        firsts = [*self._index.runs, len(self._index.records)]
        for start, stop in pairwise(self._starts[number] for number in firsts):
            yield Span(tuple(self._pieces[start:stop]))

    def _sweep_buffer(self, size_bytes: int) -> AlignedBuffer:
        # A group is below _SWEEP_BYTES before its last block, which adds a gap and itself; its
        # start lies in a page.
        largest = _SWEEP_BYTES + self._index.block_bytes + PAGE_BYTES
        return AlignedBuffer(min(size_bytes, largest) + PAGE_BYTES)


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
