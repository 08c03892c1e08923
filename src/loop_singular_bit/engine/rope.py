"""Tables of the rotary position embedding (arXiv 2104.09864), half-split pairing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.program import Program
from loop_singular_bit.models.spec import ModelSpec, RopeScaling

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RotaryTable:
    """cosine, sine: float32 [context, head_dim / 2]."""

    cosine: Floats
    sine: Floats

    def rotate(self, program: Program, x: Floats, head_dim: int) -> None:
        """Records: every head of rows x [rows_max, heads * head_dim] is turned in place."""
        program.rope(x, self.cosine, self.sine, head_dim)


def rotary_table(spec: ModelSpec, context: int) -> RotaryTable:
    """The table for positions 0..context-1."""
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    # Frequencies are float32 in the models' own code, so they are rounded here as well.
    frequency = (1.0 / np.float32(spec.rope_theta) ** exponent.astype(np.float32)).astype(
        np.float32
    )
    if spec.rope_scaling is not None:
        frequency = _scaled(frequency, spec.rope_scaling)
    angle = np.arange(context, dtype=np.float32)[:, None] * frequency[None, :]
    return RotaryTable(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))


def _scaled(frequency: Floats, scaling: RopeScaling) -> Floats:
    """Llama-3 scaling: long waves divided by `factor`, short ones kept, a ramp between."""
    wavelength = 2 * np.pi / frequency
    turns = scaling.original_context / wavelength
    ramp = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(ramp, 0, 1)
    return (keep * frequency + (1 - keep) * frequency / scaling.factor).astype(np.float32)
