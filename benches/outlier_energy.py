"""What the largest weights of a model hold of its energy, before and after channel scales.

    python benches/outlier_energy.py MODEL --name outlier_energy_qwen

For each linear matrix: kurtosis and the energy of its largest weights as stored, and of what the
planes see, the matrix divided by the scales of its inputs and of its rows. Beside it what as many
bytes would do as one more plane does: a share of outliers is worth its bytes where it holds more.
Writes benches/results/NAME.json.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine_facts, write_result

from loop_singular_bit.codec.codecs import Planes
from loop_singular_bit.codec.planes import PlaneOptions, distortion
from loop_singular_bit.codec.tables import WINDOW_DEFAULT
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.sensitivity import scaled_matrices
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.compress.spend import OUTLIER_SHARES

Floats = npt.NDArray[np.float32]


def kurtosis(W: Floats) -> float:
    squares = W.astype(np.float64) ** 2
    return float((squares**2).mean() / squares.mean() ** 2)


def held(W: Floats) -> list[float]:
    """Shares of the energy, of its own largest weights, for each of OUTLIER_SHARES."""
    squares = np.sort((W.astype(np.float64) ** 2).ravel())[::-1]
    total = squares.sum()
    return [float(squares[: round(share * W.size)].sum() / total) for share in OUTLIER_SHARES]


def break_even(rows: int, cols: int) -> list[float]:
    """What as many bytes take off the error when they go to planes instead: each share's."""
    gain = math.log(distortion(WINDOW_DEFAULT, 3) / distortion(WINDOW_DEFAULT, 4))
    found = []
    for share in OUTLIER_SHARES:
        plain, kept = (
            sum(Planes(PlaneOptions(1), each).extent_bytes(rows, cols, "f16").values())
            for each in (0.0, share)
        )
        nbytes = kept - plain
        found.append(1 - math.exp(-gain * 8 * nbytes / (rows * cols)))
    return found


def matrix_row(name: str, W: Floats, scale: Floats) -> dict[str, Any]:
    scaled = W / scale
    scaled /= np.sqrt((scaled**2).mean(axis=1, keepdims=True))
    return {
        "name": name, "kurtosis": kurtosis(W), "held": held(W),
        "kurtosis_scaled": kurtosis(scaled), "held_scaled": held(scaled),
        "break_even": break_even(*W.shape),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", default="outlier_energy")
    options = parser.parse_args()
    source = open_source(str(options.model))
    network = OriginalNetwork(source, resident_layers(source))
    rows = [
        matrix_row(matrix.name, matrix.weight.dense(), matrix.scale)
        for matrix in scaled_matrices(network)
    ]
    rows.sort(key=lambda row: -row["kurtosis"])
    for row in rows[:5]:
        print(f"{row['name']:18} kurtosis {row['kurtosis']:9.1f} -> {row['kurtosis_scaled']:6.1f}")
    medians = {
        key: np.median([row[key] for row in rows], axis=0).tolist()
        for key in ("held", "held_scaled", "break_even")
    }
    worth = [
        sum(row["held_scaled"][i] > row["break_even"][i] for row in rows)
        for i in range(len(OUTLIER_SHARES))
    ]
    for i, share in enumerate(OUTLIER_SHARES):
        print(
            f"share {share:g}: median {medians['held'][i]:.4f} of the energy as stored, "
            f"{medians['held_scaled'][i]:.4f} scaled; planes for the same bytes "
            f"{medians['break_even'][i]:.4f}; worth it in {worth[i]} of {len(rows)}"
        )
    write_result(
        options.name,
        {
            "command": f"python benches/outlier_energy.py MODEL --name {options.name}",
            "model": options.model.name, "shares": OUTLIER_SHARES, "medians": medians,
            "worth": worth, "matrices": len(rows), "most_peaked": rows[:10],
            "machine": machine_facts(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
