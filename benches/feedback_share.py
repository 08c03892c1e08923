"""What share of a loss error feedback leaves, matrix by matrix: the constants of
compress/sensitivity.py.

    python benches/feedback_share.py MODEL_DIR [--calibration-tokens 16384]

With H = (I + A) D (I + A)^T feedback leaves the mean of D in place of the mean of H's diagonal.
`of_trace` is that ratio; `of_channels` compares with the geometric mean of the channels' second
moments, which is known without H. Writes benches/results/feedback_share.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.cli.show import progress_on_stderr
from loop_singular_bit.codec.codecs import Planes
from loop_singular_bit.codec.feedback import damped
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.compress.calibrate import LayerStatistics, statistics
from loop_singular_bit.compress.encode import DAMPING, channel_scale, input_seed, original_matrix
from loop_singular_bit.compress.guidance import Guidance
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import CalibrationOptions, make_calibration
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.sweep import SITE_OF_ROLE
from loop_singular_bit.models.spec import LINEAR_ROLES, Role

Floats = npt.NDArray[np.float32]


def squared(guidance: Guidance) -> Guidance:
    """Weights whose square roots, which the statistics take, are the given ones."""
    layers = tuple(
        {role: replace(each, weights=each.weights**2) for role, each in layer.items()}
        for layer in guidance.layers
    )
    return replace(guidance, layers=layers)


def innovations(H: Floats) -> float:
    """Mean of D: what is left of each column's variance when the later ones are known."""
    lower = np.linalg.cholesky(H[::-1, ::-1].astype(np.float64))[::-1, ::-1]
    return float((np.diag(lower) ** 2).mean())


def shares(layer: LayerStatistics) -> Iterator[tuple[Role, float, float]]:
    """(role, of_trace, of_channels) of every matrix."""
    for role in LINEAR_ROLES:
        site = SITE_OF_ROLE[role]
        group = [r for r in LINEAR_ROLES if SITE_OF_ROLE[r] is site]
        matrices = [original_matrix(r.value, getattr(layer.weights, r.value)) for r in group]
        scale = channel_scale([(m, Planes(PlaneOptions(1))) for m in matrices])
        name = f"layers.{layer.index}.{site.value}"
        H = layer.hessians[role]
        rotated = InputTransform(scale, input_seed(name, 0)).hessian(H)
        left = innovations(damped(rotated, DAMPING))
        moment = np.diag(H).astype(np.float64) * scale.astype(np.float64) ** 2
        channels = float(np.exp(np.log(moment + DAMPING * moment.mean()).mean()))
        yield role, left / float(moment.mean()), left / channels


def summary(values: list[float]) -> dict[str, float]:
    return {
        "least": min(values), "median": float(np.median(values)), "most": max(values)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    source = open_source(options.model)
    network = OriginalNetwork(source, resident_layers(source))
    asked = CalibrationOptions(options.calibration_tokens)
    with tempfile.TemporaryDirectory() as folder, progress_on_stderr() as progress:
        found = make_calibration(source, network, asked, Path(folder), progress)
    assert found.guidance is not None
    of_trace: dict[Role, list[float]] = {role: [] for role in LINEAR_ROLES}
    of_channels: dict[Role, list[float]] = {role: [] for role in LINEAR_ROLES}
    for layer in statistics(network, found.tokens, squared(found.guidance)):
        if isinstance(layer, LayerStatistics):
            for role, trace, channels in shares(layer):
                of_trace[role].append(trace)
                of_channels[role].append(channels)
    rows: dict[str, Any] = {
        role.value: {"of_trace": summary(of_trace[role]), "of_channels": summary(of_channels[role])}
        for role in LINEAR_ROLES
    }
    for name, row in rows.items():
        print(name, {kind: {k: round(v, 3) for k, v in each.items()} for kind, each in row.items()})
    write_result(
        "feedback_share",
        {
            "command": "python benches/feedback_share.py MODEL_DIR",
            "model": Path(options.model).name,
            "calibration_tokens": options.calibration_tokens,
            "roles": rows,
            "machine": machine_facts(),
        },
    )


if __name__ == "__main__":
    main()
