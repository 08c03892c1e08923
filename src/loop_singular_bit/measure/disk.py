"""How fast the bytes of an artefact come in, with nothing else to do.

A processor of a virtual machine that idles while it waits for the disk is slow to wake, so a reader
all alone is slower than one beside multiplications. Here a core is kept awake beside the reader.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from threading import Event, Thread

from loop_singular_bit.container import AlignedBuffer, PageFile
from loop_singular_bit.engine.ring import READERS
from loop_singular_bit.engine.stream import SPAN_BYTES

PROBE_SECONDS = 1.0
_SPUN = bytes(1 << 16)  # stays in the caches


@contextmanager
def core_awake() -> Iterator[None]:
    """A core is busy in the meantime."""
    stop = Event()

    def spin() -> None:
        while not stop.is_set():
            zlib.crc32(_SPUN)  # outside the interpreter's lock

    spinner = Thread(target=spin)
    spinner.start()
    try:
        yield
    finally:
        stop.set()
        spinner.join()


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
