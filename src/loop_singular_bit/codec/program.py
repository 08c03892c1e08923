"""A native program that Python may interrupt, where bytes have to be waited for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native

Places = npt.NDArray[np.int32]


class Program(_native.Program):
    """Operations on buffers [rows_max, columns], recorded once and run for any number of rows."""

    def __init__(self, rows_max: int) -> None:
        super().__init__(rows_max)
        self._between: list[tuple[int, Callable[[int], None]]] = []

    def between(self, work: Callable[[int], None]) -> None:
        """Records that `work` is called, with the number of rows, between two operations."""
        self._between.append((self.mark(), work))

    def run_steps(
        self, slots: Places, positions: Places, begin: int = 0, end: int | None = None
    ) -> None:
        """Steps [begin, end) on the first len(slots) rows, whose places in the cache are given."""
        last = self.steps
        end = last if end is None else end
        for step, work in self._between:
            if begin <= step < end or step == end == last:
                self.run(slots, positions, begin, step)
                work(len(slots))
                begin = step
        self.run(slots, positions, begin, end)
