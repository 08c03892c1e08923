from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from loop_singular_bit.engine.sampler import Sampler, SamplingOptions, _top_p
from loop_singular_bit.errors import ResourceError, UsageError

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], dtype=np.float32))
PINNED = [1, 1, 0, 1, 0, 1, 3, 2, 3, 2, 1, 1]


def drawn(options: SamplingOptions, logits: npt.NDArray[np.float32] = LOGITS) -> set[int]:
    """Every id that 300 positions draw."""
    sampler = Sampler(options)
    return {sampler.pick(logits, position).id for position in range(300)}


def test_greedy_takes_the_lowest_id_on_ties() -> None:
    logits = np.array([0, 3, 1, 3, -np.inf], dtype=np.float32)
    assert Sampler(SamplingOptions()).pick(logits, 0).id == 1


def test_logprob_is_of_the_untempered_distribution() -> None:
    hot = SamplingOptions(temperature=5.0, top_k=2, seed=1)
    for options in (SamplingOptions(), hot):
        choice = Sampler(options).pick(LOGITS + 7, 3)
        assert choice.logprob == pytest.approx(float(LOGITS[choice.id]), abs=1e-6)


def test_draw_depends_on_seed_and_position_only() -> None:
    options = SamplingOptions(temperature=1.0, seed=11)
    forwards = Sampler(options)
    backwards = Sampler(options)
    first = [forwards.pick(LOGITS, position).id for position in range(50)]
    second = [backwards.pick(LOGITS, position).id for position in reversed(range(50))]
    assert first == second[::-1]
    other = Sampler(SamplingOptions(temperature=1.0, seed=12))
    assert first != [other.pick(LOGITS, position).id for position in range(50)]


def test_draw_is_pinned() -> None:
    """A seed must mean the same text in every release and with every numpy."""
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=2**64 - 1))
    assert [sampler.pick(LOGITS, position).id for position in range(12)] == PINNED


def test_without_a_seed_samplers_differ() -> None:
    options = SamplingOptions(temperature=1.0)
    assert Sampler(options).seed != Sampler(options).seed


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=5))
    ids = [sampler.pick(LOGITS, position).id for position in range(4000)]
    share = np.bincount(ids, minlength=5) / 4000
    # Five standard errors of a share of 4000 draws.
    assert np.abs(share - np.exp(LOGITS)).max() < 5 * math.sqrt(0.24 / 4000)


def test_temperature_sharpens_and_flattens() -> None:
    assert drawn(SamplingOptions(temperature=0.01, seed=1)) == {1}
    assert drawn(SamplingOptions(temperature=1e-300, seed=1)) == {1}
    assert drawn(SamplingOptions(temperature=100.0, seed=1)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 0.8}, {1, 2, 3}),
        ({"top_p": 0.99}, {0, 1, 2, 3, 4}),
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.49}, {1, 2, 3}),
        ({"min_p": 0.24}, {0, 1, 2, 3}),
        # After top-k, 0.4 / 0.65 of what is left is 0.62: top-p counts from there.
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"top_k": 2, "top_p": 0.7}, {1, 3}),
        ({"top_p": 0.8, "min_p": 0.6}, {1, 3}),
    ],
)
def test_filters(filters: dict[str, float], expected: set[int]) -> None:
    assert drawn(SamplingOptions(temperature=1.0, seed=3, **filters)) == expected  # type: ignore[arg-type]


def test_filters_come_after_temperature() -> None:
    """At temperature 0.5 the shares are .04 .58 .14 .23 .01 of the squares."""
    assert drawn(SamplingOptions(temperature=0.5, top_p=0.55, seed=3)) == {1}


def test_top_k_takes_the_lowest_ids_on_ties() -> None:
    flat = np.zeros(10, dtype=np.float32)
    assert drawn(SamplingOptions(temperature=1.0, top_k=3, seed=1), flat) == {0, 1, 2}
    assert drawn(SamplingOptions(temperature=1.0, top_p=0.3, seed=1), flat) == {0, 1, 2}


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 0.1, 2.0, 9.0])
def test_top_p_is_the_plain_definition(p: float, spread: float) -> None:
    """The short cut around sorting the whole vocabulary keeps the same tokens."""
    rng = np.random.default_rng(0)
    weights = np.exp(rng.standard_normal(5000).round(1) * spread)  # with ties
    ids, kept = _top_p(np.arange(5000), weights, p)
    order = np.argsort(-weights, kind="stable")
    count = int(np.searchsorted(weights[order].cumsum(), p * weights.sum())) + 1
    assert ids.tolist() == sorted(order[:count].tolist())
    assert kept.tolist() == weights[ids].tolist()


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], dtype=np.float32)
    assert drawn(SamplingOptions(temperature=100.0, seed=1), logits) == {1, 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[2] = bad
    with pytest.raises(ResourceError, match="position 17 is"):
        Sampler(SamplingOptions(temperature=temperature)).pick(logits, 17)


def test_all_tokens_impossible_is_an_error() -> None:
    with pytest.raises(ResourceError, match="-inf"):
        Sampler(SamplingOptions()).pick(np.full(4, -np.inf, dtype=np.float32), 0)


@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("temperature", -0.1, "0.0 to 100.0"),
        ("temperature", math.nan, "0.0 to 100.0"),
        ("temperature", math.inf, "0.0 to 100.0"),
        ("top_k", -1, "0 to 1000000"),
        ("top_p", 1.01, "0.0 to 1.0"),
        ("min_p", -0.5, "0.0 to 1.0"),
        ("seed", -1, "0 to 18446744073709551615"),
        ("seed", 2**64, "0 to 18446744073709551615"),
    ],
)
def test_value_out_of_range_is_named(field: str, value: float, bounds: str) -> None:
    with pytest.raises(UsageError, match=f"{field} is {value}: .* {bounds}"):
        SamplingOptions(**{field: value})  # type: ignore[arg-type]
