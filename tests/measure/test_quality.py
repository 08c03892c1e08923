from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import write_tiny_model

from loop_singular_bit.codec.numbers import DenseKind
from loop_singular_bit.codec.weights import DenseWeight, Weight
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.errors import InputRefusedError
from loop_singular_bit.measure import quality
from loop_singular_bit.measure.quality import (
    NetworkScorer,
    compare,
    compare_tokens,
    perplexity,
    summary,
    windows,
)
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]
IDS = [int(i) for i in np.random.default_rng(0).integers(4, 512, 400)]


class WithHead:
    """A network whose head is another matrix."""

    def __init__(self, network: Network, head: npt.NDArray[np.float32]) -> None:
        self._network = network
        self.spec: ModelSpec = network.spec
        self.final_norm = network.final_norm
        self.embedding = network.embedding
        self.resident = network.resident
        self.head: Weight = DenseWeight(DenseKind.F32, head.shape[1], head)

    def layer(self, index: int) -> LayerWeights:
        return self._network.layer(index)

    def begin_layers(self, head_follows: bool) -> None: ...

    def begin_head(self) -> None: ...


@pytest.fixture(scope="module")
def original(tiny_model: Path) -> Network:
    return OriginalNetwork(open_source(str(tiny_model)), 2)


@pytest.fixture(scope="module")
def compressed(tiny_artefact: Path):
    network = ResidentNetwork(tiny_artefact)
    yield network
    network.close()


def random_scores(seed: int, rows: int = 50, vocab: int = 40) -> npt.NDArray[np.float32]:
    return 3 * np.random.default_rng(seed).standard_normal((rows, vocab), np.float32)


def test_network_against_itself_loses_nothing(original: Network) -> None:
    (found,) = compare([original], original, windows(IDS, 100, 300))
    assert found.tokens == 300
    assert abs(found.kl_mean) <= 1e-9
    assert found.kl_p999 <= 1e-9
    assert (found.quality_loss, found.quality_loss_stderr) == (0, 0)
    assert found.top1_agreement == 1
    assert found.perplexity == found.perplexity_original
    assert found.perplexity_stderr > 0


def test_several_networks_are_compared_in_one_pass(original: Network, compressed: Network) -> None:
    tokens = windows(IDS, 100, 200)
    same, lossy = compare([original, compressed], original, tokens)
    assert same.kl_mean == pytest.approx(0, abs=1e-9)
    assert 1e-3 < lossy.kl_mean < 1
    assert lossy.kl_median < lossy.kl_p999
    assert 0.2 < lossy.top1_agreement < 1
    (alone,) = compare([compressed], original, tokens)
    assert alone == lossy
    single = perplexity(NetworkScorer(compressed, 100), tokens)
    assert single.perplexity == pytest.approx(lossy.perplexity, rel=1e-12)


def test_texts_are_summed_up_apart_and_together(original: Network, compressed: Network) -> None:
    texts = [windows(IDS, 100, 100), windows(IDS[200:], 100, 100)]
    reference, scorer = NetworkScorer(original, 100), NetworkScorer(compressed, 100)
    parts = [compare_tokens([scorer], reference, tokens)[0] for tokens in texts]
    (whole,) = compare([compressed], original, np.concatenate(texts))
    assert summary(np.concatenate(parts, axis=1)) == whole
    assert [summary(part).tokens for part in parts] == [100, 100]


def test_a_kept_reference_runs_once(original: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = quality.Engine.hidden

    def counted(engine: quality.Engine, ids: list[int], slot: int, position: int) -> Floats:
        runs.append(len(ids))
        return run(engine, ids, slot, position)

    monkeypatch.setattr(quality.Engine, "hidden", counted)
    kept, tokens = NetworkScorer(original, 100, keep=True), windows(IDS, 100, 200)
    first, again = (compare_tokens([kept], kept, tokens)[0] for _ in range(2))
    assert runs == [100, 100]
    assert np.array_equal(first, again)
    assert first[2].max() <= 1e-9


def test_perplexity_of_a_uniform_network_is_its_vocabulary(original: Network) -> None:
    spec = original.spec
    uniform = WithHead(original, np.zeros((spec.vocab, spec.hidden), np.float32))
    found = perplexity(NetworkScorer(uniform, 100), windows(IDS, 100, 200))
    assert found.perplexity == pytest.approx(spec.vocab, rel=1e-6)
    assert found.perplexity_stderr == pytest.approx(0, abs=1e-4)
    assert found.tokens == 200


def test_perplexity_equals_float64(original: Network) -> None:
    tokens = windows(IDS, 50, 100)
    engine = quality.Engine(original, 1, 50, 50)
    losses = []
    for window in tokens:
        logits = engine.logits(engine.hidden(window[:-1].tolist(), 0, 0)).astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.append(-log_p[np.arange(50), window[1:]])
    found = perplexity(NetworkScorer(original, 50), tokens)
    assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-6)


def test_progress_counts_windows(original: Network) -> None:
    seen: list[tuple[int, int]] = []
    tokens = windows(IDS, 30, 90)
    perplexity(NetworkScorer(original, 30), tokens, lambda done, total: seen.append((done, total)))
    compare([original], original, tokens, lambda done, total: seen.append((done, total)))
    assert seen == 2 * [(1, 3), (2, 3), (3, 3)]


