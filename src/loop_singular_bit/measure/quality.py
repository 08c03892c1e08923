"""Perplexity, divergence and agreement of two networks over the same tokens, with errors.

Loss = 100 (PPL/PPL0 - 1). Standard errors come from means over blocks of consecutive tokens, which
carry the correlation between neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.runtime import Engine, usable_cores
from loop_singular_bit.errors import InputRefusedError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

BLOCK_TOKENS = 64
LOGIT_ROWS = 64  # rows whose distributions are in memory at once
THREAD_ROWS = 8  # rows that one thread compares at once


@dataclass(frozen=True)
class Quality:
    """What a network loses against a reference on `tokens` predicted tokens.

    perplexity, perplexity_original       exp of the mean negative log-likelihood
    perplexity_stderr                     standard error of `perplexity`
    quality_loss, quality_loss_stderr     percent; the error is of the paired difference
    kl_*                                  KL(original || network) a token, in nats
    top1_agreement                        share of tokens with the same most likely next token
    """

    tokens: int
    perplexity: float
    perplexity_stderr: float
    perplexity_original: float
    quality_loss: float
    quality_loss_stderr: float
    kl_mean: float
    kl_stderr: float
    kl_median: float
    kl_p999: float
    top1_agreement: float


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of one network alone."""

    tokens: int
    perplexity: float
    perplexity_stderr: float


def windows(ids: list[int], context: int, tokens: int) -> Tokens:
    """[count, context + 1] consecutive windows that predict at least `tokens` tokens in all.

    Raises InputRefusedError when the text is too short, with both counts.
    """
    if context < 2 or tokens < 1:
        raise InputRefusedError(f"context {context} and tokens {tokens} must be at least 2 and 1")
    count = -(-tokens // context)
    needed = count * context + 1
    if len(ids) < needed:
        raise InputRefusedError(
            f"the evaluation text has {len(ids)} tokens, {needed} are needed: lower --tokens"
        )
    starts = np.arange(count)[:, None] * context
    found: Tokens = np.asarray(ids, np.int64)[starts + np.arange(context + 1)]
    return found


def _log_softmax(logits: Floats) -> Floats:
    logits -= logits.max(axis=1, keepdims=True)
    total = np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)
    logits -= np.log(total).astype(np.float32)
    return logits


