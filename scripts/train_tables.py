"""Train the plane tables of every window size L and write them as the package's constants.

    python scripts/train_tables.py [--windows 4 5 6 7 8 9 10] [--samples 400000] [--rounds 24]

Plane j is trained on what planes 1..j-1 leave of a unit Gaussian: start from shuffled Gaussian
quantiles (several seeds, the best after a few rounds goes on), then rounds of (Viterbi, centroid).
Entries are int8; the first four planes share one unit, chosen so that their largest values add up
to 127. Planes 5..8 use an eighth of it, and their tails are cut so that theirs add up to 127 too.
Prints the mean squared error after each plane, before the cut.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec import reference

Floats = npt.NDArray[np.float32]
OUT = Path(__file__).parent.parent / "src/loop_singular_bit/codec/tables.npz"
TILE = 256
FINE_LIMITS = (64, 32, 19, 12)  # largest magnitudes of planes 5..8, which share one int8 weight


def encode(x: Floats, table: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Best path through one plane: table index and value of each sample. x is [256, cols]."""
    fine = np.abs(table).max() / 127  # the native encoder takes int8 entries
    entries = np.rint(table / fine).astype(np.int8)
    geometry = (x.shape[0], x.shape[1], TILE)
    stream = np.zeros(_native.stream_bytes(*geometry), np.uint8)
    decoded = np.zeros(x.shape, np.int16)
    tables = _native.PlaneTables(entries[None])
    _native.encode((x / fine).astype(np.float32), None, tables, TILE, 64, [stream], decoded)
    order = reference.stream_order(*x.shape)
    index = reference.unpack_windows(stream, tables.window)
    by_weight = np.empty(x.size, np.int64)
    by_weight[order] = index
    return by_weight.reshape(x.shape), decoded * np.float32(fine)


def lloyd(x: Floats, table: Floats, rounds: int) -> tuple[Floats, float]:
    """Alternate best paths and centroids; returns the table and its mean squared error."""
    error = np.inf
    for _ in range(rounds):
        index, value = encode(x, table)
        error = float(((x - value) ** 2).mean())
        count = np.bincount(index.ravel(), minlength=len(table))
        total = np.bincount(index.ravel(), weights=x.ravel(), minlength=len(table))
        table = np.where(count > 0, total / np.maximum(count, 1), table).astype(np.float32)
    return table, error


def train_plane(x: Floats, window: int, rounds: int, seeds: int) -> Floats:
    """Table [2^window] of one plane for the residual x."""
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / 2**window) for i in range(2**window)])
    part = x[:, : x.shape[1] // 4 // 4 * 4]
    starts = []
    for seed in range(seeds):
        rng = np.random.default_rng([window, seed])
        start = (rng.permutation(quantiles) * x.std() * 0.85).astype(np.float32)
        starts.append(lloyd(part, start, max(4, rounds // 4)))
    best = min(starts, key=lambda found: found[1])[0]
    return lloyd(x, best, rounds)[0]


def train_window(
    window: int, cols: int, rounds: int, seeds: int
) -> tuple[npt.NDArray[np.int8], np.float32]:
    """All eight tables of one window as int8, and the standard deviation they were made for."""
    x = np.random.default_rng(2026).standard_normal((TILE, cols)).astype(np.float32)
    left, tables = x, []
    for _plane in range(8):
        table = train_plane(left, window, rounds, seeds)
        left = left - encode(left, table)[1]
        tables.append(table)
        print(f"L={window} plane {len(tables)}: mse {float((left**2).mean()):.5f}", flush=True)
    unit = sum(float(np.abs(t).max()) for t in tables[:4]) / 126.0
    units = np.array([unit] * 4 + [unit / reference.GROUP_RATIO] * 4)
    entries = np.rint(np.array(tables) / units[:, None])
    limits = np.array(FINE_LIMITS)[:, None]
    entries[4:] = np.clip(entries[4:], -limits, limits)
    return entries.astype(np.int8), np.float32(1 / unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 5, 6, 7, 8, 9, 10])
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    _native.set_threads(1)
    cols = options.samples // TILE // 64 * 64
    known = dict(np.load(OUT)) if OUT.exists() else {}
    for window in options.windows:
        tables, sigma = train_window(window, cols, options.rounds, options.seeds)
        known[f"L{window}"], known[f"sigma{window}"] = tables, sigma
        np.savez(OUT, **known)


if __name__ == "__main__":
    main()