def test_another_vocabulary_is_refused(original: Network, tmp_path: Path) -> None:
    other = open_source(str(write_tiny_model(tmp_path / "m", vocab=520)))
    with pytest.raises(InputRefusedError, match="vocabulary of 520, the artefact has 512"):
        compare([original], OriginalNetwork(other, 0), windows(IDS, 30, 30))


def test_figures_of_given_logits_equal_float64() -> None:
    scores, reference = random_scores(1), random_scores(1) + random_scores(2) / 10
    wanted = np.random.default_rng(3).integers(0, 40, 50)
    log_p, log_q = (
        a.astype(float) - np.log(np.exp(a.astype(float)).sum(axis=1, keepdims=True))
        for a in (scores, reference)
    )
    original = quality._log_softmax(reference.copy())
    found = quality._token_figures(
        quality._log_softmax(scores.copy()), original, np.exp(original), wanted
    )
    each = np.arange(50)
    assert np.allclose(found[0], -log_p[each, wanted], atol=1e-5)
    assert np.allclose(found[1], -log_q[each, wanted], atol=1e-5)
    assert np.allclose(found[2], (np.exp(log_q) * (log_q - log_p)).sum(axis=1), atol=1e-6)
    assert np.array_equal(found[3], scores.argmax(axis=1) == reference.argmax(axis=1))
    assert 0 < found[3].mean() < 1


def test_log_softmax_of_large_logits_is_finite() -> None:
    found = quality._log_softmax(np.array([[1e4, 0.0, 1e4]], np.float32))
    assert found == pytest.approx(np.array([[-np.log(2), -1e4, -np.log(2)]]), rel=1e-3)


def test_summary_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    nll, nll0, kl = rng.exponential(2, (3, 640))
    same = (rng.random(640) < 0.9).astype(float)
    found = summary(np.stack([nll, nll0, kl, same]))
    ratio = np.exp(nll.mean()) / np.exp(nll0.mean())
    blocks = (nll - nll0).reshape(10, 64).mean(axis=1)
    stderr = np.sqrt(((blocks - blocks.mean()) ** 2).sum() / 9 / 10)
    assert found.tokens == 640
    assert found.perplexity == pytest.approx(np.exp(nll.mean()))
    assert found.perplexity_original == pytest.approx(np.exp(nll0.mean()))
    assert found.quality_loss == pytest.approx(100 * (ratio - 1))
    assert found.quality_loss_stderr == pytest.approx(100 * ratio * stderr)
    assert found.kl_mean == pytest.approx(kl.mean())
    assert found.kl_median == pytest.approx(np.median(kl))
    assert found.kl_p999 == pytest.approx(np.sort(kl)[-2:].mean(), rel=0.2)
    assert found.top1_agreement == same.mean()


def autoregressive(rng: np.random.Generator, count: int, keep: float) -> npt.NDArray[np.float64]:
    noise = rng.standard_normal(count)
    values = np.empty(count)
    values[0] = noise[0] / np.sqrt(1 - keep**2)
    for index in range(1, count):
        values[index] = keep * values[index - 1] + noise[index]
    return values


@pytest.mark.parametrize("keep", [0.0, 0.6, 0.8])
def test_standard_error_is_that_of_repeated_draws(keep: float) -> None:
    """Against the spread of the mean over draws of the same process."""
    rng = np.random.default_rng(0)
    draws = [autoregressive(rng, 2048, keep) for _ in range(60)]
    spread = np.std([draw.mean() for draw in draws], ddof=1)
    stated = np.mean([quality._block_error(draw) for draw in draws])
    assert 0.7 < stated / spread < 1.4


def test_standard_error_counts_the_correlation_of_neighbours() -> None:
    """A bootstrap of single tokens takes them for independent and is far too small."""
    rng = np.random.default_rng(1)
    values = autoregressive(rng, 4096, 0.9)
    single = np.std([rng.choice(values, len(values)).mean() for _ in range(200)], ddof=1)
    starts = rng.integers(0, len(values) - 64, (200, 64))
    blocks = values[starts[..., None] + np.arange(64)].mean(axis=(1, 2))
    assert quality._block_error(values) > 2 * single
    assert 0.6 < quality._block_error(values) / np.std(blocks, ddof=1) < 1.6


def test_windows_overlap_by_the_token_that_is_predicted() -> None:
    found = windows(list(range(100)), 10, 25)
    assert found.shape == (3, 11)
    assert found[0].tolist() == list(range(11))
    assert found[1].tolist() == list(range(10, 21))
    assert windows(list(range(11)), 10, 10).shape == (1, 11)


@pytest.mark.parametrize(
    ("count", "context", "tokens", "message"),
    [
        (30, 10, 25, "the evaluation text has 30 tokens, 31 are needed: lower --tokens"),
        (10, 10, 1, "the evaluation text has 10 tokens, 11 are needed: lower --tokens"),
        (30, 1, 25, "context 1 and tokens 25 must be at least 2 and 1"),
        (30, 10, 0, "context 10 and tokens 0 must be at least 2 and 1"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(
    count: int, context: int, tokens: int, message: str
) -> None:
    with pytest.raises(InputRefusedError) as caught:
        windows(list(range(count)), context, tokens)
    assert str(caught.value) == message
