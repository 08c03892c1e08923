"""Keys and values of past tokens in 16, 8 or 4 bits, reserved once for a number of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.program import Program
from loop_singular_bit.errors import UsageError
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int32]

# Of a number in keys and in values, by what --kv says. 16: half floats. 8, 4: integers of rotated
# heads, a half-float scale for each head and position (docs/decisions/0008-kv-cache.md).
KV_BITS = {"16": (16, 16), "8": (8, 8), "8:4": (8, 4), "4": (4, 4)}
KV_BITS_DEFAULT = "8"  # of a run: no loss that can be measured, half the bytes
TILE = 16  # positions and channels of a tile: see native/attention.inl


def round_context(context: int) -> int:
    """Positions actually reserved for `context`: whole tiles."""
    return -(-context // TILE) * TILE


@dataclass(frozen=True)
class LayerArrays:
    """Keys and values of one layer in tiles (native/attention.inl), and their scales.

    keys    u8 [slots, kv_heads, context/16, head_dim/16, bytes of a tile]
    values  u8 [slots, kv_heads, head_dim/16, context/16, bytes of a tile]
    scales  of keys, of values: half floats u16 [slots, kv_heads, context]; None with 16 bits
    """

    keys: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint8]
    scales: tuple[npt.NDArray[np.uint16] | None, npt.NDArray[np.uint16] | None]

    @classmethod
    def empty(cls, spec: ModelSpec, slots: int, context: int, bits: str) -> LayerArrays:
        heads, along, across = (slots, spec.kv_heads), context // TILE, spec.head_dim // TILE
        key_bytes, value_bytes = (TILE * TILE * each // 8 for each in key_value_bits(bits))
        # Written, not only mapped: what is reserved is in use from the start. And zero, since
        # attention multiplies the unused places of a tile by zero.
        k_scale, v_scale = (
            np.full((*heads, context), 0, np.uint16) if each < 16 else None
            for each in key_value_bits(bits)
        )
        return cls(
            np.full((*heads, along, across, key_bytes), 0, np.uint8),
            np.full((*heads, across, along, value_bytes), 0, np.uint8),
            (k_scale, v_scale),
        )

    @property
    def nbytes(self) -> int:
        return sum(tiles.nbytes for tiles in self.tiles())

    def tiles(self) -> list[npt.NDArray[Any]]:
        """Views of every array as [slots, tiles along the positions, ...]."""
        scales = [part for part in self.scales if part is not None]
        return [
            np.moveaxis(self.keys, 2, 1),
            np.moveaxis(self.values, 3, 1),
            *(np.moveaxis(part.reshape(*part.shape[:2], -1, TILE), 2, 1) for part in scales),
        ]


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, checked once and kept by the native cache."""

    native: _native.LayerCache

    def store(self, program: Program, k: Floats, v: Floats) -> None:
        """Records: rows k, v [rows_max, kv_heads * head_dim] go to their places."""
        program.store_kv(self.native, k, v)

    def attend(
        self, program: Program, q: Floats, heads: int, window: int | None, out: Floats
    ) -> None:
        """Records out [rows_max, heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v, causal."""
        program.attend(self.native, q, heads, window or 0, out)

    def load(self, slots: Places, positions: Places) -> None:
        """Before a batch runs: what it sees is in memory, always."""

    def save(self, slots: Places, positions: Places) -> None:
        """After a batch ran: what it stored stays in memory."""


class KVCache:
    """One LayerCache for each layer; every slot holds one sequence.

    Raises UsageError for other `bits` than those of KV_BITS.
    """

    def __init__(
        self,
        spec: ModelSpec,
        slots: int,
        context: int,
        layers: int | None = None,
        *,
        bits: str = "16",
    ) -> None:
        self.slots, self.context, self.bits = slots, round_context(context), bits
        self.layers: list[LayerCache] = []
        self.nbytes = 0
        for _ in range(spec.layers if layers is None else layers):
            self._add(LayerArrays.empty(spec, slots, self.context, bits))

    def _add(self, arrays: LayerArrays) -> None:
        self.nbytes += arrays.nbytes
        native = _native.LayerCache(arrays.keys, arrays.values, *arrays.scales)
        self.layers.append(LayerCache(native))

    @property
    def on_disk_bytes(self) -> int:
        """Of keys and values beyond memory."""
        return 0

    def close(self) -> None:
        """Gives back what is on disk: nothing."""


def key_value_bits(bits: str) -> tuple[int, int]:
    """Bits of a number in keys and in values. Raises UsageError for a cache that does not exist."""
    if bits not in KV_BITS:
        raise UsageError(f"--kv {bits}: must be one of {', '.join(KV_BITS)}")
    return KV_BITS[bits]


def cache_bytes(
    spec: ModelSpec, slots: int, context: int, bits: str = "16", layers: int | None = None
) -> int:
    """Bytes a KVCache takes."""
    count = spec.layers if layers is None else layers
    head_bits = sum(
        spec.head_dim * each + (16 if each < 16 else 0) for each in key_value_bits(bits)
    )
    return count * slots * round_context(context) * spec.kv_heads * head_bits // 8


def attention_bytes(spec: ModelSpec, context: int, threads: int) -> int:
    """Bytes of scratch that attention takes at most, whatever the rows of a batch."""
    return _native.attend_bytes(
        round_context(context), spec.heads, spec.kv_heads, spec.head_dim, threads
    )
