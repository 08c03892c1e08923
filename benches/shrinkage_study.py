"""What error feedback leaves on tokens it has not seen, as the moments' correlations are shrunk.

    python benches/shrinkage_study.py MODEL --layers 3 20 --roles q o up

Three quarters of the calibration's sequences make H, the last quarter says what feedback by it
leaves of unit errors: tr((I + A)^-1 H' (I + A)^-T) / tr(H'), less is better. `fitted` is what H
promises of its own tokens. The constant of compress/shrinkage.py is from here.
--calibration-tokens, --stages DIR (a calibration that a study has kept). Writes
benches/results/shrinkage_study.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.cli.show import progress_on_stderr
from loop_singular_bit.codec.codecs import Planes
from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.compress.checkpoint import calibration_settings, kept_calibration
from loop_singular_bit.compress.encode import DAMPING, channel_scale, input_seed, original_matrix
from loop_singular_bit.compress.forward import HiddenStates
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import Calibration, CalibrationOptions
from loop_singular_bit.compress.shrinkage import CAUTION, effective_samples, shrink
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.compress.stages import open_stages
from loop_singular_bit.engine.network import LayerWeights
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, InputSite
from loop_singular_bit.models.spec import Role

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CAUTIONS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)  # times the estimate for independent Gaussian tokens
BLOCK = PlaneOptions(1).block


@dataclass(frozen=True)
class Split:
    """Of all tokens, in whole sequences: those that make H, and the others."""

    seen: Mask
    unseen: Mask

    @staticmethod
    def of(sequences: int, length: int) -> Split:
        others = np.random.default_rng(0).permutation(sequences)[: sequences // 4]
        unseen = np.zeros(sequences, bool)
        unseen[others] = True
        rows = np.repeat(unseen, length)
        return Split(~rows, rows)


def left_by_feedback(believed: Floats, true: Floats) -> float:
    """Share of unit errors' loss under `true` when feedback is made for `believed`."""
    cols = len(true)
    panels = feedback_panels(damped(believed, DAMPING), BLOCK)
    A = panels.transpose(1, 0, 2).reshape(cols, -1)[:, :cols].astype(np.float64)
    upper = A + np.eye(cols)
    half = np.linalg.solve(upper, true.astype(np.float64))
    return float(np.trace(np.linalg.solve(upper, half.T)) / np.trace(true.astype(np.float64)))


def moments(x: Floats) -> Floats:
    return np.asarray(x.T @ x / np.float32(len(x)), np.float32)


def inputs(states: HiddenStates, layer: LayerWeights) -> dict[InputSite, Floats]:
    """What enters each site's matrices [tokens, cols]; the states pass the layer."""
    parts: dict[InputSite, list[Floats]] = {site: [] for site in InputSite}
    states.pass_layer(layer, lambda site, x, _rows: parts[site].append(x.copy()))
    return {site: np.concatenate(found) for site, found in parts.items()}


def measured(
    index: int, role: Role, layer: LayerWeights, x: Floats, weights: Floats, split: Split
) -> dict[str, Any]:
    """One matrix. weights: of its tokens, as the guidance gives them."""
    root = np.sqrt(weights)
    x = x * np.sqrt(root / root.mean())[:, None]
    matrix = original_matrix(role.value, getattr(layer, role.value))
    scale = channel_scale([(matrix, Planes(PlaneOptions(1)))])
    transform = InputTransform(scale, input_seed(f"layers.{index}", 0))
    H, true = moments(x[split.seen]), transform.hessian(moments(x[split.unseen]))
    samples, left = effective_samples(root[split.seen]), {}
    for caution in CAUTIONS:
        believed = H.copy()
        if caution > 0:
            shrink(believed, samples * CAUTION / caution)
        left[f"{caution:g}"] = left_by_feedback(transform.hessian(believed), true)
    rotated = transform.hessian(H)
    return {
        "layer": index, "role": role.value, "cols": len(H), "effective_samples": samples,
        "fitted": left_by_feedback(rotated, rotated), "left_by_caution": left,
    }  # fmt: skip


def rows(
    network: OriginalNetwork, calibration: Calibration, layers: Sequence[int], roles: Sequence[Role]
) -> Iterator[dict[str, Any]]:
    assert calibration.guidance is not None
    tokens = calibration.tokens
    split, states = Split.of(*tokens.shape), HiddenStates(network, tokens)
    for index in range(max(layers) + 1):
        layer = network.layer(index)
        if index not in layers:
            states.pass_layer(layer)
            continue
        entering = inputs(states, layer)
        for role in roles:
            weights = calibration.guidance.layers[index][role].weights
            yield measured(index, role, layer, entering[SITE_OF_ROLE[role]], weights, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--roles", type=Role, nargs="+", default=[Role.Q, Role.O, Role.UP])
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--stages", type=Path)
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    source = open_source(options.model)
    network = OriginalNetwork(source, resident_layers(source))
    asked = CalibrationOptions(options.calibration_tokens)
    with ExitStack() as stack:
        folder = options.stages or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stages = stack.enter_context(
            open_stages(folder, calibration_settings(source, asked), "give another --stages")
        )
        progress = stack.enter_context(progress_on_stderr())
        calibration = kept_calibration(source, network, asked, stages, progress)
    found = []
    for row in rows(network, calibration, options.layers, options.roles):
        found.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    command = "python benches/shrinkage_study.py MODEL --layers {} --roles {}".format(
        " ".join(map(str, options.layers)), " ".join(role.value for role in options.roles)
    )
    facts = {"command": command, "model": Path(options.model).name, "tokens": asked.tokens}
    write_result("shrinkage_study", {**facts, "rows": found, "machine": machine_facts()})


if __name__ == "__main__":
    main()
