"""What planes leave of a unit Gaussian: mean squared error by window L and number of planes.

    python benches/table_distortion.py

Integer tables through the real encoder, no feedback, one scale for each row refitted; beside it
looped sign planes (mean magnitude) and the bound 4^-K.
Writes benches/results/table_distortion.json.
"""

from __future__ import annotations

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.tables import WINDOWS

SHAPE = (256, 4096)


def sign_planes(x: np.ndarray, planes: int) -> float:
    """Mean squared error after looping sign() with the mean magnitude of each row."""
    left = x.astype(np.float64)
    for _ in range(planes):
        left = left - np.sign(left) * np.abs(left).mean(axis=1, keepdims=True)
    return float((left**2).mean())


def main() -> None:
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    identity = InputTransform(np.ones(SHAPE[1], np.float32), 0)
    rows = {}
    for window in WINDOWS:
        errors = []
        for planes in range(1, 7):
            _, report = encode(x, identity, PlaneOptions(planes, window))
            errors.append(round(report.relative_error, 5))
        rows[f"L={window}"] = errors
        print(f"L={window}", errors)
    rows["sign planes"] = [round(sign_planes(x, planes), 5) for planes in range(1, 7)]
    rows["bound"] = [round(4.0**-planes, 5) for planes in range(1, 7)]
    print("sign planes", rows["sign planes"])
    write_result(
        "table_distortion",
        {
            "command": "python benches/table_distortion.py",
            "weights": SHAPE[0] * SHAPE[1],
            "mean_squared_error_by_planes": rows,
            "machine": machine_facts(),
        },
    )


if __name__ == "__main__":
    main()
