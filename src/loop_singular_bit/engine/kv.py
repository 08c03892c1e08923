"""Keys and values of past tokens in 16, 8 or 4 bits, reserved once for a number of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.program import Program
from loop_singular_bit.errors import UsageError
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]

KV_BITS = (16, 8, 4)  # half floats; integers of rotated heads, a half-float scale for each head
KV_BITS_DEFAULT = 8  # of a run: no loss that can be measured, half the bytes (docs/decisions/0008)
TILE = 16  # positions and channels of a tile: see native/attention.inl


def round_context(context: int) -> int:
    """Positions actually reserved for `context`: whole tiles."""
    return -(-context // TILE) * TILE


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


class KVCache:
    """One LayerCache for each layer; every slot holds one sequence.

    Raises UsageError for other `bits` than 16, 8 and 4.
    """

    def __init__(
        self,
        spec: ModelSpec,
        slots: int,
        context: int,
        layers: int | None = None,
        *,
        bits: int = 16,
    ) -> None:
        check_bits(bits)
        self.slots, self.context, self.bits = slots, round_context(context), bits
        count = spec.layers if layers is None else layers
        heads, along, across = (
            (count, slots, spec.kv_heads),
            self.context // TILE,
            spec.head_dim // TILE,
        )
        tile = TILE * TILE * bits // 8
        # Written, not only mapped: what is reserved is in use from the start. And zero, since
        # attention multiplies the unused places of a tile by zero.
        tiles = [
            np.full((*heads, *sides, tile), 0, np.uint8)
            for sides in ((along, across), (across, along))
        ]
        scales = [np.full((*heads, self.context), 0, np.uint16) for _ in tiles if bits < 16]
        self.nbytes = sum(array.nbytes for array in tiles + scales)
        self.layers = [
            LayerCache(
                _native.LayerCache(
                    *(array[layer] for array in tiles),
                    *((array[layer] for array in scales) if scales else (None, None)),
                )
            )
            for layer in range(count)
        ]


def check_bits(bits: int) -> None:
    """Raises UsageError for a cache that does not exist."""
    if bits not in KV_BITS:
        raise UsageError(f"--kv {bits}: must be one of 16, 8, 4")


def cache_bytes(spec: ModelSpec, slots: int, context: int, bits: int = 16) -> int:
    """Bytes a KVCache takes."""
    head_bits = spec.head_dim * bits + (16 if bits < 16 else 0)
    return 2 * spec.layers * slots * round_context(context) * spec.kv_heads * head_bits // 8


def attention_bytes(spec: ModelSpec, context: int, threads: int) -> int:
    """Bytes of scratch that attention takes at most, whatever the rows of a batch."""
    return _native.attend_bytes(
        round_context(context), spec.heads, spec.kv_heads, spec.head_dim, threads
    )
