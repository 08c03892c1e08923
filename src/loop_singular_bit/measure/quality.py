"""Perplexity, divergence and agreement of two networks over the same tokens, with errors.

Loss = 100 (PPL/PPL0 - 1). Standard errors come from means over blocks of consecutive tokens, which
carry the correlation between neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.runtime import Engine
from loop_singular_bit.errors import InputRefusedError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

BLOCK_TOKENS = 64
LOGIT_ROWS = 64  # rows whose distributions are in memory at once


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


def windows(ids: list[int], context: int, tokens: int) -> npt.NDArray[np.int64]:
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
    found: npt.NDArray[np.int64] = np.asarray(ids, np.int64)[starts + np.arange(context + 1)]
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


def perplexity(
    network: Network,
    tokens: npt.NDArray[np.int64],
    progress: Callable[[int, int], None] = lambda done, total: None,
    kv_bits: int = 16,
) -> Perplexity:
    """Perplexity over windows [count, context + 1], with a KV cache of `kv_bits`."""
    count, context = tokens.shape[0], tokens.shape[1] - 1
    engine = Engine(network, 1, context, context, kv_bits)
    losses = []
    for index, window in enumerate(tokens):
        x = engine.hidden(window[:-1].tolist(), 0, 0)
        for rows in _rows(context):
            scores = _log_softmax(engine.logits(x[rows]))
            losses.append(-scores[np.arange(len(scores)), window[1:][rows]].astype(np.float64))
        progress(index + 1, count)
    nll = np.concatenate(losses)
    found = float(np.exp(nll.mean()))
    return Perplexity(len(nll), found, found * _block_error(nll))


def compare(
    networks: Sequence[Network],
    original: Network,
    tokens: npt.NDArray[np.int64],
    progress: Callable[[int, int], None] = lambda done, total: None,
    kv_bits: int = 16,
) -> list[Quality]:
    """Quality of each network against `original` over windows [count, context + 1].

    kv_bits: of the networks' KV caches; the original's has 16.

    Raises InputRefusedError when they do not share a vocabulary size.
    """
    expected = original.spec.vocab
    for network in networks:
        if network.spec.vocab != expected:
            raise InputRefusedError(
                f"--against: vocabulary of {expected}, the artefact has {network.spec.vocab}"
            )
    count, context = tokens.shape[0], tokens.shape[1] - 1
    engines = [Engine(network, 1, context, context, kv_bits) for network in networks]
    reference_engine = Engine(original, 1, context, context)
    parts: list[list[Doubles]] = [[] for _ in networks]
    for index, window in enumerate(tokens):
        inputs = window[:-1].tolist()
        x0 = reference_engine.hidden(inputs, 0, 0)
        hidden = [engine.hidden(inputs, 0, 0) for engine in engines]
        for rows in _rows(context):
            reference = _log_softmax(reference_engine.logits(x0[rows]))
            weight = np.exp(reference)
            for engine, x, part in zip(engines, hidden, parts, strict=True):
                scores = _log_softmax(engine.logits(x[rows]))
                part.append(_token_figures(scores, reference, weight, window[1:][rows]))
        progress(index + 1, count)
    return [_summary(np.concatenate(part, axis=1)) for part in parts]


def _token_figures(
    scores: Floats, reference: Floats, weight: Floats, wanted: npt.NDArray[np.int64]
) -> Doubles:
    """[4, N]: loss of the network, of the original, KL, same top token. weight: exp(reference)."""
    each = np.arange(len(wanted))
    # Terms are float32 (both logs are), the sum over the vocabulary is float64.
    kl = np.einsum("rv,rv->r", weight, reference - scores, dtype=np.float64)
    same = scores.argmax(axis=1) == reference.argmax(axis=1)
    return np.stack(
        [-scores[each, wanted].astype(np.float64), -reference[each, wanted].astype(np.float64),
         kl, same.astype(np.float64)]
    )  # fmt: skip


def _summary(figures: Doubles) -> Quality:
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
