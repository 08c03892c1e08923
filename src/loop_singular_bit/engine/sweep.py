"""One pass of N token rows through the network: prefill, decode, evaluation and calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.program import Program
from loop_singular_bit.codec.weights import InputRows, multiply
from loop_singular_bit.engine.kv import KVCache, LayerCache
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.rope import RotaryTable
from loop_singular_bit.engine.workspace import Arena, Workspace, head_buffers
from loop_singular_bit.models.spec import ModelSpec, Role

Floats = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

EMBEDDED_TOGETHER = 16  # rows of the embedding, which takes memory beside the result


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


SITE_OF_ROLE = {
    Role.Q: InputSite.ATTENTION, Role.K: InputSite.ATTENTION, Role.V: InputSite.ATTENTION,
    Role.O: InputSite.OUTPUT, Role.GATE: InputSite.MLP, Role.UP: InputSite.MLP,
    Role.DOWN: InputSite.DOWN,
}  # fmt: skip


@dataclass(frozen=True)
class LayerProgram:
    """The recorded operations of one layer.

    stops  what enters the matrices of a site, and how many steps fill it
    """

    program: Program
    stops: tuple[tuple[InputSite, Floats, int], ...]

    def run(self, batch: Batch) -> None:
        """Adds the layer to the first N rows of the workspace's x."""
        self.program.run_steps(batch.slots, batch.positions)

    def run_by_site(self, batch: Batch) -> Iterator[tuple[InputSite, Floats]]:
        """The same, pausing where a site's inputs [N, cols] are there."""
        begin = 0
        for site, inputs, end in self.stops:
            self.program.run_steps(batch.slots, batch.positions, begin, end)
            yield site, inputs[: len(batch.ids)]
            begin = end
        self.program.run_steps(batch.slots, batch.positions, begin)


def record_layer(
    spec: ModelSpec, layer: LayerWeights, cache: LayerCache, rotary: RotaryTable, work: Workspace
) -> LayerProgram:
    """The whole of one transformer block, in the order it runs."""
    program = Program(work.rows_max)
    stops: list[tuple[InputSite, Floats, int]] = []

    def enter(site: InputSite, inputs: Floats, rows: InputRows) -> InputRows:
        stops.append((site, inputs, program.mark()))
        rows.load(program, inputs)
        return rows

    program.rms_norm(work.x, layer.attn_norm, spec.norm_eps, work.normed)
    rows = enter(InputSite.ATTENTION, work.normed, work.hidden_rows)
    multiply(rows, [(layer.q, work.q), (layer.k, work.k), (layer.v, work.v)])
    for bias, out in (layer.q_bias, work.q), (layer.k_bias, work.k), (layer.v_bias, work.v):
        if bias is not None:
            program.add_bias(bias, out)
    rotary.rotate(program, work.q, spec.head_dim)
    rotary.rotate(program, work.k, spec.head_dim)
    cache.store(program, work.k, work.v)
    cache.attend(program, work.q, spec.heads, spec.sliding_window, work.attended)
    rows = enter(InputSite.OUTPUT, work.attended, work.query_rows)
    multiply(rows, [(layer.o, work.delta)])
    program.add(work.delta, work.x)
    program.mark()  # a stage ends: the next norm may be written where delta was read

    program.rms_norm(work.x, layer.mlp_norm, spec.norm_eps, work.normed)
    rows = enter(InputSite.MLP, work.normed, work.hidden_rows)
    multiply(rows, [(layer.gate, work.gate), (layer.up, work.up)])
    program.swiglu(work.gate, work.up, work.gate)
    rows = enter(InputSite.DOWN, work.gate, work.inner_rows)
    multiply(rows, [(layer.down, work.delta)])
    program.add(work.delta, work.x)
    return LayerProgram(program, tuple(stops))


class Sweep:
    """Passes batches of up to `rows_max` rows through a network; keys and values are left in the
    cache. memory: as in `Arena`."""

    def __init__(
        self,
        network: Network,
        cache: KVCache,
        rotary: RotaryTable,
        rows_max: int,
        memory: U8 | None = None,
    ) -> None:
        self.network, self.rows_max = network, rows_max
        self._cache, self._rotary = cache, rotary
        self._work = Workspace(network.spec, rows_max, memory)
        self._programs: dict[int, LayerProgram] = {}

    def hidden(self, batch: Batch, head_follows: bool = True) -> Floats:
        """Final hidden states [N, hidden], valid until the memory is used again; whether their
        logits will be asked for next."""
        self.network.begin_layers(head_follows)
        x = self._work.x[: len(batch.ids)]
        for start in range(0, len(x), EMBEDDED_TOGETHER):
            rows = slice(start, start + EMBEDDED_TOGETHER)
            x[rows] = self.network.embedding.read_rows(batch.ids[rows])
        for index, cached in enumerate(self._cache.layers):
            program = self._program(index)
            cached.load(batch.slots, batch.positions)
            program.run(batch)
            cached.save(batch.slots, batch.positions)
        return x

    def _program(self, index: int) -> LayerProgram:
        """Recorded anew when the weights were read anew."""
        if index in self._programs:
            return self._programs[index]
        network, layer = self.network, self.network.layer(index)
        program = record_layer(
            network.spec, layer, self._cache.layers[index], self._rotary, self._work
        )
        if network.resident:
            self._programs[index] = program
        return program


class Head:
    """The final norm and the vocabulary's logits, `rows_max` rows at a time. memory: as in
    `Arena`."""

    def __init__(self, network: Network, rows_max: int, memory: U8 | None = None) -> None:
        spec, self._rows_max, self._network = network.spec, rows_max, network
        arena = Arena(head_buffers(spec), rows_max, memory)
        self._x, normed = (arena.floats(name, spec.hidden) for name in ("x", "normed"))
        self._out = arena.floats("logits", spec.vocab)
        self._program = Program(rows_max)
        self._program.rms_norm(self._x, network.final_norm, spec.norm_eps, normed)
        rows = arena.packed("rows", spec.hidden)
        rows.load(self._program, normed)
        multiply(rows, [(network.head, self._out)])
        self._nowhere = np.zeros(rows_max, np.int32)

    def logits(self, x: Floats) -> Floats:
        """float32 [N, vocab] of final hidden states x [N, hidden]."""
        out = np.empty((len(x), self._out.shape[1]), np.float32)
        for start in range(0, len(x), self._rows_max):
            count = len(part := x[start : start + self._rows_max])
            self._x[:count] = part
            places = self._nowhere[:count]
            self._network.begin_head()
            self._program.run_steps(places, places)
            out[start : start + count] = self._out[:count]
        return out
