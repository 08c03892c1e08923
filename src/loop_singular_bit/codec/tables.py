"""The trained plane tables: constants of the format (made by scripts/train_tables.py)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.errors import UsageError

WINDOWS = range(4, 11)
PLANES_MAX = 8


@dataclass(frozen=True)
class TableSet:
    """Tables of one window size.

    entries  int8 [8, 2^L]
    sigma    standard deviation, in integer units, of the Gaussian they were trained on
    """

    entries: npt.NDArray[np.int8]
    sigma: float


@lru_cache
def table_set(window: int) -> TableSet:
    """Tables of window size L = `window` (4..10)."""
    if window not in WINDOWS:
        raise UsageError(f"window {window}: must be 4..10")
    with files("loop_singular_bit.codec").joinpath("tables.npz").open("rb") as file:
        stored = np.load(file)
        return TableSet(stored[f"L{window}"], float(stored[f"sigma{window}"]))


@lru_cache
def native_tables(window: int, planes: int) -> _native.PlaneTables:
    """The first `planes` tables, prepared for the kernels."""
    if not 1 <= planes <= PLANES_MAX:
        raise UsageError(f"planes {planes}: must be 1..{PLANES_MAX}")
    return _native.PlaneTables(np.ascontiguousarray(table_set(window).entries[:planes]))
