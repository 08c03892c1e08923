"""What other roundings of keys and values would lose, before there is a kernel for them.

    python benches/kv_study.py MODEL TEXT

MODEL is an original. Keys (after the rotary embedding) or values are rounded on their way into a
cache of 16 bits; KL(16 bits || rounded) in nats a token over the second window of TEXT. The first
one is what the calibrated ones have seen. Writes benches/results/kv_study.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.codec.program import Program
from loop_singular_bit.compress.original import open_original
from loop_singular_bit.engine.kv import LayerCache
from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.runtime import Engine, usable_cores

CONTEXT = 1024
FIRST = 16  # positions of the first tile
Array = npt.NDArray[Any]
Round = Callable[[Array], Array]  # heads [rows, kv_heads, head_dim]
RoundLayer = Callable[[int, Array], Array]


@dataclass(frozen=True)
class RoundingLayer(LayerCache):
    """A layer of a cache that rounds what enters it, or shows it to `see`."""

    index: int
    head_dim: int
    keys: RoundLayer | None = None
    values: RoundLayer | None = None
    see: Callable[[int, str, Array], None] | None = None

    def store(self, program: Program, k: Array, v: Array) -> None:
        def work(rows: int) -> None:
            for part, rounding in (k, self.keys), (v, self.values):
                heads = part[:rows].reshape(rows, -1, self.head_dim)
                if rounding is not None:
                    heads[:] = rounding(self.index, heads.copy())
            if self.see is not None:
                self.see(self.index, "k", k[:rows].copy())

        program.between(work)
        super().store(program, k, v)

    def attend(self, program: Program, q: Array, *rest: Any) -> None:
        see = self.see
        if see is not None:
            program.between(lambda rows: see(self.index, "q", q[:rows].copy()))
        super().attend(program, q, *rest)


def rotated(heads: Array) -> Array:
    """Orthonormal Hadamard transform of the last axis, a power of two; its own inverse."""
    size = heads.shape[-1]
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return heads @ (matrix / np.float32(np.sqrt(size)))


def uniform(bits: int) -> Round:
    """Odd levels, the scale fitted once, as the kernel does with 4 bits."""
    most = 2**bits - 1

    def rounded(heads: Array) -> Array:
        def codes(scale: Array) -> Array:
            return 2 * np.clip(np.rint(heads / scale / 2 + most / 2), 0, most) - most

        first = codes(np.abs(heads).max(-1, keepdims=True) / (most * 15.8 / 15) + 1e-12)
        scale = (heads * first).sum(-1, keepdims=True) / (first**2).sum(-1, keepdims=True)
        scale = np.maximum(scale, 1e-7).astype(np.float16).astype(np.float32)
        return scale * codes(scale)

    return rounded


def best_levels(bits: int) -> Array:
    """Lloyd's levels of a Gaussian of variance one."""
    x = np.sort(np.random.default_rng(0).standard_normal(1 << 18))
    levels = np.quantile(x, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(300):
        parts = np.split(x, np.searchsorted(x, (levels[1:] + levels[:-1]) / 2))
        levels = np.array([part.mean() for part in parts])
    return ((levels - levels[::-1]) / 2).astype(np.float32)


def lloyd(bits: int) -> Round:
    """Those levels, the scale fitted twice."""
    levels = best_levels(bits)
    middle = (levels[1:] + levels[:-1]) / 2

    def rounded(heads: Array) -> Array:
        scale = np.sqrt((heads**2).mean(-1, keepdims=True)) + 1e-12
        for _ in range(2):
            near = levels[np.searchsorted(middle, heads / scale)]
            scale = (heads * near).sum(-1, keepdims=True) / (near**2).sum(-1, keepdims=True)
            scale = np.maximum(scale, 1e-7).astype(np.float16).astype(np.float32)
        return levels[np.searchsorted(middle, heads / scale)] * scale

    return rounded


def in_groups(rounding: Round, size: int) -> Round:
    return lambda heads: rounding(heads.reshape(*heads.shape[:-1], -1, size)).reshape(heads.shape)


def in_rotation(rounding: Round) -> RoundLayer:
    return lambda _, heads: rotated(rounding(rotated(heads)))


def less_first_mean(rounding: RoundLayer) -> RoundLayer:
    """The mean key of the first tile taken off, which stays exact: softmax does not see a common
    offset, and what a query gives it is the mean of its scores there."""

    def rounded(index: int, heads: Array) -> Array:
        mean = heads[:FIRST].mean(0)
        out = rounding(index, heads - mean) + mean
        out[:FIRST] = heads[:FIRST]
        return out

    return rounded


@dataclass(frozen=True)
class Seen:
    """Of one layer: mean key [kv_heads, head_dim], and the second moments of queries and of keys
    less their mean [kv_heads, head_dim, head_dim]."""

    mean: Array
    queries: Array
    keys: Array


def look(network: Network, ids: list[int]) -> list[Seen]:
    """A pass over calibration tokens."""
    spec, rows = network.spec, {}

    def see(index: int, name: str, found: Array) -> None:
        rows[index, name] = found.reshape(len(ids), spec.kv_heads, -1, spec.head_dim)

    engine_with(network, {"see": see}).hidden(ids, 0, 0)
    found = []
    for index in range(spec.layers):
        keys, queries = rows[index, "k"][1:, :, 0], rows[index, "q"]
        mean = keys.mean(0)
        moments = np.einsum("tgsc,tgsd->gcd", queries, queries, optimize=True)
        centred = np.einsum("tgc,tgd->gcd", keys - mean, keys - mean, optimize=True)
        found.append(Seen(mean, moments, centred))
    return found


def calibrated(seen: list[Seen], rounding: Round) -> RoundLayer:
    """Keys in the basis where the error that queries see is least for an error alike in every
    direction, less their mean; the first tile stays exact."""
    maps = [[_basis(q, k) for q, k in zip(s.queries, s.keys, strict=True)] for s in seen]

    def rounded(index: int, heads: Array) -> Array:
        mean, out = seen[index].mean, heads.copy()
        for head, (into, back) in enumerate(maps[index]):
            x = rotated((heads[:, head] - mean[head]) @ into)
            out[:, head] = rotated(rounding(x)) @ back + mean[head]
        out[:FIRST] = heads[:FIRST]
        return out

    return rounded


def _basis(queries: Array, keys: Array) -> tuple[Array, Array]:
    """Into the basis, and back."""
    power, axes = np.linalg.eigh(queries.astype(np.float64))
    root = np.sqrt(np.maximum(power, 1e-4 * power.max()))
    white, unwhite = axes * root @ axes.T, axes / root @ axes.T
    spread, turn = np.linalg.eigh(white @ keys @ white)
    shrink = np.maximum(spread, 1e-6 * spread.max()) ** -0.25
    into, back = white @ turn * shrink, (unwhite @ turn / shrink).T
    return into.astype(np.float32), back.astype(np.float32)


def engine_with(network: Network, options: dict[str, Any]) -> Engine:
    """An engine whose cache has RoundingLayers with these options."""
    engine, dim = Engine(network, 1, CONTEXT, CONTEXT), network.spec.head_dim
    layers = enumerate(engine.cache.layers)
    engine.cache.layers = [RoundingLayer(x.native, i, dim, **options) for i, x in layers]
    return engine


def candidates(seen: list[Seen]) -> dict[str, tuple[RoundLayer | None, RoundLayer | None]]:
    """What is measured: roundings of keys and of values."""
    plain = {bits: in_rotation(uniform(bits)) for bits in (6, 5, 4)}
    groups = in_rotation(in_groups(uniform(4), 32))
    return {
        **{f"keys {bits} bits": (plain[bits], None) for bits in plain},
        "keys 4 bits, Lloyd's levels": (in_rotation(lloyd(4)), None),
        "keys 4 bits, groups of 32": (groups, None),
        "keys 5 bits, less the mean of the first tile": (less_first_mean(plain[5]), None),
        "keys 4 bits, less the mean of the first tile": (less_first_mean(plain[4]), None),
        "keys 4 bits, calibrated basis": (calibrated(seen, uniform(4)), None),
        "values 4 bits": (None, plain[4]),
        "values 4 bits, Lloyd's levels": (None, in_rotation(lloyd(4))),
        "values 4 bits, groups of 32": (None, groups),
    }


def log_chances(engine: Engine, ids: list[int]) -> Iterator[Array]:
    """Log probabilities [rows, vocab] after each token, some rows at a time."""
    x = engine.hidden(ids, 0, 0)
    for start in range(0, len(x), 64):
        logits = engine.logits(x[start : start + 64])
        logits -= logits.max(1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(1, keepdims=True))


def compared(exact: list[Array], engine: Engine, ids: list[int]) -> dict[str, float]:
    """KL against the log probabilities `exact`, and how often the likeliest token is the same."""
    kl, same = [], []
    for expected, found in zip(exact, log_chances(engine, ids), strict=True):
        kl.append((np.exp(expected) * (expected - found)).sum(1, dtype=np.float64))
        same.append(expected.argmax(1) == found.argmax(1))
    each = np.concatenate(kl)
    return {
        "kl_mean": float(each.mean()),
        "kl_median": float(np.median(each)),
        "top1_agreement": float(np.concatenate(same).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("text", type=Path)
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    rows = []
    with open_original(str(options.model)) as (network, text):
        words = options.text.read_text("utf-8")
        ids = text.encode(words, special=False)[: 2 * CONTEXT]
        seen, ids = look(network, ids[:CONTEXT]), ids[CONTEXT:]
        exact = list(log_chances(engine_with(network, {}), ids))
        for name, (keys, values) in candidates(seen).items():
            rounding = engine_with(network, {"keys": keys, "values": values})
            found = compared(exact, rounding, ids)
            rows.append({"rounding": name, **found})
            print(rows[-1], flush=True)
    result = {
        "command": "python benches/kv_study.py MODEL TEXT",
        "model": f"{options.model.absolute().name}, original",
        "text": options.text.name,
        "tokens": CONTEXT,
        "rows": rows,
        "machine": machine_facts(),
    }
    write_result("kv_study", result)


if __name__ == "__main__":
    main()