def _block_error(values: Doubles) -> float:
    """Standard error of the mean, from means over blocks of BLOCK_TOKENS."""
    blocks = [part.mean() for part in np.array_split(values, max(2, len(values) // BLOCK_TOKENS))]
    return float(np.std(blocks, ddof=1) / np.sqrt(len(blocks)))


def _rows(context: int) -> list[slice]:
    return [slice(s, min(s + LOGIT_ROWS, context)) for s in range(0, context, LOGIT_ROWS)]


class Scorer(Protocol):
    """Whatever predicts next tokens: a network of ours, or another program."""

    def scores(self, ids: list[int], parts: Sequence[slice]) -> Iterator[Floats]:
        """Logits float32 [rows, vocab] after each of `ids`, part by part; the caller may change
        them."""
        ...


class EngineScorer:
    """An engine, on windows of up to its context.

    keep: the last hidden states of every window stay (4 x hidden bytes a token), so that a
    reference that is asked again runs only its head again.
    """

    def __init__(self, engine: Engine, keep: bool = False) -> None:
        self._engine = engine
        self._kept: dict[tuple[int, ...], Floats] | None = {} if keep else None

    def scores(self, ids: list[int], parts: Sequence[slice]) -> Iterator[Floats]:
        x = self._hidden(ids)
        for part in parts:
            yield self._engine.logits(x[part])

    def _hidden(self, ids: list[int]) -> Floats:
        if self._kept is None:
            return self._engine.hidden(ids, 0, 0)
        key = tuple(ids)
        if key not in self._kept:
            self._kept[key] = self._engine.hidden(ids, 0, 0)
        return self._kept[key]


class NetworkScorer(EngineScorer):
    """A network that is all in memory, on windows of up to `context` tokens; a window is one
    sweep."""

    def __init__(
        self, network: Network, context: int, kv_bits: str = "16", keep: bool = False
    ) -> None:
        super().__init__(Engine(network, 1, context, context, kv_bits), keep)


def perplexity(
    scorer: Scorer,
    tokens: Tokens,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Perplexity:
    """Perplexity over windows [count, context + 1]."""
    count, context = tokens.shape[0], tokens.shape[1] - 1
    rows, losses = _rows(context), []
    for index, window in enumerate(tokens):
        for part, logits in zip(rows, scorer.scores(window[:-1].tolist(), rows), strict=True):
            scores = _log_softmax(logits)
            losses.append(-scores[np.arange(len(scores)), window[1:][part]].astype(np.float64))
        progress(index + 1, count)
    nll = np.concatenate(losses)
    found = float(np.exp(nll.mean()))
    return Perplexity(len(nll), found, found * _block_error(nll))


def compare(
    networks: Sequence[Network],
    original: Network,
    tokens: Tokens,
    progress: Callable[[int, int], None] = lambda done, total: None,
    kv_bits: str = "16",
) -> list[Quality]:
    """Quality of each network against `original` over windows [count, context + 1].

    kv_bits: of the networks' KV caches; the original's has 16.

    Raises InputRefusedError when they do not share a vocabulary size.
    """
    for network in networks:
        check_vocabulary(network.spec.vocab, original.spec.vocab)
    context = tokens.shape[1] - 1
    scorers = [NetworkScorer(network, context, kv_bits) for network in networks]
    reference = NetworkScorer(original, context)
    return [summary(found) for found in compare_tokens(scorers, reference, tokens, progress)]


def check_vocabulary(found: int, expected: int) -> None:
    """Raises InputRefusedError when an artefact does not share the size of its original's."""
    if found != expected:
        raise InputRefusedError(f"--against: vocabulary of {expected}, the artefact has {found}")


def compare_tokens(
    scorers: Sequence[Scorer],
    reference: Scorer,
    tokens: Tokens,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Doubles]:
    """[4, N] for each scorer: loss of the scorer, of the reference, KL, same top token, for every
    predicted token of windows [count, context + 1]. `summary` takes them, joined or not."""
    count, context = tokens.shape[0], tokens.shape[1] - 1
    rows = _rows(context)
    parts: list[list[Doubles]] = [[] for _ in scorers]
    with ThreadPoolExecutor(usable_cores()) as pool:
        for index, window in enumerate(tokens):
            ids, wanted = window[:-1].tolist(), window[1:]
            streams = [each.scores(ids, rows) for each in (reference, *scorers)]
            for part, logits, *others in zip(rows, *streams, strict=True):
                figures = _part_figures(pool, logits, others, wanted[part])
                for found, of_scorer in zip(parts, figures, strict=True):
                    found.append(of_scorer)
            progress(index + 1, count)
    return [np.concatenate(part, axis=1) for part in parts]


def _part_figures(
    pool: Executor, reference: Floats, others: Sequence[Floats], wanted: Tokens
) -> list[Doubles]:
    """[4, N] of each of `others`: logits, like `reference`. A vocabulary makes this as dear as the
    layers, so that rows are shared among threads."""

    def some(start: int) -> list[Doubles]:
        rows = slice(start, start + THREAD_ROWS)
        expected = _log_softmax(reference[rows])
        weight = np.exp(expected)
        return [
            _token_figures(_log_softmax(scores[rows]), expected, weight, wanted[rows])
            for scores in others
        ]

    found = pool.map(some, range(0, len(wanted), THREAD_ROWS))
    return [np.concatenate(pieces, axis=1) for pieces in zip(*found, strict=True)]


def _token_figures(scores: Floats, reference: Floats, weight: Floats, wanted: Tokens) -> Doubles:
    """[4, N]: loss of the network, of the original, KL, same top token. weight: exp(reference)."""
    each = np.arange(len(wanted))
    # Terms are float32 (both logs are), the sum over the vocabulary is float64.
    kl = np.einsum("rv,rv->r", weight, reference - scores, dtype=np.float64)
    same = scores.argmax(axis=1) == reference.argmax(axis=1)
    return np.stack(
        [-scores[each, wanted].astype(np.float64), -reference[each, wanted].astype(np.float64),
         kl, same.astype(np.float64)]
    )  # fmt: skip


def summary(figures: Doubles) -> Quality:
    """What the figures [4, N] of `compare_tokens` come to."""
    nll, nll0, kl, same = figures
    ratio = float(np.exp((nll - nll0).mean()))
    found = float(np.exp(nll.mean()))
    return Quality(
        tokens=len(nll),
        perplexity=found,
        perplexity_stderr=found * _block_error(nll),
        perplexity_original=float(np.exp(nll0.mean())),
        quality_loss=100 * (ratio - 1),
        quality_loss_stderr=100 * ratio * _block_error(nll - nll0),
        kl_mean=float(kl.mean()),
        kl_stderr=_block_error(kl),
        kl_median=float(np.median(kl)),
        kl_p999=float(np.quantile(kl, 0.999)),
        top1_agreement=float(same.mean()),
    )
