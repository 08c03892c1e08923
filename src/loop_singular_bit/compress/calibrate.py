"""What enters every matrix: second moments over calibration tokens, layer by layer, without torch.

The tokens pass through the original weights one layer at a time; only their hidden states
(4 x hidden bytes a token) and one layer with its statistics are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.engine.kv import KVCache
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import (
    Batch,
    Head,
    InputSite,
    Sweep,
    Workspace,
    record_layer,
)
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]  # [sequences, length]

ROWS_MAX = 1024  # rows of one sweep while calibrating


@dataclass(frozen=True)
class LayerStatistics:
    """One layer and H = E[x x^T] float32 [cols, cols] of each of its inputs."""

    index: int
    weights: LayerWeights
    hessians: dict[InputSite, Floats]


@dataclass(frozen=True)
class HeadStatistics:
    """H of what enters the head; None where nothing was calibrated."""

    hessian: Floats | None


class _Gram:
    """Running X^T X of rows [T, cols]."""

    def __init__(self, cols: int) -> None:
        padded = -(-cols // 32) * 32
        self.cols = cols
        self._sum = np.zeros((padded, padded), np.float32)
        self._rows = 0

    def add(self, x: Floats) -> None:
        _native.gram(np.ascontiguousarray(x), self._sum)
        self._rows += len(x)

    def mean(self) -> Floats:
        """E[x x^T], symmetric."""
        upper = np.triu(self._sum[: self.cols, : self.cols]) / np.float32(max(self._rows, 1))
        return upper + np.triu(upper, 1).T


def sample_sequences(
    network: Network,
    sequences: int,
    length: int,
    seed: int,
    start_id: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tokens:
    """Token ids [sequences, length] sampled from the model itself, all sequences in one sweep.

    Every sequence starts with `start_id`; an end token is followed by whatever the model says.
    """
    spec = network.spec
    cache = KVCache(spec, sequences, length)
    rotary = rotary_table(spec, cache.context)
    sweep, head = Sweep(network, cache, rotary, sequences), Head(network, sequences)
    ids = np.empty((sequences, length), np.int64)
    ids[:, 0] = start_id
    slots = np.arange(sequences, dtype=np.int32)
    for position in range(length - 1):
        places = np.full(sequences, position, np.int32)
        x = sweep.hidden(Batch(ids[:, position].copy(), slots, places))
        ids[:, position + 1] = _draw(head.logits(x), seed, position)
        progress(position + 1, length - 1)
    return ids


def _draw(scores: Floats, seed: int, position: int) -> npt.NDArray[np.int64]:
    """One token id for each row of scores [N, vocab], at temperature 1, by inverse cumulative sum.

    The random numbers depend on seed, position and row alone.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    mass = np.cumsum(np.exp(scores - scores.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
    wanted = generator.random(len(scores)) * mass[:, -1]
    return np.array(
        [np.searchsorted(row, at, "right") for row, at in zip(mass, wanted, strict=True)]
    )


def _chunks(tokens: Tokens) -> Iterator[tuple[slice, Batch]]:
    """Whole sequences, as many as fit ROWS_MAX rows, as batches over the flattened tokens."""
    sequences, length = tokens.shape
    per_chunk = max(1, ROWS_MAX // length)
    for start in range(0, sequences, per_chunk):
        part = tokens[start : start + per_chunk]
        slots = np.repeat(np.arange(len(part), dtype=np.int32), length)
        positions = np.tile(np.arange(length, dtype=np.int32), len(part))
        rows = slice(start * length, (start + len(part)) * length)
        yield rows, Batch(part.reshape(-1).copy(), slots, positions)


def statistics(network: Network, tokens: Tokens) -> Iterator[LayerStatistics | HeadStatistics]:
    """Statistics of every layer in order, then of the head. tokens [sequences, length]."""
    spec, (sequences, length) = network.spec, tokens.shape
    rows_max = max(1, ROWS_MAX // length) * length
    cache = KVCache(spec, max(1, ROWS_MAX // length), length, layers=1)
    rotary = rotary_table(spec, cache.context)
    work = Workspace(spec, rows_max)
    x = np.empty((sequences * length, spec.hidden), np.float32)
    for rows, batch in _chunks(tokens):
        x[rows] = network.embedding.read_rows(batch.ids)
    for index in range(spec.layers):
        layer = network.layer(index)
        grams = {site: _Gram(_width(spec, site)) for site in InputSite}
        program = record_layer(spec, layer, cache.layers[0], rotary, work)
        for rows, batch in _chunks(tokens):
            hidden = work.x[: len(batch.ids)]
            hidden[:] = x[rows]
            for site, inputs in program.run_by_site(batch):
                grams[site].add(inputs)
            x[rows] = hidden
        yield LayerStatistics(index, layer, {site: gram.mean() for site, gram in grams.items()})
    gram = _Gram(spec.hidden)
    for rows, _batch in _chunks(tokens):
        normed = work.normed[: rows.stop - rows.start]
        _native.rms_norm(np.ascontiguousarray(x[rows]), network.final_norm, spec.norm_eps, normed)
        gram.add(normed)
    yield HeadStatistics(gram.mean())


def _width(spec: ModelSpec, site: InputSite) -> int:
    widths = {InputSite.OUTPUT: spec.query_width, InputSite.DOWN: spec.intermediate}
    return widths.get(site, spec.hidden)
