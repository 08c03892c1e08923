"""Against log-probabilities made with transformers in float32 (tests/golden/parity.npz)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from golden.cases import CASES, GOLDEN_FILE, Case, case_tokens, write_case

from loop_singular_bit import _native
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.runtime import Engine

Doubles = npt.NDArray[np.float64]
KL_MAX = 1e-4
TOP1_MIN = 0.995


@pytest.fixture(scope="module")
def golden() -> dict[str, Doubles]:
    with np.load(GOLDEN_FILE) as stored:
        return {name: stored[name].astype(np.float64) for name in stored.files}


@pytest.fixture(params=_native.available_tiers())
def tier(request: pytest.FixtureRequest):
    before = _native.active_tier()
    _native.use_tier(request.param)
    yield request.param
    _native.use_tier(before)


def engine_log_probabilities(directory: Path, case: Case) -> Doubles:
    source = open_source(str(directory))
    ids = case_tokens(case).tolist()
    engine = Engine(OriginalNetwork(source, source.spec.layers), 1, len(ids), len(ids))
    logits = engine.logits(engine.hidden(ids, 0, 0)).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_log_probabilities_are_those_of_transformers(
    case: Case, tier: str, golden: dict[str, Doubles], tmp_path: Path
) -> None:
    expected = golden[case.name]
    found = engine_log_probabilities(write_case(case, tmp_path / "model"), case)
    kl = (np.exp(expected) * (expected - found)).sum(axis=1)
    assert kl.mean() <= KL_MAX
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= TOP1_MIN


def test_golden_distributions_are_neither_flat_nor_certain(golden: dict[str, Doubles]) -> None:
    assert set(golden) == {case.name for case in CASES}
    for expected in golden.values():
        entropy = -(np.exp(expected) * expected).sum(axis=1)
        assert 1.5 < np.median(entropy) < np.log(expected.shape[1]) - 0.5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"sliding_window": None}),
        ("llama_rope", {"llama3_rope": False}),
        ("qwen2_tied", {"rope_theta": 1e4}),
    ],
)
def test_a_wrong_option_is_far_from_the_golden(
    name: str, change: dict[str, object], golden: dict[str, Doubles], tmp_path: Path
) -> None:
    """The threshold can tell: without the option, divergence is far above it."""
    (case,) = (case for case in CASES if case.name == name)
    wrong = Case(name, case.family, case.dtype, {**case.sizes, **change})
    found = engine_log_probabilities(write_case(wrong, tmp_path / "model"), wrong)
    expected = golden[name]
    assert (np.exp(expected) * (expected - found)).sum(axis=1).mean() > 10 * KL_MAX
