"""What it is worth to encode each layer for the inputs that the encoded layers before it give.

    python benches/sequential_study.py MODEL --text FILE --text FILE

Every matrix of a small model is encoded twice, with as many bytes: for the inputs of the original
network, as `lsb compress` does, and for those of the network encoded so far. Then it does not
stand for W but for the least-squares map, damped towards W, from its own inputs to what the
original put out there; o and down, which write to the hidden states, also make up for what those
lack. Embedding and head are the original's. Writes benches/results/sequential_study.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, Budgets
from loop_singular_bit.codec.codecs import Codec
from loop_singular_bit.compress.allocate import CodecOptions, input_name
from loop_singular_bit.compress.compressor import EvaluationOptions, evaluation_tokens
from loop_singular_bit.compress.encode import Matrix, encode_input
from loop_singular_bit.compress.forward import HiddenStates, Tokens
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    make_calibration,
    make_plan,
    silent,
)
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.engine.network import LayerWeights
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, InputSite
from loop_singular_bit.measure.quality import NetworkScorer, compare_tokens, summary
from loop_singular_bit.models.spec import LINEAR_ROLES, Role, layer_tensors

Floats = npt.NDArray[np.float32]

DAMPING = 0.3  # of the correction, times the mean of the inputs' second moments


class LayersReplaced:
    """The original with other layers."""

    def __init__(self, network: OriginalNetwork, layers: list[LayerWeights]) -> None:
        self._network, self._layers = network, layers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def layer(self, index: int) -> LayerWeights:
        return self._layers[index]


@dataclass(frozen=True)
class Seen:
    """Of all tokens at one layer: what enters each site's matrices, and the hidden states that o
    and down add to; float32 [tokens, cols]."""

    inputs: Mapping[InputSite, Floats]
    added_to: Mapping[Role, Floats]


def seen(states: HiddenStates, layer: LayerWeights) -> Seen:
    """`states` stay before the layer."""
    parts: dict[InputSite, list[Floats]] = {site: [] for site in InputSite}
    before = states.x.copy()
    states.pass_layer(layer, lambda site, x, _rows: parts[site].append(x.copy()))
    states.x[:] = before
    inputs = {site: np.concatenate(found) for site, found in parts.items()}
    o = layer.o.dense()  # type: ignore[attr-defined]
    return Seen(inputs, {Role.O: before, Role.DOWN: before + inputs[InputSite.OUTPUT] @ o.T})


def corrected(W: Floats, role: Role, theirs: Seen, ours: Seen, roots: Floats, H: Floats) -> Floats:
    """W plus the damped least-squares map from our inputs to what W lacks on them."""
    site = SITE_OF_ROLE[role]
    lacking = (theirs.inputs[site] - ours.inputs[site]) @ W.T
    if role in ours.added_to:
        lacking += theirs.added_to[role] - ours.added_to[role]
    crossed = (lacking * roots[:, None] ** 2).T @ ours.inputs[site] / np.float32(len(lacking))
    damped = H + np.float32(DAMPING * np.diag(H).mean()) * np.eye(len(H), dtype=np.float32)
    return W + np.linalg.solve(damped, crossed.T).T.astype(np.float32)


@dataclass
class Study:
    source: Source
    network: OriginalNetwork
    calibration: Calibration
    codecs: Mapping[str, Codec]

    def layers(self, sequential: bool) -> list[LayerWeights]:
        """All layers encoded."""
        tokens, found = self.calibration.tokens, []
        theirs, ours = HiddenStates(self.network, tokens), HiddenStates(self.network, tokens)
        for index in range(self.network.spec.layers):
            layer = self.network.layer(index)
            before = seen(theirs, layer)
            encoded = layer
            for site in InputSite:
                here = seen(ours, encoded) if sequential else before
                encoded = self._encoded(index, site, encoded, before, here)
            theirs.pass_layer(layer)
            ours.pass_layer(encoded)
            found.append(encoded)
        return found

    def _encoded(
        self, index: int, site: InputSite, layer: LayerWeights, theirs: Seen, ours: Seen
    ) -> LayerWeights:
        """`layer` with the matrices of one site encoded."""
        tensors = [
            t for t in layer_tensors(self.network.spec, index)
            if t.role in LINEAR_ROLES and SITE_OF_ROLE[t.role] is site
        ]  # fmt: skip
        matrices = []
        for tensor in tensors:
            W = getattr(layer, tensor.role.value).dense()
            roots = self._roots(index, tensor.role)
            x = ours.inputs[site] * roots[:, None]
            H = x.T @ x / np.float32(len(x))
            if theirs is not ours:
                W = corrected(W, tensor.role, theirs, ours, roots, H)
            matrices.append(Matrix(tensor.name, np.ascontiguousarray(W), "f32", H))
        done = encode_input(input_name(tensors[0]), matrices, self.codecs, 0)
        return replace(layer, **{t.role.value: done.weights[t.name] for t in tensors})  # type: ignore[arg-type]

    def _roots(self, index: int, role: Role) -> Floats:
        """What a token's inputs are multiplied by: they count by the root of their weights."""
        assert self.calibration.guidance is not None
        root = np.sqrt(self.calibration.guidance.layers[index][role].weights)
        mean = float(root.mean(dtype=np.float64))
        return np.sqrt(root / np.float32(mean)) if mean > 0 else np.ones_like(root)


