"""The trained hashes and levels of the planes: constants of the format.

Made by scripts/train_tables.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.errors import UsageError

WINDOW_MIN, WINDOW_MAX = 4, 10
WINDOW_DEFAULT = 8  # the longest that decodes at the speed of the shortest (docs/decisions/0016)
WINDOWS = range(WINDOW_MIN, WINDOW_MAX + 1)
PLANES_MAX = 8


@dataclass(frozen=True)
class TableSet:
    """What turns windows of one size into weights.

    hashes  uint8 [2, 16]: nibbles that the two older nibbles of a window xor into the newest
    levels  int8 [8, 16]: value of each plane at each index so found
    sigma   standard deviation, in integer units, of the Gaussian they were trained on
    """

    window: int
    hashes: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.int8]
    sigma: float


@lru_cache
def _stored() -> dict[str, Any]:
    text = files("loop_singular_bit.codec").joinpath("tables.json").read_text("ascii")
    return dict(json.loads(text))


@lru_cache
def table_set(window: int) -> TableSet:
    """Tables of window size L = `window` (4..10)."""
    if window not in WINDOWS:
        raise UsageError(f"window {window}: must be {WINDOW_MIN}..{WINDOW_MAX}")
    stored = _stored()[str(window)]
    hashes = np.array(stored["hashes"], np.uint8)
    return TableSet(window, hashes, np.array(stored["levels"], np.int8), stored["sigma"])


@lru_cache
def native_tables(window: int, planes: int) -> _native.PlaneTables:
    """The first `planes` planes, prepared for the kernels."""
    if not 1 <= planes <= PLANES_MAX:
        raise UsageError(f"planes {planes}: must be 1..{PLANES_MAX}")
    found = table_set(window)
    return _native.PlaneTables(window, found.hashes, found.levels[:planes].copy())
