"""Keys and values beyond the memory of a run, in a file without a name.

Layers that are spilled take turns in the memory of one: before a layer runs, the blocks of the
positions it sees are read there; then the blocks it has written go back. A block is the positions
of one tile, of all heads. What is read is checked against what was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit.container import AlignedBuffer
from loop_singular_bit.container.checksum import block_crc32c
from loop_singular_bit.container.directio import page_ceil
from loop_singular_bit.container.scratch_file import ScratchFile
from loop_singular_bit.engine.kv import (
    TILE,
    KVCache,
    LayerArrays,
    LayerCache,
    cache_bytes,
    round_context,
)
from loop_singular_bit.errors import ResourceError
from loop_singular_bit.models.spec import ModelSpec

Places = npt.NDArray[np.int32]

PASS_BYTES = 1024 * 1024  # read or written in one go


def block_bytes(spec: ModelSpec, bits: str) -> int:
    """Bytes of a block on disk: whole pages."""
    return page_ceil(cache_bytes(spec, 1, TILE, bits, layers=1))


def file_bytes(spec: ModelSpec, slots: int, context: int, bits: str, spilled: int) -> int:
    """Bytes of disk that `spilled` layers take."""
    return spilled * slots * (round_context(context) // TILE) * block_bytes(spec, bits)


def spill_bytes(spec: ModelSpec, slots: int, context: int, bits: str, spilled: int) -> int:
    """Bytes of memory that `spilled` layers share: one layer's cache, a pass, and checksums."""
    shared = cache_bytes(spec, slots, context, bits, layers=1)
    blocks = round_context(context) // TILE
    return shared + _pass_bytes(block_bytes(spec, bits), blocks) + 4 * spilled * slots * blocks


def _pass_bytes(size_bytes: int, blocks: int) -> int:
    return min(max(1, PASS_BYTES // size_bytes), blocks) * size_bytes


@dataclass(frozen=True)
class _Part:
    """tiles: [slots, tiles along positions, ...], a view of the cache; its bytes in a block."""

    tiles: npt.NDArray[Any]
    start: int
    stop: int


class Blocks:
    """Copies blocks between the memory of a layer and the file, through one buffer."""

    def __init__(self, shared: LayerArrays, spec: ModelSpec, bits: str) -> None:
        self.size_bytes = block_bytes(spec, bits)
        blocks = shared.keys.shape[2]
        self._buffer = AlignedBuffer(_pass_bytes(self.size_bytes, blocks))
        self._rows = self._buffer.array.reshape(-1, self.size_bytes)
        self._parts: list[_Part] = []
        start = 0
        for tiles in shared.tiles():
            stop = start + tiles[0, 0].nbytes
            self._parts.append(_Part(tiles, start, stop))
            start = stop

    def passes(self, first: int, stop: int) -> Iterator[tuple[int, int, memoryview]]:
        """Ranges of blocks that go through the buffer at once, and their bytes there."""
        most = len(self._rows)
        for begin in range(first, stop, most):
            end = min(begin + most, stop)
            yield begin, end, self._buffer.view[: (end - begin) * self.size_bytes]

    def into_cache(self, slot: int, begin: int, end: int) -> None:
        """Blocks [begin, end) of a slot, from the buffer."""
        for part in self._parts:
            to = part.tiles[slot, begin:end]
            stored = self._rows[: end - begin, part.start : part.stop]
            to[:] = stored.view(to.dtype).reshape(to.shape)

    def from_cache(self, slot: int, begin: int, end: int) -> None:
        """The same, to the buffer."""
        for part in self._parts:
            tiles = part.tiles[slot, begin:end]
            stored = self._rows[: end - begin, part.start : part.stop]
            stored.view(tiles.dtype).reshape(tiles.shape)[:] = tiles


@dataclass(frozen=True)
class SpilledLayer(LayerCache):
    """One layer on disk: in the shared memory from `load` to `save`."""

    index: int  # among the spilled
    blocks: Blocks
    file: ScratchFile
    checksums: npt.NDArray[np.uint32]  # [slots, blocks]
    window: int | None

    def load(self, slots: Places, positions: Places) -> None:
        """Reads what a batch sees. Raises ResourceError when the disk fails or bytes differ."""
        for slot, first, _ in _ranges(slots, positions):
            seen = 0 if self.window is None else max(0, first + 1 - self.window)
            for begin, end, pages in self.blocks.passes(seen // TILE, -(-first // TILE)):
                self.file.read(self._offset(slot, begin), pages)
                self._check(slot, begin, pages)
                self.blocks.into_cache(slot, begin, end)

    def save(self, slots: Places, positions: Places) -> None:
        """Writes what a batch has stored. Raises ResourceError when the disk is full or fails."""
        for slot, first, last in _ranges(slots, positions):
            for begin, end, pages in self.blocks.passes(first // TILE, last // TILE + 1):
                self.blocks.from_cache(slot, begin, end)
                self.checksums[slot, begin:end] = self._sums(slot, begin, pages)
                self.file.write(self._offset(slot, begin), pages)

    def _number(self, slot: int, block: int) -> int:
        slots, blocks = self.checksums.shape
        number: int = (self.index * slots + slot) * blocks + block
        return number

    def _offset(self, slot: int, block: int) -> int:
        return self._number(slot, block) * self.blocks.size_bytes

    def _sums(self, slot: int, begin: int, pages: memoryview) -> list[int]:
        size = self.blocks.size_bytes
        return [
            block_crc32c(self._number(slot, begin + at), pages[at * size : (at + 1) * size])
            for at in range(len(pages) // size)
        ]

    def _check(self, slot: int, begin: int, pages: memoryview) -> None:
        for at, found in enumerate(self._sums(slot, begin, pages)):
            expected = self.checksums[slot, begin + at]
            if found != expected:
                raise ResourceError(
                    f"{self.file.folder}: keys and values of tokens {(begin + at) * TILE}.. came "
                    f"back with checksum {found:08x}, written with {expected:08x}; check the disk, "
                    "or raise --ram-mb to keep them in memory"
                )


def _ranges(slots: Places, positions: Places) -> Iterator[tuple[int, int, int]]:
    """Slot, first and last position of each sequence in a batch."""
    for slot in np.unique(slots):
        here = positions[slots == slot]
        yield int(slot), int(here.min()), int(here.max())


class SpilledCache(KVCache):
    """A KVCache whose last `spilled` layers are on disk, in the first of `folders` with room."""

    def __init__(
        self,
        spec: ModelSpec,
        slots: int,
        context: int,
        *,
        bits: str,
        spilled: int,
        folders: Sequence[Path],
    ) -> None:
        super().__init__(spec, slots, context, spec.layers - spilled, bits=bits)
        shared = LayerArrays.empty(spec, slots, self.context, bits)
        self._add(shared)
        native = self.layers.pop().native
        self._file = ScratchFile(
            folders, file_bytes(spec, slots, context, bits, spilled), "keys and values"
        )
        blocks = Blocks(shared, spec, bits)
        checksums = np.full((spilled, slots, self.context // TILE), 0, np.uint32)
        self.layers += [
            SpilledLayer(
                native, index, blocks, self._file, checksums[index], spec.sliding_window
            )
            for index in range(spilled)
        ]  # fmt: skip

    @property
    def on_disk_bytes(self) -> int:
        return self._file.size_bytes

    def close(self) -> None:
        self._file.close()
