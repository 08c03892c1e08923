"""How plain numbers are stored; 16-bit floats are uint16 patterns: numpy has no bfloat16."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class DenseKind(IntEnum):
    """Values shared with native/kernels.h."""

    F32 = 0
    F16 = 1
    BF16 = 2
    I8 = 3
    SIGN = 4


def to_bf16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Nearest bfloat16 patterns, ties to even; finite input."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """float32 values of bfloat16 patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_pattern(
    stored: npt.NDArray[np.uint16] | npt.NDArray[np.float32], dtype: str
) -> npt.NDArray[np.float32]:
    """float32 values of "f16" or "bf16" patterns or of "f32" numbers."""
    if dtype == "f32":
        return stored.astype(np.float32)
    if dtype == "bf16":
        return from_bf16(stored.view(np.uint16))
    return stored.view(np.float16).astype(np.float32)
