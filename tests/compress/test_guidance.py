from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loop_singular_bit.codec.weights import DenseWeight
from loop_singular_bit.compress import forward
from loop_singular_bit.compress import guidance as guidance_module
from loop_singular_bit.compress.gradients import Block, rms_norm
from loop_singular_bit.compress.guidance import _fisher_probe, guidance
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.runtime import Engine
from loop_singular_bit.models.spec import LINEAR_ROLES, Role

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

NOISE = np.float32(0.01)


@pytest.fixture
def network(tiny_model: Path) -> OriginalNetwork:
    return OriginalNetwork(open_source(str(tiny_model)), 2)


TOKENS = np.random.default_rng(0).integers(0, 512, (4, 16))


def test_every_matrix_and_token_has_a_weight(network: OriginalNetwork, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    found = guidance(network, TOKENS, 0, tmp_path, lambda *at: done.append(at))
    assert len(found.layers) == 2 and found.head.weights.shape == (64,)
    for layer in found.layers:
        assert set(layer) == set(LINEAR_ROLES)
        for weight in (each.weights for each in layer.values()):
            assert weight.shape == (64,) and weight.dtype == np.float32
            assert np.isfinite(weight).all() and (weight >= 0).all() and weight.max() > 0
    assert done == [(step, 4) for step in range(1, 5)]
    assert list(tmp_path.iterdir()) == []


def test_the_last_token_of_a_sequence_cannot_matter_through_attention(
    network: OriginalNetwork, tmp_path: Path
) -> None:
    """Its key has one reader only: itself; in a sequence of one token attention has no choice."""
    found = guidance(network, TOKENS[:, :1], 0, tmp_path)
    for layer in found.layers:
        np.testing.assert_allclose(layer[Role.Q].weights, 0, atol=1e-12)
        np.testing.assert_allclose(layer[Role.K].weights, 0, atol=1e-12)
        assert layer[Role.V].weights.max() > 0


def test_chunks_change_nothing(
    network: OriginalNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = guidance(network, TOKENS, 0, tmp_path)
    monkeypatch.setattr(forward, "ROWS_MAX", 20)
    monkeypatch.setattr(guidance_module, "ROWS_MAX", 20)
    monkeypatch.setattr(guidance_module, "HEAD_ROWS", 100)
    parts = guidance(network, TOKENS, 0, tmp_path)
    for one, two in zip(whole.layers, parts.layers, strict=True):
        for role in LINEAR_ROLES:
            np.testing.assert_allclose(one[role].weights, two[role].weights, rtol=1e-2)
            np.testing.assert_allclose(one[role].moment, two[role].moment, rtol=1e-2)
    np.testing.assert_allclose(whole.head.weights, parts.head.weights, rtol=1e-4)


def test_the_probe_has_the_fisher_information_of_the_logits() -> None:
    share = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    many = _fisher_probe(np.tile(share, (40000, 1)), np.random.default_rng(0))
    expected = np.diag(share) - np.outer(share, share)
    np.testing.assert_allclose(many.T @ many / len(many), expected, atol=5e-3)


def test_the_head_counts_a_token_by_how_unsure_it_is(
    network: OriginalNetwork, tmp_path: Path
) -> None:
    engine, expected = Engine(network, 1, 16, 16), []
    for ids in TOKENS:
        logits = engine.logits(engine.hidden(ids.tolist(), 0, 0)).astype(np.float64)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        expected.append((share * (1 - share)).mean(axis=1))
    found = guidance(network, TOKENS, 0, tmp_path)
    np.testing.assert_allclose(found.head.weights, np.concatenate(expected), rtol=1e-3)


def test_weights_predict_what_noise_costs(network: OriginalNetwork, tmp_path: Path) -> None:
    """Noise of variance v on every output of a matrix costs v / 2 outputs sum(weights) nats."""
    tokens = np.random.default_rng(1).integers(0, 512, (64, 16))
    weight = guidance(network, tokens, 0, tmp_path).layers[1][Role.DOWN].weights
    predicted = NOISE**2 / 2 * network.spec.hidden * float(weight.mean())
    rng, block, lost = np.random.default_rng(2), _last_block(network), []
    for ids in tokens:
        x, _tape = block.forward(_before_last(network, ids))
        noisy = x + NOISE * rng.standard_normal(x.shape).astype(np.float32)
        lost.append(_divergence(network, x, noisy))
    assert float(np.mean(lost)) == pytest.approx(predicted, rel=0.15)


def _last_block(network: OriginalNetwork) -> Block:
    return Block(network.spec, network.layer(1), rotary_table(network.spec, 16), 16)


def _before_last(network: OriginalNetwork, ids: Tokens) -> Floats:
    first = Block(network.spec, network.layer(0), rotary_table(network.spec, 16), 16)
    return first.forward(network.embedding.read_rows(ids))[0]


def _divergence(network: OriginalNetwork, x: Floats, noisy: Floats) -> float:
    head = network.head
    assert isinstance(head, DenseWeight)
    logs = []
    for states in (x, noisy):
        normed = rms_norm(states, network.final_norm, network.spec.norm_eps)
        scores = normed.astype(np.float64) @ head.dense().T.astype(np.float64)
        logs.append(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())