def planned(source: Source, planes: int, calibration: Calibration) -> Mapping[str, Codec]:
    """The bytes of `planes` planes everywhere, spent where they save most."""
    options = CodecOptions(planes=planes, embedding="raw")
    budgets = Budgets(make_plan(source, options, Budgets()).size_bytes_max / GIGABYTE)
    spent = replace(options, planes=None)
    return make_plan(source, spent, budgets, 0, calibration.sensitivity).codecs


def measured(
    study: Study, sequential: bool, windows: dict[str, Tokens], reference: NetworkScorer
) -> dict[str, Any]:
    started = time.monotonic()
    network = LayersReplaced(study.network, study.layers(sequential))
    seconds, figures = time.monotonic() - started, {}
    for name, tokens in windows.items():
        scorer = NetworkScorer(network, tokens.shape[1] - 1)  # type: ignore[arg-type]
        (found,) = compare_tokens([scorer], reference, tokens)
        figures[name] = summary(found).kl_mean
    return {"seconds": seconds, "kl_mean": float(np.mean(list(figures.values()))), "kl": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--planes", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--tokens", type=int, default=4096, help="of each text")
    options = parser.parse_args()
    _native.set_threads(usable_cores())
    source = open_source(options.model)
    network = OriginalNetwork(source, resident_layers(source))
    with tempfile.TemporaryDirectory() as folder:
        asked = CalibrationOptions()
        calibration = make_calibration(source, network, asked, Path(folder), silent)
    windows = {
        text.name: evaluation_tokens(
            source, EvaluationOptions(text.read_text("utf-8"), 512, options.tokens)
        )
        for text in options.text
    }
    reference = NetworkScorer(network, 512, keep=True)
    rows = []
    for planes in options.planes:
        study = Study(source, network, calibration, planned(source, planes, calibration))
        for sequential in (False, True):
            row = measured(study, sequential, windows, reference)
            rows.append({"planes": planes, "sequential": sequential, **row})
            print(rows[-1], flush=True)
    command = "python benches/sequential_study.py MODEL " + " ".join(
        f"--text {text.name}" for text in options.text
    )
    facts = {"command": command, "calibration_tokens": int(calibration.tokens.size)}
    result = {**facts, "eval_tokens_each": options.tokens, "damping": DAMPING, "rows": rows}
    write_result("sequential_study", {**result, "machine": machine_facts()})


if __name__ == "__main__":
    main()
