"""What a decoder-only network is: sizes, options and its tensors. No bytes, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """The part a tensor plays; the value is the last part of its name in an artefact."""

    EMBEDDING = "embed"
    HEAD = "head"
    ATTENTION_NORM = "attn_norm"
    MLP_NORM = "mlp_norm"
    FINAL_NORM = "final_norm"
    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741  (the field's own name)
    Q_BIAS = "q_bias"
    K_BIAS = "k_bias"
    V_BIAS = "v_bias"
    GATE = "gate"
    UP = "up"
    DOWN = "down"


LINEAR_ROLES = (Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the network: its name here, its shape and its part."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None

    @property
    def count(self) -> int:
        """Number of parameters."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 style frequency scaling (arXiv 2407.21783, section 3; as in `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and options of a Llama-shaped network (Llama, Mistral, Qwen2).

    Rotary embedding uses the half-split ("NeoX") pairing everywhere: element i of a head is paired
    with element i + head_dim/2. GGUF's interleaved Llama rows are un-permuted on reading.
    """

    family: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    context_max: int
    tied_head: bool
    attention_bias: bool
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


def layer_tensors(spec: ModelSpec, layer: int) -> tuple[TensorSpec, ...]:
    """The tensors of one layer in the order a sweep needs them. Matrices are [out, in]."""
    hidden, width, kv, inner = spec.hidden, spec.query_width, spec.kv_width, spec.intermediate

    def tensor(role: Role, *shape: int) -> TensorSpec:
        return TensorSpec(f"layers.{layer}.{role.value}", shape, role, layer)

    biases = (
        (tensor(Role.Q_BIAS, width), tensor(Role.K_BIAS, kv), tensor(Role.V_BIAS, kv))
        if spec.attention_bias
        else ()
    )
    return (
        tensor(Role.ATTENTION_NORM, hidden),
        tensor(Role.Q, width, hidden),
        tensor(Role.K, kv, hidden),
        tensor(Role.V, kv, hidden),
        *biases,
        tensor(Role.O, hidden, width),
        tensor(Role.MLP_NORM, hidden),
        tensor(Role.GATE, inner, hidden),
        tensor(Role.UP, inner, hidden),
        tensor(Role.DOWN, hidden, inner),
    )


def all_tensors(spec: ModelSpec) -> Iterator[TensorSpec]:
    """Every tensor of the network in sweep order; a tied head is not repeated."""
    yield TensorSpec("embed", (spec.vocab, spec.hidden), Role.EMBEDDING)
    for layer in range(spec.layers):
        yield from layer_tensors(spec, layer)
    yield TensorSpec("final_norm", (spec.hidden,), Role.FINAL_NORM)
    if not spec.tied_head:
        yield TensorSpec("head", (spec.vocab, spec.hidden), Role.HEAD)


def parameter_count(spec: ModelSpec) -> int:
    """Number of parameters, embeddings and head included, a tied head counted once."""
    return sum(tensor.count for tensor in all_tensors(spec))
