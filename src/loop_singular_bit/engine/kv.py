"""Keys and values of past tokens, 16-bit, reserved once for a number of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.program import Program
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]

POSITION_BLOCK = 16  # positions whose keys lie side by side, one for each vector lane


def round_context(context: int) -> int:
    """Positions actually reserved for `context`: whole blocks."""
    return -(-context // POSITION_BLOCK) * POSITION_BLOCK


@dataclass(frozen=True)
class LayerCache:
    """keys u16 [slots, kv_heads, context/16, head_dim, 16]; values [slots, kv_heads, context,
    head_dim]: half-float patterns."""

    keys: npt.NDArray[np.uint16]
    values: npt.NDArray[np.uint16]

    def store(self, program: Program, k: Floats, v: Floats) -> None:
        """Records: rows k, v [rows_max, kv_heads * head_dim] go to their places."""
        program.store_kv(self.keys, self.values, k, v)

    def attend(
        self, program: Program, q: Floats, heads: int, window: int | None, out: Floats
    ) -> None:
        """Records out [rows_max, heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v, causal."""
        program.attend(self.keys, self.values, q, heads, window or 0, out)


class KVCache:
    """One LayerCache for each layer; every slot holds one sequence."""

    def __init__(
        self, spec: ModelSpec, slots: int, context: int, layers: int | None = None
    ) -> None:
        self.slots, self.context = slots, round_context(context)
        shape = (spec.layers if layers is None else layers, slots, spec.kv_heads)
        blocks = self.context // POSITION_BLOCK
        # Written, not only mapped: what is reserved is in use from the start. And zero, since
        # attention multiplies the unused places of a block by zero.
        self._keys = np.full((*shape, blocks, spec.head_dim, POSITION_BLOCK), 0, np.uint16)
        self._values = np.full((*shape, self.context, spec.head_dim), 0, np.uint16)
        self.layers = [LayerCache(k, v) for k, v in zip(self._keys, self._values, strict=True)]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes


def cache_bytes(spec: ModelSpec, slots: int, context: int) -> int:
    """Bytes a KVCache takes."""
    return 2 * 2 * spec.layers * slots * round_context(context) * spec.kv_width
