"""The KV cache and its attention in numpy: what native/attention.inl stores, and plain softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Places = npt.NDArray[np.int32]
Bits = tuple[int, int]  # of keys, of values

F = np.float32


@dataclass(frozen=True)
class Cache:
    """One layer's arrays and the native cache over them."""

    bits: Bits
    keys: npt.NDArray[np.uint8]  # [slot, kv head, context / 16, head_dim / 16, tile]
    values: npt.NDArray[np.uint8]  # [slot, kv head, head_dim / 16, context / 16, tile]
    scales: npt.NDArray[np.uint16]  # [keys and values, slot, kv head, context]
    native: _native.LayerCache

    @classmethod
    def empty(cls, bits: Bits, slots: int, kv_heads: int, context: int, head_dim: int) -> Cache:
        along, across = context // 16, head_dim // 16
        keys = np.zeros((slots, kv_heads, along, across, 32 * bits[0]), np.uint8)
        values = np.zeros((slots, kv_heads, across, along, 32 * bits[1]), np.uint8)
        scales = np.zeros((2, slots, kv_heads, context), np.uint16)
        given = (None if each == 16 else part for each, part in zip(bits, scales, strict=True))
        return cls(bits, keys, values, scales, _native.LayerCache(keys, values, *given))

    def store(self, k: Floats, v: Floats, slot: Places, position: Places) -> None:
        _native.store_kv(self.native, k, v, slot, position)

    def attend(self, q: Floats, heads: int, slot: Places, position: Places, window: int) -> Floats:
        out = np.full_like(q, np.nan)
        _native.attend(self.native, q, heads, slot, position, window, out)
        return out

    def bytes(self) -> Array:
        """Everything that is stored."""
        parts = (self.keys, self.values, self.scales)
        return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])

    def codes(self) -> tuple[Array, Array]:
        """Stored numbers of keys and values [slot, kv head, context, head_dim]."""
        # keys: a tile's steps are channels; values: positions
        keys = unpack(self.keys, self.bits[0]).transpose(0, 1, 2, 5, 3, 4)
        values = unpack(self.values, self.bits[1]).transpose(0, 1, 3, 4, 2, 5)
        shape = (*self.scales.shape[1:], -1)
        return keys.reshape(shape), values.reshape(shape)

    def plain(self) -> tuple[Floats, Floats]:
        """Keys and values as float32, rotated where the cache rotates."""
        scales = self.scales.view(np.float16).astype(F)[..., None]
        keys, values = map(_plain, self.codes(), scales, self.bits)
        return keys, values


def _plain(codes: Array, scale: Floats, bits: int) -> Floats:
    if bits == 16:
        return codes.astype(F)
    return scale * (codes if bits == 8 else 2 * codes - 15).astype(F)


def unpack(tiles: npt.NDArray[np.uint8], bits: int) -> Array:
    """[..., tile] to [..., 16 steps, 16 lanes]."""
    start = tiles.shape[:-1]
    if bits == 16:
        return tiles.view(np.float16).reshape(*start, 16, 16)
    if bits == 8:
        pairs = tiles.view(np.int8).reshape(*start, 8, 16, 2)
    else:
        words = tiles.view(np.uint16).reshape(*start, 2, 1, 16, 2)
        nibbles = words >> np.arange(0, 16, 4, dtype=np.uint16)[:, None, None] & 15
        pairs = nibbles.astype(np.int8).reshape(*start, 8, 16, 2)
    return np.swapaxes(pairs, -1, -2).reshape(*start, 16, 16)


def rotated(heads: Floats) -> Floats:
    """Orthonormal Hadamard transform of blocks of the last axis, in the kernel's order."""
    size = heads.shape[-1] & -heads.shape[-1]
    x = heads.reshape(*heads.shape[:-1], -1, size).copy()
    step = 1
    while step < size:
        parts = x.reshape(*x.shape[:-1], -1, 2, step)
        a, b = parts[..., 0, :].copy(), parts[..., 1, :].copy()
        parts[..., 0, :], parts[..., 1, :] = a + b, a - b
        step *= 2
    return (x * (F(1) / np.sqrt(F(size)))).reshape(heads.shape)


def quantized(heads: Floats, bits: int) -> tuple[Array, npt.NDArray[np.float16]]:
    """Codes and scale of rotated heads [..., head_dim], operation by operation."""
    top = np.abs(heads).max(axis=-1)
    scale = top / F(127 if bits == 8 else 15.8)
    if bits == 4:
        scale = _fitted(heads, _rounded(heads, scale, 4))
    half = np.minimum(scale, F(65504)).astype(np.float16)
    return _rounded(heads, half.astype(F), bits), half


def _rounded(heads: Floats, scale: Floats, bits: int) -> Array:
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, F(1 if bits == 8 else 0.5) / scale, F(0))[..., None]
    y = heads * inverse
    y = np.clip(y, -127, 127) if bits == 8 else np.clip(y + F(7.5), 0, 15)
    return np.rint(y).astype(np.int8)


def _fitted(heads: Floats, codes: Array) -> Floats:
    levels = (2 * codes.astype(np.int32) - 15).astype(F)
    return np.maximum(_lanes(heads * levels) / _lanes(levels * levels), F(0))


def _lanes(products: Floats) -> Floats:
    """Sums of the last axis in 16 lanes, folded pairwise."""
    lanes = np.zeros((*products.shape[:-1], 16), F)
    for start in range(0, products.shape[-1], 16):
        lanes += products[..., start : start + 16]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def attention(
    cache: Cache, q: Floats, heads: int, slot: Places, position: Places, window: int
) -> Doubles:
    """Softmax of what the cache holds, in float64; the query is not rounded."""
    keys, values = (part.astype(np.float64) for part in cache.plain())
    kv_heads, head_dim = values.shape[1], values.shape[3]
    rows = q.reshape(len(q), heads, head_dim)
    rows = rotated(rows) if cache.bits[0] < 16 else rows
    out = np.zeros(rows.shape)
    for row, query in enumerate(rows.astype(np.float64)):
        stop = position[row] + 1
        start = max(0, stop - window) if window else 0
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = keys[slot[row], group, start:stop] @ query[head] / np.sqrt(head_dim)
            weight = np.exp(scores - scores.max())
            out[row, head] = weight / weight.sum() @ values[slot[row], group, start:stop]
    if cache.bits[1] < 16:
        out = rotated(out.astype(F)).astype(np.float64)
    return out.reshape(q.shape)
