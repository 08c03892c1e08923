from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import write_tiny_model

from loop_singular_bit import _native
from loop_singular_bit.compress import calibrate, forward
from loop_singular_bit.compress.calibrate import (
    HeadStatistics,
    LayerStatistics,
    sample_sequences,
    statistics,
)
from loop_singular_bit.compress.guidance import Guidance, Importance
from loop_singular_bit.compress.openings import TEXTS
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.pipeline import CalibrationOptions, calibration_tokens, silent
from loop_singular_bit.compress.shrinkage import effective_samples, shrink
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.kv import KVCache
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, Batch, InputSite, record_layer
from loop_singular_bit.engine.text import Text
from loop_singular_bit.engine.workspace import Workspace
from loop_singular_bit.errors import InputRefusedError, UsageError
from loop_singular_bit.measure.default_text import default_text
from loop_singular_bit.models.spec import LINEAR_ROLES

Tokens = npt.NDArray[np.int64]
ROLE_OF_SITE = {site: role for role, site in SITE_OF_ROLE.items()}


@pytest.fixture
def network(tiny_model: Path) -> OriginalNetwork:
    return OriginalNetwork(open_source(str(tiny_model)), 2)


def random_tokens(sequences: int, length: int) -> Tokens:
    return np.random.default_rng(3).integers(0, 512, (sequences, length))


