"""How fast an artefact's own reader brings its bytes in, with nothing else to do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.measure.page_cache import evict

READ_BYTES = 1 << 30  # enough to be past what a disk's own cache hides


def disk_rate(path: Path, threads: int, most_bytes: int = READ_BYTES) -> float:
    """Bytes a second of reading and verifying the runs of a container, extent by extent, from a
    cold page cache with `threads` threads, up to about `most_bytes`."""
    with ContainerReader.open(path) as reader, ThreadPoolExecutor(threads) as pool:
        evict(reader.paths)
        wanted, total = [], 0
        for piece in (piece for run in reader.runs for piece in run.pieces):
            if total < most_bytes:
                wanted.append((piece.record, piece.extent.name))
                total += piece.extent.size_bytes

        def read(name: tuple[str, str]) -> int:
            return len(reader.read(*name))

        before = time.perf_counter()
        done = sum(pool.map(read, wanted))
        return done / (time.perf_counter() - before)
