"""Opens the files of an artefact and validates all that is not an extent."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.directio import AlignedBuffer, Backend, PageFile, page_floor
from loop_singular_bit.container.index import decode_index
from loop_singular_bit.container.layout import Layout, check_index, lay_out
from loop_singular_bit.container.preamble import (
    PREAMBLE_BYTES,
    Preamble,
    ShardPreamble,
    artefact_id,
    check_shard_preamble,
    unpack_preamble,
)
from loop_singular_bit.container.shards import shard_path
from loop_singular_bit.errors import FormatError


@dataclass(frozen=True)
class Opened:
    """Open files, one per shard, what lies where in them, and the checksum table u32 [blocks]."""

    files: tuple[PageFile, ...]
    layout: Layout
    checksums: npt.NDArray[np.uint32]

    def close(self) -> None:
        for file in self.files:
            file.close()


@dataclass(frozen=True)
class _Header:
    """What the first file says: its layout, its checksum table, and the id of its shards."""

    layout: Layout
    checksums: npt.NDArray[np.uint32]
    artefact_id: bytes


def open_files(path: Path, backend: Backend | None) -> Opened:
    """Opens `path` and its further shards after validating preambles, index, layout and table.

    Raises FormatError naming file and field, found and expected; ResourceError when a file cannot
    be read.
    """
    with ExitStack() as stack:
        files = [_open(path, backend, stack)]
        try:
            header = _read_header(files[0])
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
        for number, file_bytes in enumerate(header.layout.shard_file_bytes[1:], 1):
            preamble = ShardPreamble(number, file_bytes, header.artefact_id)
            files.append(_open_shard(path, preamble, backend, stack))
        stack.pop_all()
        return Opened(tuple(files), header.layout, header.checksums)


def _open(path: Path, backend: Backend | None, stack: ExitStack) -> PageFile:
    file = PageFile(path, backend)
    stack.callback(file.close)
    return file


def _open_shard(
    first: Path, expected: ShardPreamble, backend: Backend | None, stack: ExitStack
) -> PageFile:
    path = shard_path(first, expected.number)
    try:
        file = _open(path, backend, stack)
    except FormatError as error:
        raise FormatError(
            f"{error}; {first.name} needs this shard of {expected.file_bytes} bytes: copy or "
            "download it again"
        ) from error
    try:
        check_shard_preamble(_head(file), file.size_bytes, expected)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    return file


def _read_header(file: PageFile) -> _Header:
    preamble = unpack_preamble(_head(file), file.size_bytes)
    data = _range(file, preamble.index_offset, preamble.index_bytes)
    if crc32c(data) != preamble.index_crc32c:
        raise FormatError(
            f"index crc32c: found {crc32c(data):08x}, expected {preamble.index_crc32c:08x}"
        )
    index = decode_index(data)
    check_index(index)
    layout = lay_out(index, preamble.index_bytes)
    table = _read_table(file, layout, preamble)
    return _Header(layout, np.frombuffer(table, "<u4"), artefact_id(table, data))


def _read_table(file: PageFile, layout: Layout, preamble: Preamble) -> bytes:
    """The checksum table; the gaps on both sides of it are verified with it."""
    if preamble.index_offset != layout.index_offset:
        raise FormatError(
            f"preamble index offset: found {preamble.index_offset}, expected "
            f"{layout.index_offset} after what the index lists"
        )
    start = layout.shard_ends[0]
    data = _range(file, start, layout.index_offset - start)
    table_start = layout.table_offset - start
    table = data[table_start : table_start + layout.table_bytes]
    if any(data[:table_start]) or any(data[table_start + len(table) :]):
        raise FormatError("checksum table: found a byte beside it that is not zero")
    found, expected = f"{crc32c(table):08x}", layout.index.table_crc32c
    if found != expected:
        raise FormatError(f"index table_crc32c: found {found}, expected {expected}")
    return table


def _head(file: PageFile) -> bytes:
    return _range(file, 0, min(file.size_bytes, PREAMBLE_BYTES))


def _range(file: PageFile, offset: int, size_bytes: int) -> bytes:
    """Any bytes of the file, copied."""
    skip = offset - page_floor(offset)
    buffer = AlignedBuffer(skip + size_bytes)
    file.read(offset - skip, skip + size_bytes, buffer.view)
    return buffer.view[skip : skip + size_bytes].tobytes()
