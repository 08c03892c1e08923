from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.codec.weights import DenseWeight
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.calibrate import HeadStatistics, statistics
from loop_singular_bit.compress.original import OriginalNetwork, open_original
from loop_singular_bit.compress.pipeline import make_plan, write_artefacts
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.compress.tensor_errors import (
    TensorError,
    checked_tensors,
    compared_tensors,
)
from loop_singular_bit.engine.artefact import ArtefactNetwork
from loop_singular_bit.models.spec import all_tensors

TOKENS = np.random.default_rng(3).integers(0, 512, (2, 48))


def compared(artefact: Path, model: Path) -> dict[str, TensorError]:
    with closing(ArtefactNetwork(artefact)) as network, open_original(str(model)) as (original, _):
        found = list(compared_tensors(network, original, TOKENS))
    assert len({tensor.name for tensor in found}) == len(found)
    return {tensor.name: tensor for tensor in found}


def baseline(model: Path, out: Path, codec: str) -> Path:
    out.mkdir()
    source = open_source(str(model))
    write_artefacts(source, [(make_plan(source, CodecOptions(codec), Budgets()), out)], None, 0)
    return out


@pytest.fixture(scope="module")
def found(tiny_artefact: Path, tiny_model: Path) -> dict[str, TensorError]:
    return compared(tiny_artefact, tiny_model)


def test_every_tensor_is_there(found: dict[str, TensorError], tiny_artefact: Path) -> None:
    with closing(ArtefactNetwork(tiny_artefact)) as network:
        assert set(found) == {tensor.name for tensor in all_tensors(network.spec)}
    assert all(tensor.finite for tensor in found.values())
    assert {tensor.layer for tensor in found.values()} == {None, 0, 1}


def test_errors_are_those_of_the_definition(
    found: dict[str, TensorError], tiny_artefact: Path, tiny_model: Path
) -> None:
    """Whole matrices of a tiny model are fewer rows than the sample, so nothing is left out."""
    with closing(ArtefactNetwork(tiny_artefact)) as network, open_original(
        str(tiny_model)
    ) as (original, _):  # fmt: skip
        layer = next(iter(statistics(original, TOKENS)))
        assert not isinstance(layer, HeadStatistics)
        H = {role.value: h.astype(np.float64) for role, h in layer.hessians.items()}
        for role in ("q", "o", "up", "down"):
            W = getattr(layer.weights, role).dense().astype(np.float64)
            E = W - network.matrix(f"layers.0.{role}").dense()
            tensor = found[f"layers.0.{role}"]
            assert tensor.relative_error == pytest.approx((E**2).sum() / (W**2).sum(), rel=1e-4)
            expected = np.trace(E @ H[role] @ E.T) / np.trace(W @ H[role] @ W.T)
            assert tensor.proxy_loss == pytest.approx(expected, rel=1e-3)


def test_four_planes_lose_a_little_and_norms_nothing(found: dict[str, TensorError]) -> None:
    for tensor in found.values():
        assert tensor.relative_error is not None
        if tensor.encoding == "vector":
            assert (tensor.relative_error, tensor.proxy_loss) == (0, None)
        else:
            assert tensor.encoding == "planes"
            assert tensor.planes == (6 if tensor.name == "embed" else 4)
            assert 0 < tensor.relative_error < 0.04
            # A tied embedding is weighed as the head that it is.
            assert tensor.proxy_loss is not None
            assert 0 < tensor.proxy_loss < 0.03


@pytest.mark.parametrize("tied", [True, False])
def test_raw_weights_lose_nothing_and_signs_much(tied: bool, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", tied=tied, dtype="bf16")
    raw = compared(baseline(model, tmp_path / "raw", "raw"), model)
    assert {tensor.relative_error for tensor in raw.values()} == {0.0}
    assert ("head" in raw) is not tied
    signs = compared(baseline(model, tmp_path / "signs", "uniform1"), model)
    assert signs["layers.1.gate"].encoding == "sign"
    assert signs["layers.1.gate"].relative_error == pytest.approx(1 - 2 / np.pi, rel=0.05)


def test_the_artefact_alone_is_decoded_tensor_by_tensor(
    found: dict[str, TensorError], tiny_artefact: Path
) -> None:
    with closing(ArtefactNetwork(tiny_artefact)) as network:
        alone = list(checked_tensors(network))
    expected = {
        name: replace(tensor, relative_error=None, proxy_loss=None)
        for name, tensor in found.items()
    }
    assert {tensor.name: tensor for tensor in alone} == expected


def test_a_value_that_is_not_finite_is_found(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = baseline(tiny_model, tmp_path / "raw", "raw")
    whole = ArtefactNetwork.matrix

    def damaged(self: ArtefactNetwork, name: str) -> Any:
        weight = whole(self, name)
        if not name.endswith(".v"):
            return weight
        assert isinstance(weight, DenseWeight)
        data = weight.data.copy()
        data[3, 5] = np.nan
        return replace(weight, data=data)

    monkeypatch.setattr(ArtefactNetwork, "matrix", damaged)
    with closing(ArtefactNetwork(artefact)) as network:
        wrong = [tensor.name for tensor in checked_tensors(network) if not tensor.finite]
        original = OriginalNetwork(open_source(str(tiny_model)), 2)
        found = [t.name for t in compared_tensors(network, original, TOKENS) if not t.finite]
    assert wrong == found == ["layers.0.v", "layers.1.v"]
