from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import write_tiny_model

from loop_singular_bit.compress.gradients import Block, rms_norm, rms_norm_backward
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.runtime import Engine
from loop_singular_bit.engine.sweep import SITE_OF_ROLE
from loop_singular_bit.models.spec import LINEAR_ROLES, Role

Floats = npt.NDArray[np.float32]

LENGTH = 12


@pytest.fixture(params=["llama", "qwen2", "mistral"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> OriginalNetwork:
    return OriginalNetwork(open_source(str(write_tiny_model(tmp_path / "m", request.param))), 2)


def blocks(network: OriginalNetwork) -> list[Block]:
    rotary = rotary_table(network.spec, LENGTH)
    return [
        Block(network.spec, network.layer(index), rotary, LENGTH)
        for index in range(network.spec.layers)
    ]


def tokens(network: OriginalNetwork) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, network.spec.vocab, (2, LENGTH))


def test_forward_is_what_the_engine_computes(network: OriginalNetwork) -> None:
    ids = tokens(network)
    x = network.embedding.read_rows(ids.reshape(-1))
    for block in blocks(network):
        x, _tape = block.forward(x)
    engine = Engine(network, 1, LENGTH, LENGTH)
    for sequence in range(2):
        expected = engine.hidden(ids[sequence].tolist(), 0, 0)
        found = x[sequence * LENGTH : (sequence + 1) * LENGTH]
        # The engine's cache has 16-bit numbers.
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def slope(f: object, x: Floats, direction: Floats, step: float) -> float:
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)  # type: ignore[operator]


def test_backward_is_the_slope_of_forward(network: OriginalNetwork) -> None:
    rng = np.random.default_rng(1)
    first, second = blocks(network)
    x = network.embedding.read_rows(tokens(network).reshape(-1))
    weights = rng.standard_normal(x.shape).astype(np.float32)
    middle, tape = first.forward(x)
    _, tape_after = second.forward(middle)
    grad, _ = second.backward(weights, tape_after)
    grad, _ = first.backward(grad, tape)

    def loss(x: Floats) -> float:
        found = second.forward(first.forward(x)[0])[0]
        return float((found.astype(np.float64) * weights).sum())

    for _ in range(3):
        direction = rng.standard_normal(x.shape).astype(np.float32)
        expected = slope(loss, x, direction, 1e-3 * float(np.abs(x).mean()))
        found = float((grad.astype(np.float64) * direction).sum())
        assert found == pytest.approx(
            expected, rel=0.02, abs=0.01 * float(np.abs(grad).sum()) ** 0.5
        )


@pytest.mark.parametrize("role", LINEAR_ROLES)
def test_each_output_gradient_is_that_of_its_matrix(network: OriginalNetwork, role: Role) -> None:
    """grad of W is (grad of the output)^T input: checked through a small change of W."""
    rng = np.random.default_rng(2)
    block = blocks(network)[0]
    x = network.embedding.read_rows(tokens(network).reshape(-1))
    weights = rng.standard_normal(x.shape).astype(np.float32)
    y, tape = block.forward(x)
    outputs = block.backward(weights, tape)[1][role]
    W = block._W[role]
    # A change along one input channel moves the output by that channel's values.
    channel, row = 3, rng.standard_normal(len(W)).astype(np.float32)
    inputs = tape.inputs[SITE_OF_ROLE[role]][:, channel]
    expected_change = float((outputs * (inputs[:, None] * row)).sum(dtype=np.float64))

    def loss(step: float) -> float:
        original = W.copy()
        W[:, channel] += np.float32(step) * row
        found = float((block.forward(x)[0].astype(np.float64) * weights).sum())
        W[:] = original
        return found

    step = 1e-3
    measured = (loss(step) - loss(-step)) / (2 * step)
    assert y.dtype == np.float32
    assert measured == pytest.approx(expected_change, rel=0.05, abs=0.02)


def test_a_sliding_window_hides_what_is_before_it(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m", "mistral", sliding_window=4)
    network = OriginalNetwork(open_source(str(model)), 2)
    block = blocks(network)[0]
    x = network.embedding.read_rows(tokens(network).reshape(-1))
    _, tape = block.forward(x)
    share = tape.share[0, 0, 0]
    assert (share[8, 5:9] > 0).all() and (share[8, :5] == 0).all() and (share[8, 9:] == 0).all()


def test_the_norm_backwards() -> None:
    rng = np.random.default_rng(3)
    x, gain, grad = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8), 8, (2, 8)))
    found = rms_norm_backward(grad, x, gain, 1e-5)
    for at in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[at] = 1e-2
        change = rms_norm(x + step, gain, 1e-5) - rms_norm(x - step, gain, 1e-5)
        assert found[at] == pytest.approx(float((change * grad).sum()) / 2e-2, rel=1e-2, abs=1e-3)
