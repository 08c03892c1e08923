"""The weights a sweep asks for, one layer at a time, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.weights import Weight
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block. Norm gains and biases are float32 vectors."""

    attn_norm: Floats
    q: Weight
    k: Weight
    v: Weight
    o: Weight
    mlp_norm: Floats
    gate: Weight
    up: Weight
    down: Weight
    q_bias: Floats | None = None
    k_bias: Floats | None = None
    v_bias: Floats | None = None


class Network(Protocol):
    """A whole model: an artefact in memory, an artefact on disk, or the original."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def final_norm(self) -> Floats: ...

    @property
    def embedding(self) -> Weight: ...

    @property
    def head(self) -> Weight:
        """The embedding itself where it is tied."""
        ...

    @property
    def resident(self) -> bool:
        """Whether every layer stays in memory, so that it need not be asked for again."""
        ...

    def layer(self, index: int) -> LayerWeights:
        """Weights of one layer, valid until the next call."""
        ...
