from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import Tiny, tiny_weights, write_tiny_gguf, write_tiny_model

from loop_singular_bit.codec.codecs import Planes
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.compress.calibrate import LayerStatistics, statistics
from loop_singular_bit.compress.encode import DAMPING, channel_scale, original_matrix
from loop_singular_bit.compress.guidance import Guidance, guidance
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.sensitivity import FEEDBACK, outlier_energy, sensitivities
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.compress.spend import OUTLIER_SHARES
from loop_singular_bit.engine.sweep import SITE_OF_ROLE
from loop_singular_bit.models.spec import LINEAR_ROLES, all_tensors

TOKENS = np.random.default_rng(0).integers(0, 512, (4, 16))


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_costs_something(tied: bool, tmp_path: Path) -> None:
    source = open_source(str(write_tiny_model(tmp_path / "m", tied=tied)))
    network = OriginalNetwork(source, 2)
    found = sensitivities(network, guidance(network, TOKENS, 0, tmp_path))
    assert set(found) == {t.name for t in all_tensors(source.spec) if len(t.shape) == 2}
    assert all(np.isfinite(cost) and cost > 0 for cost in found.values())


def test_costs_are_those_of_the_guided_moments(tmp_path: Path) -> None:
    """White errors in the rotated basis under H, less what feedback takes from them."""
    source = open_source(str(write_tiny_model(tmp_path / "m")))
    network = OriginalNetwork(source, 2)
    guided = guidance(network, TOKENS, 0, tmp_path)
    found = sensitivities(network, guided)
    for layer in statistics(network, TOKENS, _squared(guided)):
        if not isinstance(layer, LayerStatistics):
            break
        for role in LINEAR_ROLES:
            group = [r for r in LINEAR_ROLES if SITE_OF_ROLE[r] is SITE_OF_ROLE[role]]
            matrices = [original_matrix(r.value, getattr(layer.weights, r.value)) for r in group]
            scale = channel_scale([(m, Planes(PlaneOptions(1))) for m in matrices])
            W = getattr(layer.weights, role.value).dense().astype(np.float64) / scale
            H = layer.hessians[role].astype(np.float64)
            moment = np.diag(H) * scale.astype(np.float64) ** 2
            left = np.exp(np.log(moment + DAMPING * moment.mean()).mean())
            importance = float(guided.layers[layer.index][role].weights.mean())
            expected = FEEDBACK[role] * importance / 2 * (W**2).sum() * left
            assert found[f"layers.{layer.index}.{role.value}"] == pytest.approx(expected, rel=0.02)


def test_outliers_hold_what_their_squares_say(tmp_path: Path) -> None:
    weights = tiny_weights(Tiny())
    down = weights["model.layers.1.mlp.down_proj.weight"]
    down[3, 5], down[9, 7] = 30.0, -20.0  # of 8192: a share of 1e-4 is one weight
    source = open_source(str(write_tiny_gguf(tmp_path / "m.gguf", weights=weights)))
    network = OriginalNetwork(source, 2)
    found = outlier_energy(network)
    assert set(found) == {t.name for t in all_tensors(source.spec) if t.role in LINEAR_ROLES}
    W = network.layer(1).down.dense()
    matrix = original_matrix("down", network.layer(1).down)
    scaled = W / channel_scale([(matrix, Planes(PlaneOptions(1)))])
    order = np.argsort(-np.abs(W), axis=None, kind="stable")
    squares = scaled.astype(np.float64).ravel()[order] ** 2
    expected = [squares[: round(share * W.size)].sum() / squares.sum() for share in OUTLIER_SHARES]
    assert found["layers.1.down"] == pytest.approx(expected, rel=1e-5)
    assert expected[0] == 0 < expected[1] < expected[2]


def _squared(guided: Guidance) -> Guidance:
    """Weights whose roots, which statistics take, are the given ones."""
    layers = tuple(
        {role: replace(each, weights=each.weights**2) for role, each in layer.items()}
        for layer in guided.layers
    )
    return replace(guided, layers=layers)
