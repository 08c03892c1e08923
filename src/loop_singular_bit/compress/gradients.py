"""A transformer block forwards and backwards in numpy: the gradient of a loss with respect to what
every matrix puts out.

For calibration only. It computes in float32 what `engine/sweep.py` records for the native kernels;
tests hold the two together, and the gradients to finite differences.

Rows are sequence after sequence, `length` tokens each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.weights import DenseWeight
from loop_singular_bit.engine.network import LayerWeights
from loop_singular_bit.engine.rope import RotaryTable
from loop_singular_bit.engine.sweep import InputSite
from loop_singular_bit.models.spec import LINEAR_ROLES, ModelSpec, Role

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tape:
    """What the backward pass needs of a forward pass.

    x, middle  hidden states before attention and before the MLP [rows, hidden]
    q, k, v    by head [sequences, heads, length, head_dim], q and k turned
    share      attention probabilities [sequences, kv heads, group, length, length]
    gate, up   [rows, intermediate]
    inputs     of the matrices [rows, cols]
    """

    x: Floats
    q: Floats
    k: Floats
    v: Floats
    share: Floats
    middle: Floats
    gate: Floats
    up: Floats
    inputs: Mapping[InputSite, Floats]


class Block:
    """One layer with its matrices as float32 [out, in]."""

    def __init__(
        self, spec: ModelSpec, layer: LayerWeights, rotary: RotaryTable, length: int
    ) -> None:
        self._spec, self._layer, self._length = spec, layer, length
        self._W = {role: _dense(layer, role) for role in LINEAR_ROLES}
        self._cosine, self._sine = rotary.cosine[:length], rotary.sine[:length]
        self._hidden_from = _hidden_from(length, spec.sliding_window)

    def forward(self, x: Floats) -> tuple[Floats, Tape]:
        """Hidden states after the layer [rows, hidden], from those before it."""
        spec, layer, W = self._spec, self._layer, self._W
        into_attention = rms_norm(x, layer.attn_norm, spec.norm_eps)
        q = self._turned(self._heads(into_attention @ W[Role.Q].T, layer.q_bias), self._sine)
        k = self._turned(self._heads(into_attention @ W[Role.K].T, layer.k_bias), self._sine)
        v = self._heads(into_attention @ W[Role.V].T, layer.v_bias)
        share = self._shares(q, k)
        attended = self._flat(share @ v[:, :, None])
        middle = x + attended @ W[Role.O].T
        into_mlp = rms_norm(middle, layer.mlp_norm, spec.norm_eps)
        gate, up = into_mlp @ W[Role.GATE].T, into_mlp @ W[Role.UP].T
        inner = _silu(gate) * up
        inputs = dict(zip(InputSite, (into_attention, attended, into_mlp, inner), strict=True))
        return middle + inner @ W[Role.DOWN].T, Tape(x, q, k, v, share, middle, gate, up, inputs)

    def backward(self, grad: Floats, tape: Tape) -> tuple[Floats, Mapping[Role, Floats]]:
        """Gradient with respect to the layer's input, and to the output of each matrix, from that
        with respect to its output; all [rows, ...]."""
        spec, layer, W = self._spec, self._layer, self._W
        outputs = {Role.DOWN: grad}
        inner: Floats = grad @ W[Role.DOWN]
        outputs[Role.UP] = inner * _silu(tape.gate)
        outputs[Role.GATE] = inner * tape.up * _silu_slope(tape.gate)
        normed = outputs[Role.GATE] @ W[Role.GATE] + outputs[Role.UP] @ W[Role.UP]
        middle = grad + rms_norm_backward(normed, tape.middle, layer.mlp_norm, spec.norm_eps)
        outputs[Role.O] = middle
        attended = np.asarray(middle @ W[Role.O], np.float32)
        outputs |= self._attention_backward(attended, tape)
        normed = (
            outputs[Role.Q] @ W[Role.Q] + outputs[Role.K] @ W[Role.K] + outputs[Role.V] @ W[Role.V]
        )
        x = middle + rms_norm_backward(normed, tape.x, layer.attn_norm, spec.norm_eps)
        return x, outputs

    def _attention_backward(self, attended: Floats, tape: Tape) -> dict[Role, Floats]:
        heads = self._heads(attended, None).reshape((*tape.share.shape[:3], self._length, -1))
        v: Floats = (tape.share.swapaxes(-1, -2) @ heads).sum(axis=2)
        slope: Floats = heads @ tape.v[:, :, None].swapaxes(-1, -2)
        slope -= np.einsum("skgtu,skgtu->skgt", slope, tape.share)[..., None]
        slope *= tape.share
        slope *= np.float32(self._spec.head_dim**-0.5)
        q: Floats = slope @ tape.k[:, :, None]
        by_group = tape.q.reshape(q.shape)
        k = (slope.swapaxes(-1, -2) @ by_group).sum(axis=2)
        return {
            Role.Q: self._flat(self._turned(q.reshape(tape.q.shape), -self._sine)),
            Role.K: self._flat(self._turned(k, -self._sine)),
            Role.V: self._flat(v),
        }

    def _shares(self, q: Floats, k: Floats) -> Floats:
        """Attention probabilities [sequences, kv heads, group, length, length]."""
        sequences, heads, length, dim = q.shape
        by_group = q.reshape(sequences, k.shape[1], heads // k.shape[1], length, dim)
        scores = by_group @ k[:, :, None].swapaxes(-1, -2)
        scores *= np.float32(dim**-0.5)
        scores += self._hidden_from
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return np.asarray(scores, np.float32)

    def _heads(self, rows: Floats, bias: Floats | None) -> Floats:
        """[rows, heads * dim] as [sequences, heads, length, dim]."""
        biased = rows if bias is None else rows + bias
        return biased.reshape(
            len(rows) // self._length, self._length, -1, self._spec.head_dim
        ).swapaxes(1, 2)

    def _flat(self, heads: Floats) -> Floats:
        """[sequences, ..., length, dim] as [rows, heads * dim]."""
        sequences, length, dim = len(heads), self._length, self._spec.head_dim
        joined = heads.reshape(sequences, -1, length, dim).swapaxes(1, 2)
        return joined.reshape(sequences * length, -1)

    def _turned(self, x: Floats, sine: Floats) -> Floats:
        """Rotary position embedding of [sequences, heads, length, dim]."""
        first, second = np.split(x, 2, axis=-1)
        cosine = self._cosine
        return np.concatenate(
            [first * cosine - second * sine, second * cosine + first * sine], axis=-1
        )


def rms_norm(x: Floats, gain: Floats, eps: float) -> Floats:
    """gain x / rms(x) of rows x [rows, hidden]."""
    return x * (_inverse_rms(x, eps) * gain)


def rms_norm_backward(grad: Floats, x: Floats, gain: Floats, eps: float) -> Floats:
    """Gradient with respect to x [rows, hidden]."""
    inverse = _inverse_rms(x, eps)
    direct = grad * gain
    along = np.einsum("tc,tc->t", direct, x)[:, None] / np.float32(x.shape[1])
    return np.asarray(inverse * (direct - x * (along * inverse**2)), np.float32)


def _inverse_rms(x: Floats, eps: float) -> Floats:
    square = np.einsum("tc,tc->t", x, x) / np.float32(x.shape[1])
    return np.asarray(1 / np.sqrt(square + np.float32(eps)), np.float32)[:, None]


def _sigmoid(x: Floats) -> Floats:
    # Beyond 80 float32 has nothing left to add, and exp would overflow.
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -80, 80))), np.float32)


def _silu(x: Floats) -> Floats:
    return x * _sigmoid(x)


def _silu_slope(x: Floats) -> Floats:
    share = _sigmoid(x)
    return share * (1 + x * (1 - share))


def _hidden_from(length: int, window: int | None) -> Floats:
    """[length, length]: 0 where a query (row) sees a key, else -inf."""
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = (distance >= 0) & (distance < (window or length))
    return np.where(seen, np.float32(0), np.float32(-np.inf))


def _dense(layer: LayerWeights, role: Role) -> Floats:
    weight = getattr(layer, role.value)
    if not isinstance(weight, DenseWeight):
        raise TypeError(f"{role.value} is not a matrix of an original")
    return weight.dense()
