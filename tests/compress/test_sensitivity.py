from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_model

from loop_singular_bit.codec.codecs import Planes
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.compress.calibrate import LayerStatistics, statistics
from loop_singular_bit.compress.encode import channel_scale, original_matrix
from loop_singular_bit.compress.guidance import guidance
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.sensitivity import FEEDBACK, sensitivities
from loop_singular_bit.compress.source import open_source
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
    """White errors in the rotated basis, under H: D / 2 sum_r p_r tr(H)."""
    source = open_source(str(write_tiny_model(tmp_path / "m")))
    network = OriginalNetwork(source, 2)
    guided = guidance(network, TOKENS, 0, tmp_path)
    found = sensitivities(network, guided)
    for layer in statistics(network, TOKENS, guided):
        if not isinstance(layer, LayerStatistics):
            break
        for role in LINEAR_ROLES:
            group = [r for r in LINEAR_ROLES if SITE_OF_ROLE[r] is SITE_OF_ROLE[role]]
            matrices = [original_matrix(r.value, getattr(layer.weights, r.value)) for r in group]
            scale = channel_scale([(m, Planes(PlaneOptions(1))) for m in matrices])
            transform = InputTransform(scale, 7)
            W = transform.weights(getattr(layer.weights, role.value).dense())
            H = transform.hessian(layer.hessians[role])
            importance = float(guided.layers[layer.index][role].weights.mean())
            power = float((W.astype(np.float64) ** 2).mean(axis=1).sum())
            expected = FEEDBACK[role] * importance / 2 * power * float(np.trace(H))
            assert found[f"layers.{layer.index}.{role.value}"] == pytest.approx(expected, rel=0.02)
