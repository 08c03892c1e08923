"""The orthogonal transform of a matrix's inputs, shared by every matrix that reads them.

V = (M x H_b / sqrt(b)) diag(sign): random signs, a Hadamard matrix on blocks of b columns (b the
largest power of two that divides the width), and a small orthogonal M that mixes the blocks, so
that widths such as 576 = 9 x 64 are rotated as a whole. Weights are stored as W V^T / s_in,
inputs enter as V (s_in x).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.program import Program

Floats = npt.NDArray[np.float32]

MIX_MAX = 64  # blocks; a mix of m blocks costs m multiplications for each value
ACTIVATION_GROUP_MAX = 256  # columns that share one int8 scale
STRIP = 16  # columns that the kernels take at once: a group is whole strips, or all columns


def activation_group(cols: int) -> int:
    """Columns that share an int8 scale: the most that divide `cols` into groups of whole strips, at
    most ACTIVATION_GROUP_MAX; all columns where there are no such groups."""
    groups = range(ACTIVATION_GROUP_MAX, 0, -STRIP)
    return next((group for group in groups if cols % group == 0), cols)


def power_of_two_factor(cols: int) -> int:
    """Largest power of two that divides `cols`."""
    return cols & -cols


def cosine_matrix(size: int) -> Floats:
    """The orthonormal DCT-II matrix [size, size]."""
    k, n = np.mgrid[:size, :size]
    matrix = np.cos(np.pi * (n + 0.5) * k / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float32)


def random_signs(cols: int, seed: int) -> Floats:
    """[cols] of +1 and -1: bits 31 and 63 of each word of Philox 4x64-10 keyed by seed and width.

    Raw words, because numpy promises their stream for ever and that of its distributions not.
    """
    words = np.random.Philox(key=[seed, cols]).random_raw((cols + 1) // 2)
    bits = np.stack([words >> np.uint64(31) & np.uint64(1), words >> np.uint64(63)], axis=1)
    return 2 * bits.reshape(-1)[:cols].astype(np.float32) - 1


@dataclass(frozen=True)
class InputTransform:
    """Rotation and per-channel scale of one input.

    channel_scale  float32 [cols], positive: s_in
    seed           of the signs
    """

    channel_scale: Floats
    seed: int

    @property
    def cols(self) -> int:
        return len(self.channel_scale)

    @property
    def block(self) -> int:
        return power_of_two_factor(self.cols)

    @cached_property
    def mix(self) -> Floats | None:
        blocks = self.cols // self.block
        return cosine_matrix(blocks) if 1 < blocks <= MIX_MAX and self.block >= 4 else None

    @cached_property
    def _input_scale(self) -> Floats:
        return random_signs(self.cols, self.seed) * self.channel_scale

    @cached_property
    def _weight_scale(self) -> Floats:
        return (random_signs(self.cols, self.seed) / self.channel_scale).astype(np.float32)

    def _apply(self, x: Floats, scale: Floats, inverse: bool) -> Floats:
        out = np.empty_like(x)
        _native.rotate(x, scale, self.block, self.mix, inverse, out)
        return out

    def inputs(self, x: Floats) -> Floats:
        """V (s_in x) of rows x [T, cols]."""
        return self._apply(x, self._input_scale, False)

    def pack(self, program: Program, x: Floats, packed: _native.PackedRows) -> None:
        """Records packed = V (s_in x), rounded to int8."""
        program.pack(x, self._input_scale, self.block, self.mix, packed)

    def weights(self, W: Floats) -> Floats:
        """W diag(1/s_in) V^T of W [rows, cols]."""
        return self._apply(W, self._weight_scale, False)

    def restore_weights(self, Q: Floats) -> Floats:
        """Q V diag(s_in): the inverse of `weights`."""
        return self._apply(Q, self._input_scale, True)

    def hessian(self, H: Floats) -> Floats:
        """V diag(s_in) H diag(s_in) V^T of a symmetric H [cols, cols]."""
        half = np.ascontiguousarray(self._apply(H, self._input_scale, False).T)
        return self._apply(half, self._input_scale, False)
