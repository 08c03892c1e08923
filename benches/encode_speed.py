"""Encoding throughput: 3 planes, L=7, feedback every 4 columns, weights a second and core.

    python benches/encode_speed.py [--rows 4096] [--cols 4096]

The native encoder alone, then the whole codec (rotation, factor of the Hessian, encoder, refit), on
a random matrix. Processor time of all threads, median of 5, so that other work on the machine does
not count; the library that factors the Hessian is held to one thread, whose waiting would.
Writes benches/results/encode_speed.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.tables import native_tables, table_set
from loop_singular_bit.codec.tiling import TILE_ROWS
from loop_singular_bit.engine.runtime import usable_cores

PLANES = 3


def median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--cols", type=int, default=2048)
    options = parser.parse_args()
    rows, cols = options.rows, options.cols
    rng = np.random.default_rng(0)
    W = rng.standard_normal((rows, cols), np.float32)
    x = rng.standard_normal((4 * cols, cols), np.float32)
    transform = InputTransform(np.ones(cols, np.float32), 1)
    H = damped(transform.hessian((x.T @ x) / len(x)), 0.01)
    panels = feedback_panels(H, 4)
    extents = [np.zeros(PLANES * _native.plane_bytes(rows, cols), np.uint8)]
    decoded = np.empty((rows, cols), np.int16)
    target, tables = W * table_set(7).sigma, native_tables(7, PLANES)
    found = {}
    for threads in sorted({1, usable_cores()}):
        _native.set_threads(threads)
        native = median_seconds(
            lambda: _native.encode(target, panels, tables, TILE_ROWS, 4, extents, decoded)
        )
        whole = median_seconds(
            lambda: encode(W, transform, PlaneOptions(PLANES), H=H, panels=feedback_panels(H, 4))
        )
        found[str(threads)] = {
            "encoder_weights_per_second_per_core": rows * cols / native,
            "codec_weights_per_second_per_core": rows * cols / whole,
        }
        print(threads, "threads:", {k: f"{v:.3g}" for k, v in found[str(threads)].items()})
    write_result(
        "encode_speed",
        {
            "command": "python benches/encode_speed.py",
            "rows": rows, "cols": cols, "planes": PLANES, "window": 7, "block": 4,
            "by_threads": found, "machine": machine_facts(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
