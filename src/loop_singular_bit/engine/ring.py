"""A ring of buffers, filled from disk ahead of the sweep in the order it will ask.

A sweep reads the whole file, then the next sweep reads it again. For such a cyclic scan a cache
that keeps what was used last never holds what comes next; the best there is is to keep a fixed part
for good (`pinned`) and to let the rest pass through. That part is spread over the file: while spans
in memory are used the disk goes on with those between them, and never waits for a long run of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt

from loop_singular_bit.container.directio import PAGE_BYTES, AlignedBuffer
from loop_singular_bit.container.reader import ContainerReader, Span

U8 = npt.NDArray[np.uint8]
Views = tuple[U8, ...]

SLOTS_MIN = 3  # one in use, one being filled, one waiting
READERS = 2  # reads in flight: a disk with a queue of its own is busy while a block is checked


class Ring:
    """Spans of a container by number: those in `pinned` in memory, the others through `slots`
    buffers as large as the largest of them. Every block is verified when it is read.

    One thread asks; raises ResourceError when the disk fails, and can go on after that.
    """

    def __init__(
        self,
        reader: ContainerReader,
        spans: Sequence[Span],
        slots: int,
        pinned: Collection[int] = (),
    ) -> None:
        if slots < 2 and len(pinned) < len(spans):
            raise ValueError(f"{slots} slots: one is in use while the next is filled")
        self._reader, self._spans = reader, spans
        passing = (span.buffer_bytes for number, span in enumerate(spans) if number not in pinned)
        slot_bytes = max(passing, default=PAGE_BYTES)
        self._free = [AlignedBuffer(slot_bytes) for _ in range(slots)]
        self._pinned = {
            number: reader.read_span(spans[number], AlignedBuffer(spans[number].buffer_bytes))
            for number in sorted(pinned)
        }
        self._coming: Iterator[int] = iter(())
        self._filling: deque[tuple[int, AlignedBuffer, Future[Views]]] = deque()
        self._in_use: AlignedBuffer | None = None
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="lsb-reader")

    def close(self) -> None:
        """Stops reading; waits for reads in flight."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def expect(self, order: Sequence[int]) -> None:
        """The numbers that `take` will be called with next, in this order. What is being read
        already stays if it is what comes first."""
        order = [number for number in order if number not in self._pinned]
        ahead = [number for number, _, _ in self._filling]
        if ahead != order[: len(ahead)]:
            self._forget()
            ahead = []
        self._coming = islice(order, len(ahead), None)
        self._fill()

    def take(self, number: int) -> Views:
        """One view for each piece of a span, valid until the next `take` or `expect`."""
        self._give_back()
        if number in self._pinned:
            return self._pinned[number]
        if not self._filling or self._filling[0][0] != number:
            raise ValueError(f"span {number} was not expected next")
        _, buffer, future = self._filling.popleft()
        self._in_use = buffer
        return future.result()

    def _give_back(self) -> None:
        if self._in_use is not None:
            self._free.append(self._in_use)
            self._in_use = None
            self._fill()

    def _fill(self) -> None:
        while self._free and (number := next(self._coming, None)) is not None:
            buffer = self._free.pop()
            future = self._readers.submit(self._reader.read_span, self._spans[number], buffer)
            self._filling.append((number, buffer, future))

    def _forget(self) -> None:
        """Waits for what is being read and takes its buffers back; what went wrong is forgotten."""
        self._coming = iter(())
        for _, buffer, future in self._filling:
            future.exception()
            self._free.append(buffer)
        self._filling.clear()
