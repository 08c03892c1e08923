"""Train the hashes and levels of every window size L and write them as the package's constants.

    python scripts/train_tables.py [--windows 4 5 ... 10] [--climbs 8] [--starts 40] [--changes 600]

A plane's value is one of 16 levels: the newest nibble of the window, xor a hash of each older
nibble. Hashes are found on the first plane by climbs from the best of random starts, by single
changes that are kept when they lower the mean squared error of a unit Gaussian after a few rounds
of (Viterbi, centroid); every plane shares the best climb's. Levels of plane j are trained on what
planes 1..j-1 leave, then once more as integers: the first four planes share one unit, chosen so
that their largest levels add up to at most 127; planes 5..8 use an eighth of it, their tails cut so
that theirs do too.
Prints the mean squared error after each plane.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec import reference

Floats = npt.NDArray[np.float32]
Levels = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint8]
OUT = Path(__file__).parent.parent / "src/loop_singular_bit/codec/tables.json"
TILE = 256
LEVELS = 16
FINE_LIMITS = (64, 32, 19, 12)  # largest magnitudes of planes 5..8, which share one int8 weight


def encode(
    x: Floats, window: int, hashes: Hashes, levels: Levels
) -> tuple[npt.NDArray[np.int16], Floats]:
    """Best path through one plane: level index and value of each sample. x is [256, cols]."""
    fine = np.abs(levels).max() / 127  # the native encoder takes int8 levels
    entries = np.rint(levels / fine).astype(np.int8)
    stream = np.zeros(_native.plane_bytes(*x.shape), np.uint8)
    decoded = np.zeros(x.shape, np.int16)
    tables = _native.PlaneTables(window, hashes, entries[None])
    _native.encode((x / fine).astype(np.float32), None, tables, TILE, 64, [stream], decoded)
    names = _native.PlaneTables(window, hashes, np.arange(LEVELS, dtype=np.int8)[None])
    index = np.zeros(x.shape, np.int16)
    _native.planes_decode([stream], *x.shape, TILE, names, 0, index)
    return index, levels[index].astype(np.float32)


def lloyd(
    x: Floats, window: int, hashes: Hashes, levels: Levels, rounds: int
) -> tuple[Levels, float]:
    """Alternate best paths and centroids; the levels and the last path's mean squared error."""
    error = np.inf
    for _ in range(rounds):
        index, value = encode(x, window, hashes, levels)
        error = float(((x - value) ** 2).mean())
        count = np.bincount(index.ravel(), minlength=LEVELS)
        total = np.bincount(index.ravel(), weights=x.ravel(), minlength=LEVELS)
        levels = np.where(count > 0, total / np.maximum(count, 1), levels)
    return levels, error


@dataclass
class Code:
    """Hashes by their free entries (as many as the window has bits of each nibble), and levels."""

    window: int
    free: list[npt.NDArray[np.uint8]]
    levels: Levels
    error: float = np.inf

    @property
    def hashes(self) -> Hashes:
        """uint8 [2, 16]: for each value of the nibble; bits outside the window are lowest."""
        spread = [np.repeat(entries, LEVELS // len(entries)) for entries in self.free]
        return np.stack(spread)

    def improved(self, x: Floats, rounds: int) -> Code:
        levels, error = lloyd(x, self.window, self.hashes, self.levels, rounds)
        return Code(self.window, self.free, levels, error)


def random_code(window: int, rng: np.random.Generator) -> Code:
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS)])
    bits = (min(window - 4, 4), max(window - 8, 0))
    free = [rng.integers(0, LEVELS if b else 1, 1 << b).astype(np.uint8) for b in bits]
    return Code(window, free, 0.85 * rng.permutation(quantiles))


def changed(code: Code, rng: np.random.Generator) -> Code:
    """One hash entry drawn anew, or two levels exchanged."""
    free, levels = [entries.copy() for entries in code.free], code.levels.copy()
    choices = [entries for entries in free if len(entries) > 1]
    pick = int(rng.integers(len(choices) + 1))
    if pick < len(choices):
        choices[pick][rng.integers(len(choices[pick]))] = rng.integers(LEVELS)
    else:
        i, j = rng.integers(LEVELS, size=2)
        levels[[i, j]] = levels[[j, i]]
    return Code(code.window, free, levels)


def climb(x: Floats, window: int, seed: int, starts: int, changes: int) -> Code:
    """The best code of the first plane found from one seed."""
    rng = np.random.default_rng([window, seed])
    tried = [random_code(window, rng).improved(x, 4) for _ in range(starts)]
    best = min(tried, key=lambda code: code.error)
    for _ in range(changes):
        found = changed(best, rng).improved(x, 3)
        best = found if found.error < best.error else best
    return best


def train_levels(x: Floats, code: Code, rounds: int) -> list[Levels]:
    """Levels of all eight planes, in standard deviations."""
    left, planes, start = x, [], code.levels
    for _plane in range(8):
        levels, _ = lloyd(left, code.window, code.hashes, start * left.std(), rounds)
        left = left - encode(left, code.window, code.hashes, levels)[1]
        planes.append(levels)
        start = levels / levels.std()
    return planes


def to_integers(
    x: Floats, code: Code, planes: list[Levels], rounds: int
) -> tuple[npt.NDArray[np.int8], float]:
    """Levels int8 [8, 16] retrained on what the integers before them leave, and their sigma."""
    unit = sum(float(np.abs(levels).max()) for levels in planes[:4]) / 125.0
    left, room, found = x, [127, 127], []
    for plane, levels in enumerate(planes):
        step = unit if plane < 4 else unit / reference.GROUP_RATIO
        levels, _ = lloyd(left, code.window, code.hashes, levels, rounds)
        limit = room[0] if plane < 4 else FINE_LIMITS[plane - 4]
        entries = np.clip(np.rint(levels / step), -limit, limit)
        room[plane // 4] -= int(np.abs(entries).max())
        left = left - encode(left, code.window, code.hashes, entries * step)[1]
        print(f"L={code.window} plane {plane + 1}: mse {float((left**2).mean()):.5f}", flush=True)
        found.append(entries)
    return np.array(found).astype(np.int8), 1 / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=list(range(4, 11)))
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--climbs", type=int, default=8)
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--changes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=16)
    options = parser.parse_args()
    _native.set_threads(1)
    cols = options.samples // TILE // 64 * 64
    x = np.random.default_rng(2026).standard_normal((TILE, cols)).astype(np.float32)
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    for window in options.windows:
        part = np.ascontiguousarray(x[:, :256])
        tried = [
            climb(part, window, seed, options.starts, options.changes)
            for seed in range(options.climbs)
        ]
        code = min(tried, key=lambda found: found.improved(x, 4).error)
        planes = train_levels(x, code, options.rounds)
        levels, sigma = to_integers(x, code, planes, options.rounds)
        known[str(window)] = {
            "sigma": round(sigma, 4), "hashes": code.hashes.tolist(), "levels": levels.tolist(),
        }  # fmt: skip
        rows = [f'"{key}": {json.dumps(known[key])}' for key in sorted(known, key=int)]
        OUT.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
