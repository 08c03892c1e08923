"""One pass of N token rows through the network: prefill, decode, evaluation and calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.weights import InputRows, Weight
from loop_singular_bit.engine.kv import KVCache, LayerCache
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.rope import RotaryTable
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """N token rows: ids [N] int64, and each row's slot and position in the cache [N] int32.

    Rows of one slot are in ascending position; rows of several sequences may share a batch.
    """

    ids: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]


class InputSite(Enum):
    """The inputs that matrices of a layer share; the value is part of record names."""

    ATTENTION = "attn_in"  # q, k, v
    OUTPUT = "o_in"
    MLP = "mlp_in"  # gate, up
    DOWN = "down_in"


class Workspace:
    """Activation buffers for up to `rows_max` rows, made once."""

    def __init__(self, spec: ModelSpec, rows_max: int) -> None:
        def floats(width: int) -> Floats:
            return np.empty((rows_max, width), np.float32)

        self.rows_max = rows_max
        self.normed, self.delta = floats(spec.hidden), floats(spec.hidden)
        self.q, self.attended = floats(spec.query_width), floats(spec.query_width)
        self.k, self.v = floats(spec.kv_width), floats(spec.kv_width)
        self.gate, self.up = floats(spec.intermediate), floats(spec.intermediate)
        self.hidden_rows = InputRows(rows_max, spec.hidden)
        self.query_rows = InputRows(rows_max, spec.query_width)
        self.inner_rows = InputRows(rows_max, spec.intermediate)


def workspace_bytes(spec: ModelSpec, rows_max: int) -> int:
    """Bytes a Workspace takes: float32 buffers, and rotated float32 + int8 inputs."""
    buffers = 2 * spec.hidden + 2 * spec.query_width + 2 * spec.kv_width + 2 * spec.intermediate
    inputs = spec.hidden + spec.query_width + spec.intermediate
    return rows_max * (4 * buffers + 5 * inputs)


def sweep(
    network: Network, cache: KVCache, rotary: RotaryTable, batch: Batch, work: Workspace
) -> Floats:
    """Final hidden states [N, hidden] of a batch; its keys and values are left in the cache."""
    x = embed(network, batch)
    for index in range(network.spec.layers):
        layer = network.layer(index)
        for _site, _inputs in run_layer(
            network.spec, layer, cache.layers[index], rotary, batch, x, work
        ):
            pass
    return x


def embed(network: Network, batch: Batch) -> Floats:
    """Embedding rows [N, hidden] of a batch."""
    return network.embedding.read_rows(batch.ids)


def run_layer(
    spec: ModelSpec,
    layer: LayerWeights,
    cache: LayerCache,
    rotary: RotaryTable,
    batch: Batch,
    x: Floats,
    work: Workspace,
) -> Iterator[tuple[InputSite, Floats]]:
    """Adds one block to x [N, hidden] in place; yields what enters its matrices (calibration)."""
    n = len(x)
    normed, delta = work.normed[:n], work.delta[:n]
    q, k, v, attended = work.q[:n], work.k[:n], work.v[:n], work.attended[:n]
    gate, up = work.gate[:n], work.up[:n]

    _native.rms_norm(x, layer.attn_norm, spec.norm_eps, normed)
    work.hidden_rows.load(normed)
    yield InputSite.ATTENTION, normed
    for weight, bias, out in (
        (layer.q, layer.q_bias, q), (layer.k, layer.k_bias, k), (layer.v, layer.v_bias, v)
    ):  # fmt: skip
        weight.multiply(work.hidden_rows, out)
        if bias is not None:
            out += bias
    rotary.rotate(q, batch.positions, spec.head_dim)
    rotary.rotate(k, batch.positions, spec.head_dim)
    cache.store(k, v, batch.slots, batch.positions)
    cache.attend(q, spec.heads, batch.slots, batch.positions, spec.sliding_window, attended)
    work.query_rows.load(attended)
    yield InputSite.OUTPUT, attended
    layer.o.multiply(work.query_rows, delta)
    x += delta

    _native.rms_norm(x, layer.mlp_norm, spec.norm_eps, normed)
    work.hidden_rows.load(normed)
    yield InputSite.MLP, normed
    layer.gate.multiply(work.hidden_rows, gate)
    layer.up.multiply(work.hidden_rows, up)
    _native.swiglu(gate, up, gate)
    work.inner_rows.load(gate)
    yield InputSite.DOWN, gate
    layer.down.multiply(work.inner_rows, delta)
    x += delta


def logits(network: Network, x: Floats, work: Workspace, out: Floats | None = None) -> Floats:
    """float32 [N, vocab] of final hidden states x [N, hidden], N <= work.rows_max."""
    normed = work.normed[: len(x)]
    _native.rms_norm(np.ascontiguousarray(x), network.final_norm, network.spec.norm_eps, normed)
    work.hidden_rows.load(normed)
    head: Weight = network.head
    if out is None:
        out = np.empty((len(x), head.rows), np.float32)
    head.multiply(work.hidden_rows, out)
    return out
