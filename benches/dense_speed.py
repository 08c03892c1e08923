"""Float32 products with many tokens beside numpy's BLAS: multiply-adds a second, and their ratio.

    OPENBLAS_NUM_THREADS=1 python benches/dense_speed.py

`dense_matmul` (half floats) by shape and tokens and `gram` by width, on as many threads as the BLAS
has. Both take turns in one process; of each the fastest run within two seconds, since what disturbs
a run only ever makes it slower. The BLAS has any order of additions; these kernels
keep one. Writes benches/results/dense_speed.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.engine.runtime import usable_cores

SECONDS = 2.0
SHAPES = [(8960, 1536), (1536, 8960), (1536, 1536), (576, 576), (1536, 576), (49152, 576)]
TOKENS = (1024, 64, 4, 1)
WIDTHS = (8960, 1536, 576)  # of gram
HALF = 1


def rates(
    multiply_adds: int, ours: Callable[[], object], blas: Callable[[], object]
) -> dict[str, float]:
    """Multiply-adds a second of both."""
    best = [float("inf")] * 2
    end = time.perf_counter() + SECONDS
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for i, call in enumerate((ours, blas)):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    here, there = (multiply_adds / seconds for seconds in best)
    return {"multiply_adds_per_second": here, "blas": there, "ratio": here / there}


def dense_row(rng: np.random.Generator, rows: int, cols: int, tokens: int) -> dict[str, Any]:
    w = rng.standard_normal((rows, cols), np.float32)
    half = w.astype(np.float16).view(np.uint16)
    x, out = rng.standard_normal((tokens, cols), np.float32), np.empty((tokens, rows), np.float32)
    rate = rates(
        rows * cols * tokens,
        lambda: _native.dense_matmul(HALF, half, None, x, out),
        lambda: np.matmul(x, w.T, out=out),
    )
    return {"kernel": "dense_matmul", "rows": rows, "cols": cols, "tokens": tokens, **rate}


def gram_row(rng: np.random.Generator, cols: int) -> dict[str, Any]:
    tokens = TOKENS[0]
    x = rng.standard_normal((tokens, cols), np.float32)
    h = np.zeros((cols, cols), np.float32)
    rate = rates(  # numpy, too, computes half of the matrix and copies the other half
        tokens * cols * (cols + 1) // 2, lambda: _native.gram(x, h), lambda: x.T @ x
    )
    return {"kernel": "gram", "rows": cols, "cols": cols, "tokens": tokens, **rate}


def main() -> None:
    threads = int(os.environ.get("OPENBLAS_NUM_THREADS", usable_cores()))
    _native.set_threads(threads)
    rng = np.random.default_rng(0)
    rows = [dense_row(rng, *shape, tokens) for shape in SHAPES for tokens in TOKENS]
    rows += [gram_row(rng, cols) for cols in WIDTHS]
    for row in rows:
        print(
            f"{row['kernel']:12} {row['rows']:5} x {row['cols']:4}, {row['tokens']:4} tokens:"
            f" {row['multiply_adds_per_second'] / 1e9:5.1f}e9/s, {row['ratio']:.2f} of BLAS"
        )
    values = {
        "command": "python benches/dense_speed.py",
        "threads": threads,
        "rows": rows,
        "machine": machine_facts(),
    }
    write_result("dense_speed", values)


if __name__ == "__main__":
    main()
