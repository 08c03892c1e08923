"""What enters every matrix: second moments over calibration tokens, layer by layer, without torch.

With guidance, a token counts for a matrix as the loss at the end cares about the matrix's output
there (compress/guidance.py): by the square root of its weight, because one token's weight is a
noisy figure and a few would outvote all others (docs/decisions/0012-guidance.md).

The tokens pass through the original weights one layer at a time (compress/forward.py); one layer's
statistics are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.compress.forward import HiddenStates, Tokens
from loop_singular_bit.compress.guidance import Guidance, Importance
from loop_singular_bit.compress.shrinkage import effective_samples, shrink
from loop_singular_bit.engine.kv import KVCache
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, Batch, Head, InputSite, Sweep
from loop_singular_bit.models.spec import LINEAR_ROLES, ModelSpec, Role

Floats = npt.NDArray[np.float32]
TEMPERATURES = (1.0, 0.7)
MIRROR_ROWS = 256  # of H, copied to its lower half together


@dataclass(frozen=True)
class LayerStatistics:
    """One layer and H = E[x x^T] float32 [cols, cols] of what enters each matrix; matrices that
    share an input and its weights share one array."""

    index: int
    weights: LayerWeights
    hessians: Mapping[Role, Floats]


@dataclass(frozen=True)
class HeadStatistics:
    """H of what enters the head; None where nothing was calibrated."""

    hessian: Floats | None


class _Gram:
    """Running mean of sqrt(w) x x^T over rows [T, cols], sqrt(w) scaled to a mean of 1 over all
    rows."""

    def __init__(self, cols: int, weights: Floats | None) -> None:
        padded = -(-cols // 32) * 32
        self.cols = cols
        self._sum = np.zeros((padded, padded), np.float32)
        self._rows = 0
        self._factor = None if weights is None else _row_factors(weights)

    def add(self, x: Floats, rows: slice) -> None:
        """rows: which of all rows these are."""
        if self._factor is not None:
            x = x * self._factor[rows, None]
        _native.gram(np.ascontiguousarray(x), self._sum)
        self._rows += len(x)

    def mean(self, shrunk: bool) -> Floats:
        """Symmetric [cols, cols], in place of the sum: nothing can be added any more. shrunk: as
        far as so many rows are to be believed (compress/shrinkage.py)."""
        H = self._sum[: self.cols, : self.cols]
        H /= np.float32(max(self._rows, 1))
        for start in range(0, self.cols, MIRROR_ROWS):
            stop = start + MIRROR_ROWS
            square = H[start:stop, start:stop]
            square[:] = np.triu(square) + np.triu(square, 1).T
            H[stop:, start:stop] = H[start:stop, stop:].T
        if shrunk:
            factor = self._factor
            shrink(H, self._rows if factor is None else effective_samples(np.square(factor)))
        return np.ascontiguousarray(H)


def _row_factors(weights: Floats) -> Floats | None:
    """What rows are multiplied by so that each counts sqrt(w) / mean sqrt(w); None where no token
    counts."""
    root = np.sqrt(weights)
    mean = root.mean(dtype=np.float64)
    return np.asarray(np.sqrt(root / mean), np.float32) if mean > 0 else None


class _LayerGrams:
    """A Gram for each matrix where tokens have weights, else one for each input."""

    def __init__(self, spec: ModelSpec, matrices: Mapping[Role, Importance] | None) -> None:
        self._grams: dict[InputSite, dict[Role, _Gram]] = {site: {} for site in InputSite}
        self._stands_for: dict[Role, _Gram] = {}
        for role in LINEAR_ROLES:
            site = SITE_OF_ROLE[role]
            found = self._grams[site]
            if matrices is not None or not found:
                weights = matrices[role].weights if matrices else None
                found[role] = _Gram(_width(spec, site), weights)
            self._stands_for[role] = list(found.values())[-1]

    def add(self, site: InputSite, x: Floats, rows: slice) -> None:
        for gram in self._grams[site].values():
            gram.add(x, rows)

    def means(self, shrunk: bool) -> dict[Role, Floats]:
        of_gram = {gram: gram.mean(shrunk) for gram in set(self._stands_for.values())}
        return {role: of_gram[gram] for role, gram in self._stands_for.items()}


def sample_sequences(
    network: Network,
    starts: Sequence[Sequence[int]],
    length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tokens:
    """Token ids [len(starts), length] sampled from the model itself, all sequences in one sweep.

    Each sequence begins with the ids given for it, at least one; an end token is followed by
    whatever the model says. Sequences take turns at the TEMPERATURES.
    """
    spec, sequences = network.spec, len(starts)
    cache = KVCache(spec, sequences, length)
    rotary = rotary_table(spec, cache.context)
    sweep, head = Sweep(network, cache, rotary, sequences), Head(network, sequences)
    ids = _begun(starts, length)
    slots = np.arange(sequences, dtype=np.int32)
    temperatures = np.resize(np.array(TEMPERATURES, np.float32), (sequences, 1))
    for position in range(length - 1):
        places = np.full(sequences, position, np.int32)
        x = sweep.hidden(Batch(ids[:, position].copy(), slots, places))
        drawn = _draw(head.logits(x) / temperatures, seed, position)
        given = ids[:, position + 1]
        ids[:, position + 1] = np.where(given >= 0, given, drawn)
        progress(position + 1, length - 1)
    return ids


def _begun(starts: Sequence[Sequence[int]], length: int) -> Tokens:
    """[len(starts), length] of the ids given, -1 after them."""
    ids = np.full((len(starts), length), -1, np.int64)
    for row, start in zip(ids, starts, strict=True):
        row[: len(start)] = start[:length]
    return ids


def _draw(scores: Floats, seed: int, position: int) -> npt.NDArray[np.int64]:
    """One token id for each row of scores [N, vocab], by inverse cumulative sum.

    The random numbers depend on seed, position and row alone.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    mass = np.cumsum(np.exp(scores - scores.max(axis=1, keepdims=True)), axis=1, dtype=np.float64)
    wanted = generator.random(len(scores)) * mass[:, -1]
    return np.array(
        [np.searchsorted(row, at, "right") for row, at in zip(mass, wanted, strict=True)]
    )


def statistics(
    network: Network,
    tokens: Tokens,
    guidance: Guidance | None = None,
    start: int = 0,
    *,
    shrunk: bool = False,
) -> Iterator[LayerStatistics | HeadStatistics]:
    """Statistics of every layer from `start` on, then of the head. tokens [sequences, length].

    shrunk: made for encoding, by what these tokens say of others; else they are of these tokens.
    """
    spec, states = network.spec, HiddenStates(network, tokens)
    for index in range(spec.layers):
        layer = network.layer(index)
        if index < start:
            states.pass_layer(layer)
            continue
        grams = _LayerGrams(spec, guidance.layers[index] if guidance else None)
        states.pass_layer(layer, grams.add)
        yield LayerStatistics(index, layer, grams.means(shrunk))
    gram = _Gram(spec.hidden, guidance.head.weights if guidance else None)
    for rows, _ids in states.parts():
        normed = np.empty_like(states.x[rows])
        _native.rms_norm(states.x[rows], network.final_norm, spec.norm_eps, normed)
        gram.add(normed, rows)
    yield HeadStatistics(gram.mean(shrunk))


def _width(spec: ModelSpec, site: InputSite) -> int:
    widths = {InputSite.OUTPUT: spec.query_width, InputSite.DOWN: spec.intermediate}
    return widths.get(site, spec.hidden)
