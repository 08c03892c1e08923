"""How fast the bytes of an artefact come in, with nothing else to do.

A processor of a virtual machine that idles while it waits for the disk is slow to wake, so a reader
all alone is slower than one beside multiplications. Here a core is kept awake beside the reader by
a process that does nothing but spin.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue

from loop_singular_bit.container import AlignedBuffer, ContainerReader, PageFile, Piece, Span
from loop_singular_bit.engine.ring import READERS
from loop_singular_bit.engine.stream import SPAN_BYTES
from loop_singular_bit.measure.page_cache import evict

PASSES = 3  # the best counts: what lies behind a virtual disk may be slow the first time only
PROBE_SECONDS = 1.0
_SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"  # ends with its parent


@contextmanager
def core_awake() -> Iterator[None]:
    """A core is busy in the meantime."""
    spinner = subprocess.Popen([sys.executable, "-S", "-c", _SPIN, str(os.getpid())])
    try:
        yield
    finally:
        spinner.kill()
        spinner.wait()


def probe_disk(path: Path) -> float:
    """Bytes a second of reading a file past the page cache for PROBE_SECONDS, unverified, as the
    ring reads: READERS threads, SPAN_BYTES at a time, a core awake beside them."""
    file = PageFile(path)
    size = min(SPAN_BYTES, file.size_bytes)
    offsets = cycle(range(0, file.size_bytes - size + 1, SPAN_BYTES))

    def read_until(stop: float) -> int:
        buffer, done = AlignedBuffer(size), 0
        while time.perf_counter() < stop:
            file.read(next(offsets), size, buffer.view)
            done += size
        return done

    try:
        with core_awake(), ThreadPoolExecutor(READERS) as pool:
            before = time.perf_counter()
            done = sum(pool.map(read_until, [before + PROBE_SECONDS] * READERS))
            return done / (time.perf_counter() - before)
    finally:
        file.close()


def disk_rate(path: Path, threads: int) -> float:
    """Bytes a second of reading and verifying all runs of a container past the page cache, in
    spans of whole extents of up to SPAN_BYTES, `threads` at a time, beside a core kept awake: the
    best of PASSES."""
    with ContainerReader.open(path) as reader, ThreadPoolExecutor(threads) as pool, core_awake():
        spans = [span for run in reader.runs for span in _spans(run.pieces)]
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


def _spans(pieces: Sequence[Piece]) -> Iterator[Span]:
    """A run cut into spans."""
    start = 0
    for stop in range(1, len(pieces) + 1):
        if stop == len(pieces) or pieces[stop].end - pieces[start].offset > SPAN_BYTES:
            yield Span(tuple(pieces[start:stop]))
            start = stop
