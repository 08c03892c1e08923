"""Attention of one layer of SmolLM2-135M on one core: microseconds a call, by context and bits.

    python benches/attention_speed.py [--before NATIVE.so]

One token (decoding) and 64 rows (prefill) at the end of a full context; kinds take turns, medians
of the processor time of the calls. Beside each, the time to read its keys and values at the speed
of the memory, measured in the same run. --before: the native module of a build from before
decision 0008, which had 16 bits alone, timed in turn. Writes benches/results/attention_speed.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.engine.kv import KV_BITS
from loop_singular_bit.measure.speed import memory_rate

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
CONTEXTS = (64, 512, 2048, 4096)
ROWS = (1, 64)
ROUNDS = 21
CALL_POSITIONS = 1 << 17  # positions times rows of one timing

Call = Callable[[], object]


def calls_now(context: int, k: Any, v: Any, q: Any, places: Any) -> dict[str, tuple[Call, Call]]:
    """attend of q, and store of one row, by kind."""
    slot, position = places
    out, end = np.empty_like(q), len(q)
    found: dict[str, tuple[Call, Call]] = {}
    for name, bits in KV_BITS.items():
        along, across = context // 16, HEAD_DIM // 16
        keys = np.zeros((1, KV_HEADS, along, across, 32 * bits[0]), np.uint8)
        values = np.zeros((1, KV_HEADS, across, along, 32 * bits[1]), np.uint8)
        scales = np.zeros((2, 1, KV_HEADS, context), np.uint16)
        given = (None if each == 16 else part for each, part in zip(bits, scales, strict=True))
        cache = _native.LayerCache(keys, values, *given)
        _native.store_kv(cache, k, v, slot, position)
        rows = slot[-end:], position[-end:]

        def attend(cache: Any = cache, rows: Any = rows) -> None:
            _native.attend(cache, q, HEADS, *rows, 0, out)

        def store(cache: Any = cache) -> None:
            _native.store_kv(cache, k[-1:], v[-1:], slot[-1:], position[-1:])

        found[f"{name} bits"] = attend, store
    return found


def calls_before(old: Any, context: int, k: Any, v: Any, q: Any, places: Any) -> tuple[Call, Call]:
    """The same of the kernel before."""
    slot, position = places
    out, end = np.empty_like(q), len(q)
    keys = np.zeros((1, KV_HEADS, context // 16, HEAD_DIM, 16), np.uint16)
    values = np.zeros((1, KV_HEADS, context, HEAD_DIM), np.uint16)
    old.store_kv(keys, values, k, v, slot, position)
    rows = slot[-end:], position[-end:]
    return (
        lambda: old.attend(keys, values, q, HEADS, *rows, 0, out),
        lambda: old.store_kv(keys, values, k[-1:], v[-1:], slot[-1:], position[-1:]),
    )


def microseconds(call: Call, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count * 1e6


def measure(old: Any, context: int, rows: int, bytes_per_second: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(context)
    k, v = rng.standard_normal((2, context, KV_HEADS * HEAD_DIM), np.float32)
    q = rng.standard_normal((rows, HEADS * HEAD_DIM), np.float32)
    places = np.zeros(context, np.int32), np.arange(context, dtype=np.int32)
    calls = calls_now(context, k, v, q, places)
    if old is not None:
        calls["before"] = calls_before(old, context, k, v, q, places)
    times: dict[str, list[list[float]]] = {kind: [[], []] for kind in calls}
    for _ in range(ROUNDS):
        for kind, (attend, store) in calls.items():
            times[kind][0].append(microseconds(attend, max(1, CALL_POSITIONS // context // rows)))
            times[kind][1].append(microseconds(store, 200))
    found = []
    for kind, (attends, stores) in times.items():
        pair = KV_BITS["16" if kind == "before" else kind.split()[0]]
        head_bytes = sum(HEAD_DIM * bits // 8 + (2 if bits < 16 else 0) for bits in pair)
        nbytes = context * KV_HEADS * head_bytes
        found.append({
            "kind": kind, "context": context, "rows": rows,
            "attend_us": statistics.median(attends), "store_one_us": statistics.median(stores),
            "bytes": nbytes, "floor_us": nbytes / bytes_per_second * 1e6,
        })  # fmt: skip
    return found


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", metavar="NATIVE.so")
    options = parser.parse_args()
    old = None if options.before is None else load(options.before)
    for module in (_native, old):
        if module is not None:
            module.set_threads(1)
    rate = memory_rate()
    rows = [row for c in CONTEXTS for r in ROWS if r <= c for row in measure(old, c, r, rate)]
    for row in rows:
        print(
            f"{row['kind']:8} context {row['context']:5} rows {row['rows']:3}: "
            f"attend {row['attend_us']:8.1f} us (floor {row['floor_us']:6.1f}), "
            f"store {row['store_one_us']:.2f} us"
        )
    values = {
        "command": "python benches/attention_speed.py --before NATIVE.so",
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "threads": 1,
        "memory_bytes_per_second": rate,
        "rows": rows,
        "machine": machine_facts(),
    }
    write_result("attention_speed", values)


if __name__ == "__main__":
    main()
