"""The weights a sweep asks for, one layer at a time, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.weights import Linear
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block. Norm gains and biases are float32 vectors."""

    attn_norm: Floats
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    mlp_norm: Floats
    gate: Linear
    up: Linear
    down: Linear
    q_bias: Floats | None = None
    k_bias: Floats | None = None
    v_bias: Floats | None = None


class Embedding(Protocol):
    """The rows of tokens."""

    def read_rows(self, rows: npt.NDArray[np.int64]) -> Floats:
        """float32 [len(rows), hidden] of the given rows."""
        ...


class Network(Protocol):
    """A whole model: an artefact in memory, an artefact on disk, or the original."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def final_norm(self) -> Floats: ...

    @property
    def embedding(self) -> Embedding: ...

    @property
    def head(self) -> Linear: ...

    @property
    def resident(self) -> bool:
        """Whether `layer` gives the same object on every call, so that it can be kept."""
        ...

    def layer(self, index: int) -> LayerWeights:
        """Weights of one layer."""
        ...

    def begin_layers(self, head_follows: bool) -> None:
        """A sweep over all layers, in order, starts; whether the head is asked for after it."""
        ...

    def begin_head(self) -> None:
        """A pass over the head starts."""
        ...
