"""How fast an artefact's own reader brings its bytes in, with nothing else to do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from loop_singular_bit.container import AlignedBuffer, ContainerReader, Piece, Span
from loop_singular_bit.measure.page_cache import evict

PASSES = 3  # the best counts: what lies behind a virtual disk may be slow the first time only
REQUEST_BYTES = 4 << 20  # of whole extents read in one go, where single ones are not larger


def disk_rate(path: Path, threads: int) -> float:
    """Bytes a second of reading and verifying all runs of a container past the page cache, in
    requests of whole extents of up to REQUEST_BYTES, `threads` at a time: the best of PASSES."""
    with ContainerReader.open(path) as reader, ThreadPoolExecutor(threads) as pool:
        spans = [span for run in reader.runs for span in _requests(run.pieces)]
        total = sum(span.end - span.offset for span in spans)
        buffers: SimpleQueue[AlignedBuffer] = SimpleQueue()
        for _ in range(threads):
            buffers.put(AlignedBuffer(max(span.buffer_bytes for span in spans)))

        def read(span: Span) -> None:
            buffer = buffers.get()
            reader.read_span(span, buffer)
            buffers.put(buffer)

        best = 0.0
        for _ in range(PASSES):
            evict(reader.paths)
            before = time.perf_counter()
            list(pool.map(read, spans))
            best = max(best, total / (time.perf_counter() - before))
        return best


def _requests(pieces: Sequence[Piece]) -> Iterator[Span]:
    """A run cut into spans."""
    start = 0
    for stop in range(1, len(pieces) + 1):
        if stop == len(pieces) or pieces[stop].end - pieces[start].offset > REQUEST_BYTES:
            yield Span(tuple(pieces[start:stop]))
            start = stop
