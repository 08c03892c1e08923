"""The trellis kernels in cache on one core: weights a second by planes, window and tokens.

    python benches/kernel_speed.py

Every tier of this machine; one matrix of 1024 x 1024 that stays in the second-level cache, the
fastest of the runs of 0.3 s, and the best of three such rounds, tiers taking turns. Beside it, the
speed of reading memory in the same run. Writes benches/results/kernel_speed.json.
"""

from __future__ import annotations

from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.measure.speed import kernel_rate, memory_rate

ROUNDS = 3
CASES = [(k, 7, 1) for k in (1, 2, 3, 4)] + [(3, 8, 1), (3, 10, 1)]
CASES += [(3, 7, n) for n in (2, 4, 8, 16, 256)]


def main() -> None:
    _native.set_threads(1)
    tiers, before = _native.available_tiers(), _native.active_tier()
    best: dict[tuple[str, int, int, int], float] = {}
    for _ in range(ROUNDS):
        for case in CASES:
            for tier in tiers:
                _native.use_tier(tier)
                key = (tier, *case)
                best[key] = max(best.get(key, 0.0), kernel_rate(*case))
    _native.use_tier(before)
    rows = [
        {"tier": tier, "planes": k, "window": window, "tokens": n, "multiply_adds_per_second": rate}
        for (tier, k, window, n), rate in best.items()
    ]
    for row in rows:
        print(
            f"{row['tier']:10} K={row['planes']} L={row['window']} N={row['tokens']:3}: "
            f"{row['multiply_adds_per_second'] / 1e9:6.1f}e9/s"
        )
    values = {
        "command": "python benches/kernel_speed.py",
        "threads": 1,
        "memory_bytes_per_second": memory_rate(),
        "rows": rows,
        "machine": machine_facts(),
    }
    write_result("kernel_speed", values)


if __name__ == "__main__":
    main()
