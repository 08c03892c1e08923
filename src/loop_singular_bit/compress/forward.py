"""Calibration tokens on their way through the original network, one layer at a time.

Only their hidden states (4 x hidden bytes a token) and one layer are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.kv import KVCache
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import Batch, InputSite, record_layer
from loop_singular_bit.engine.workspace import Workspace

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]  # [sequences, length]
Look = Callable[[InputSite, Floats, slice], None]

ROWS_MAX = 1024  # rows of one sweep while calibrating


class HiddenStates:
    """Of all tokens: x float32 [tokens, hidden], after the layers passed so far."""

    def __init__(self, network: Network, tokens: Tokens) -> None:
        """tokens [sequences, length]."""
        self._spec, self._tokens = network.spec, tokens
        self.x = np.empty((tokens.size, network.spec.hidden), np.float32)
        for rows, ids in self.parts():
            self.x[rows] = network.embedding.read_rows(ids.reshape(-1))
        at_once, length = self._sequences_at_once, int(tokens.shape[1])
        self._cache = KVCache(network.spec, at_once, length, layers=1)
        self._rotary = rotary_table(network.spec, self._cache.context)
        self._work = Workspace(network.spec, at_once * length)

    def pass_layer(self, layer: LayerWeights, look: Look | None = None) -> None:
        """look(site, inputs [N, cols], which of all rows these are) sees what enters the
        matrices."""
        cache, work = self._cache.layers[0], self._work
        program = record_layer(self._spec, layer, cache, self._rotary, work)
        for rows, ids in self.parts():
            hidden = work.x[: ids.size]
            hidden[:] = self.x[rows]
            if look is None:
                program.run(_batch(ids))
            else:
                for site, inputs in program.run_by_site(_batch(ids)):
                    look(site, inputs, rows)
            self.x[rows] = hidden

    def parts(self) -> Iterator[tuple[slice, Tokens]]:
        """Whole sequences, as many as fit ROWS_MAX rows: which of all rows, and their tokens."""
        length = int(self._tokens.shape[1])
        for start in range(0, len(self._tokens), self._sequences_at_once):
            part = self._tokens[start : start + self._sequences_at_once]
            yield slice(start * length, (start + len(part)) * length), part

    @property
    def _sequences_at_once(self) -> int:
        return max(1, ROWS_MAX // int(self._tokens.shape[1]))


def _batch(tokens: Tokens) -> Batch:
    sequences, length = tokens.shape
    slots = np.repeat(np.arange(sequences, dtype=np.int32), length)
    positions = np.tile(np.arange(length, dtype=np.int32), sequences)
    return Batch(tokens.reshape(-1).copy(), slots, positions)