def test_the_seed_decides_the_sample(network: OriginalNetwork) -> None:
    first, again, other = (sample_sequences(network, [[1]] * 3, 12, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first[:, 1:] != other[:, 1:]).any()


def test_samples_go_on_from_what_is_given(network: OriginalNetwork) -> None:
    starts = [[7], [5, 9, 11], list(range(20))]
    ids = sample_sequences(network, starts, 12, 0)
    for row, start in zip(ids, starts, strict=True):
        np.testing.assert_array_equal(row[: len(start)], start[:12])
    assert ids.min() >= 0
    # What is drawn depends on what was given before.
    other = sample_sequences(network, [[7], [5, 9, 12], list(range(20))], 12, 0)
    np.testing.assert_array_equal(ids[[0, 2]], other[[0, 2]])
    assert (ids[1, 3:] != other[1, 3:]).any()


def test_the_sample_does_not_depend_on_threads(network: OriginalNetwork) -> None:
    found = []
    for threads in (1, 2):
        _native.set_threads(threads)
        found.append(sample_sequences(network, [[1]] * 4, 24, 0))
    np.testing.assert_array_equal(*found)


def test_a_sequence_does_not_depend_on_how_many_there_are_after_it(
    network: OriginalNetwork,
) -> None:
    np.testing.assert_array_equal(
        sample_sequences(network, [[1]] * 2, 10, 0),
        sample_sequences(network, [[1]] * 5, 10, 0)[:2],
    )


def test_samples_start_as_asked_and_stay_in_the_vocabulary(network: OriginalNetwork) -> None:
    steps: list[tuple[int, int]] = []
    ids = sample_sequences(
        network, [[7]] * 3, 8, 0, lambda done, total: steps.append((done, total))
    )
    assert ids.shape == (3, 8)
    assert (ids[:, 0] == 7).all()
    assert ids.min() >= 0 and ids.max() < 512
    assert len({tuple(row) for row in ids.tolist()}) == 3
    assert steps == [(step, 7) for step in range(1, 8)]


def test_the_draw_follows_the_distribution() -> None:
    share = np.array([0.5, 0.2, 0.3, 0.0], np.float64)
    with np.errstate(divide="ignore"):
        scores = np.tile(np.log(share).astype(np.float32), (4000, 1))
    counts = np.bincount(calibrate._draw(scores, 0, 0), minlength=4) / 4000
    # Four standard errors.
    np.testing.assert_allclose(counts, share, atol=4 * np.sqrt(0.25 / 4000))
    assert counts[3] == 0


def direct_moments(network: OriginalNetwork, tokens: Tokens) -> list[dict[InputSite, list[object]]]:
    """What enters every matrix, one sequence at a time."""
    spec, length = network.spec, tokens.shape[1]
    found: list[dict[InputSite, list[object]]] = [
        {site: [] for site in InputSite} for _ in range(spec.layers)
    ]
    for sequence in tokens:
        cache, work = KVCache(spec, 1, length), Workspace(spec, length)
        rotary = rotary_table(spec, cache.context)
        places = np.arange(length, dtype=np.int32)
        batch = Batch(sequence.copy(), np.zeros(length, np.int32), places)
        work.x[:] = network.embedding.read_rows(batch.ids)
        for index in range(spec.layers):
            program = record_layer(spec, network.layer(index), cache.layers[index], rotary, work)
            for site, inputs in program.run_by_site(batch):
                found[index][site].append(inputs.astype(np.float64))
    return found


@pytest.mark.parametrize("rows_max", [1024, 60, 7])
def test_statistics_are_second_moments(
    rows_max: int, network: OriginalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "ROWS_MAX", rows_max)  # several chunks, the last one smaller
    tokens = random_tokens(5, 20)
    *layers, head = statistics(network, tokens)
    assert isinstance(head, HeadStatistics) and head.hessian is not None
    assert head.hessian.shape == (64, 64)
    for found, expected in zip(layers, direct_moments(network, tokens), strict=True):
        assert isinstance(found, LayerStatistics)
        for site, parts in expected.items():
            X = np.concatenate(parts)  # type: ignore[call-overload]
            H = found.hessians[ROLE_OF_SITE[site]]
            np.testing.assert_array_equal(H, H.T)
            np.testing.assert_allclose(H, X.T @ X / len(X), rtol=1e-4, atol=1e-5)


def test_widths_that_are_no_multiple_of_the_kernel(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m", hidden=80, heads=5, kv_heads=5, intermediate=104)
    network = OriginalNetwork(open_source(str(model)), 2)
    tokens = random_tokens(2, 16)
    first = next(iter(statistics(network, tokens)))
    assert isinstance(first, LayerStatistics)
    for site, parts in direct_moments(network, tokens)[0].items():
        X = np.concatenate(parts)  # type: ignore[call-overload]
        np.testing.assert_allclose(
            first.hessians[ROLE_OF_SITE[site]], X.T @ X / len(X), rtol=1e-4, atol=1e-5
        )


def test_moments_for_encoding_are_shrunk_by_how_many_tokens_count(network: OriginalNetwork) -> None:
    """Tokens that all but one count little for are few."""
    tokens, weights = random_tokens(3, 20), np.full(60, 1e-4, np.float32)
    weights[7] = 1
    layers = tuple(
        {role: Importance(weights, np.zeros(64, np.float32)) for role in LINEAR_ROLES}
        for _ in range(2)
    )
    head = Importance(np.zeros(60, np.float32), np.zeros(64, np.float32))
    for guidance, samples in (
        (None, 60.0),
        (Guidance(layers, head, head.weights), effective_samples(np.sqrt(weights))),
    ):
        as_they_are = next(iter(statistics(network, tokens, guidance)))
        shrunk = next(iter(statistics(network, tokens, guidance, shrunk=True)))
        assert isinstance(as_they_are, LayerStatistics) and isinstance(shrunk, LayerStatistics)
        for role, H in as_they_are.hessians.items():
            expected = H.copy()  # matrices may share one
            shrink(expected, samples)
            np.testing.assert_array_equal(shrunk.hessians[role], expected)


def test_tokens_count_by_their_weights(network: OriginalNetwork) -> None:
    tokens, rng = random_tokens(3, 20), np.random.default_rng(1)
    nothing = Importance(np.zeros(60, np.float32), np.zeros(64, np.float32))
    layers = tuple(
        {
            role: replace(nothing, weights=rng.random(60).astype(np.float32) ** 4)
            for role in LINEAR_ROLES
        }
        for _ in range(2)
    )
    found = list(statistics(network, tokens, Guidance(layers, nothing, nothing.weights)))
    for layer, expected in zip(found, direct_moments(network, tokens), strict=False):
        assert isinstance(layer, LayerStatistics)
        for role in LINEAR_ROLES:
            X = np.concatenate(expected[SITE_OF_ROLE[role]])  # type: ignore[call-overload]
            weight = layers[layer.index][role].weights
            root = np.sqrt(weight)
            direct = (X * root[:, None]).T @ X / root.sum()
            np.testing.assert_allclose(layer.hessians[role], direct, rtol=1e-3, atol=1e-5)
    # A head no token counts for has the plain moments.
    plain = list(statistics(network, tokens))[-1]
    assert isinstance(plain, HeadStatistics) and isinstance(found[-1], HeadStatistics)
    np.testing.assert_array_equal(found[-1].hessian, plain.hessian)  # type: ignore[arg-type]


def test_statistics_do_not_depend_on_threads(network: OriginalNetwork) -> None:
    tokens, found = random_tokens(4, 32), []
    for threads in (1, 2):
        _native.set_threads(threads)
        found.append(list(statistics(network, tokens)))
    for one, two in zip(*found, strict=True):
        if isinstance(one, LayerStatistics) and isinstance(two, LayerStatistics):
            for role in LINEAR_ROLES:
                np.testing.assert_array_equal(one.hessians[role], two.hessians[role])
        elif isinstance(one, HeadStatistics) and isinstance(two, HeadStatistics):
            assert one.hessian is not None and two.hessian is not None
            np.testing.assert_array_equal(one.hessian, two.hessian)


def test_memory_of_statistics_grows_by_hidden_states_only(network: OriginalNetwork) -> None:
    def peak_bytes(sequences: int) -> int:
        tokens = random_tokens(sequences, 64)
        tracemalloc.start()
        for _ in statistics(network, tokens):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(16)
    extra = peak_bytes(64) - peak_bytes(32)
    assert extra < 1.5 * 32 * 64 * 4 * 64  # tokens x 4 bytes x hidden


def test_a_text_given_is_what_is_used(tiny_model: Path, network: OriginalNetwork) -> None:
    source, text = open_source(str(tiny_model)), "The old mill has 12 sacks of flour. " * 60
    ids = Text.open(tiny_model).encode(text, special=False)
    tokens = calibration_tokens(source, network, CalibrationOptions(512, text), silent)
    assert tokens.shape == (2, 256)
    np.testing.assert_array_equal(tokens.reshape(-1), ids[:512])


def test_a_text_shorter_than_asked_is_used_whole_sequence_by_sequence(
    tiny_model: Path, network: OriginalNetwork
) -> None:
    source, text = open_source(str(tiny_model)), "mill " * 700
    count = len(Text.open(tiny_model).encode(text, special=False))
    tokens = calibration_tokens(source, network, CalibrationOptions(1 << 20, text), silent)
    assert tokens.shape == (count // 256, 256)


def test_a_text_below_one_sequence_is_refused_with_both_counts(
    tiny_model: Path, network: OriginalNetwork
) -> None:
    source = open_source(str(tiny_model))
    with pytest.raises(InputRefusedError, match=r"--calibration.* has 0 tokens.* 256"):
        calibration_tokens(source, network, CalibrationOptions(512, ""), silent)


def test_calibration_is_never_the_evaluation_text(
    tiny_model: Path, network: OriginalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[object] = []

    def sample(*arguments: object) -> Tokens:
        sampled.append(arguments[1:4])
        return random_tokens(2, 256)

    monkeypatch.setattr(calibrate, "sample_sequences", sample)
    default_text.cache_clear()
    calibration_tokens(open_source(str(tiny_model)), network, CalibrationOptions(512), silent)
    first, opening = [1], Text.open(tiny_model).encode(TEXTS[0], special=True)
    assert sampled == [([first, opening], 256, 0)]  # from the model, starting with its bos
    assert default_text.cache_info().currsize == 0


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_named(seed: int) -> None:
    with pytest.raises(UsageError, match=rf"--seed {seed}: must be 0\.\.4294967295"):
        CalibrationOptions(seed=seed)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--calibration-tokens 255.*256"):
        CalibrationOptions(tokens=255)
