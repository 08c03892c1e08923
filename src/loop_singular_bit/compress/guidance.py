"""How much the loss at the end cares about what each matrix puts out, token by token.

The second-order change of the loss when a matrix's outputs move by dz is about half the sum of
(dl/dz)^2 dz^2, l the loss of tokens drawn from the model itself. Averaged over a matrix's outputs
that is one number a token, the weight of its input in H (GuidedQuant, arXiv 2505.07004;
docs/decisions/0012-guidance.md).

A forward sweep leaves the input of every layer on disk; a backward sweep reads them last to first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.numbers import from_bf16, to_bf16
from loop_singular_bit.compress.forward import HiddenStates, Tokens
from loop_singular_bit.compress.gradients import Block, rms_norm, rms_norm_backward
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.engine.rope import RotaryTable, rotary_table
from loop_singular_bit.engine.sweep import SITE_OF_ROLE
from loop_singular_bit.models.spec import LINEAR_ROLES, Role

Floats = npt.NDArray[np.float32]

ROWS_MAX = 1024  # rows of one step backwards
LOGIT_ROWS = 256  # rows whose logits are in memory at once
PROBE_ROWS = 32  # rows of a probe made together
HEAD_ROWS = 16384  # rows of the head that are float32 at once


@dataclass(frozen=True)
class Importance:
    """What the loss cares about at one matrix.

    weights  float32 [tokens]: mean over the outputs of the squared gradient
    moment   float32 [cols]: mean over tokens of weight x^2, x the input
    """

    weights: Floats
    moment: Floats

    @staticmethod
    def of(weights: Floats, inputs: Floats) -> Importance:
        """Of all tokens at once; inputs [tokens, cols]."""
        return Importance(weights, _moment(weights, inputs) / np.float32(len(weights)))


@dataclass(frozen=True)
class Guidance:
    """layers: by layer and role. head: the expected square, p (1 - p), in place of that of a
    gradient. embedding: float32 [tokens], weights of the rows looked up."""

    layers: tuple[Mapping[Role, Importance], ...]
    head: Importance
    embedding: Floats


def guidance(
    network: OriginalNetwork,
    tokens: Tokens,
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Guidance:
    """Weights of tokens [sequences, length]; hidden states lie in `folder` meanwhile,
    2 x hidden x layers bytes a token."""
    with TemporaryDirectory(prefix="hidden-", dir=folder) as place:
        return _Sweeps(network, tokens, seed, Path(place), progress).run()


@dataclass
class _Sweeps:
    network: OriginalNetwork
    tokens: Tokens
    seed: int
    place: Path
    progress: Callable[[int, int], None]

    def run(self) -> Guidance:
        spec = self.network.spec
        rotary = rotary_table(spec, self.tokens.shape[1])
        grad, head = self._top(self._forward())
        found: list[Mapping[Role, Importance]] = []
        for index in reversed(range(spec.layers)):
            found.append(self._backward(self._block(index, rotary), self._kept(index), grad))
            self.progress(2 * spec.layers - index, 2 * spec.layers)
        return Guidance(tuple(reversed(found)), head, _mean_square(grad))

    def _forward(self) -> Floats:
        """Hidden states after the last layer; keeps those before each."""
        layers, states = self.network.spec.layers, HiddenStates(self.network, self.tokens)
        for index in range(layers):
            self._keep(index, states.x)
            states.pass_layer(self.network.layer(index))
            self.progress(index + 1, 2 * layers)
        return states.x

    def _block(self, index: int, rotary: RotaryTable) -> Block:
        layer = self.network.layer(index)
        return Block(self.network.spec, layer, rotary, self.tokens.shape[1])

    def _parts(self) -> Iterator[slice]:
        """Rows of whole sequences, ROWS_MAX at most. One part after the other: the BLAS has threads
        of its own, and two parts at once wait for each other in it."""
        length = int(self.tokens.shape[1])
        return _slices(self.tokens.size, max(1, ROWS_MAX // length) * length)

    def _backward(self, block: Block, states: Floats, grad: Floats) -> Mapping[Role, Importance]:
        """Turns `grad` into the gradient before the layer."""
        weights = {role: np.empty(len(grad), np.float32) for role in LINEAR_ROLES}
        moments: dict[Role, Floats] = {}
        for rows in self._parts():
            _after, tape = block.forward(states[rows])
            before, outputs = block.backward(grad[rows], tape)
            for role, of_output in outputs.items():
                weights[role][rows] = _mean_square(of_output)
                found = _moment(weights[role][rows], tape.inputs[SITE_OF_ROLE[role]])
                moments[role] = moments[role] + found if role in moments else found
            grad[rows] = before  # last: `outputs` looks at the rows it replaces
        count = np.float32(len(grad))
        return {role: Importance(weights[role], moments[role] / count) for role in LINEAR_ROLES}

    def _top(self, states: Floats) -> tuple[Floats, Importance]:
        """Gradient with respect to the final hidden states; turns `states` into the head's
        inputs."""
        norm, eps = self.network.final_norm, self.network.spec.norm_eps
        grad, weights = np.empty_like(states), np.empty(len(states), np.float32)
        for rows in _slices(len(states), LOGIT_ROWS):
            normed = rms_norm(states[rows], norm, eps)
            share = _softmax(self._logits(normed))
            weights[rows] = (1 - np.einsum("tv,tv->t", share, share)) / share.shape[1]
            generator = np.random.Generator(np.random.Philox(key=[self.seed, rows.start]))
            probe = self._head_backward(_fisher_probe(share, generator))
            grad[rows] = rms_norm_backward(probe, states[rows], norm, eps)
            states[rows] = normed
        return grad, Importance.of(weights, states)

    def _logits(self, normed: Floats) -> Floats:
        """[T, vocab], some rows of the head at a time."""
        out = np.empty((len(normed), self.network.spec.vocab), np.float32)
        for part, W in self._head_parts():
            out[:, part] = normed @ W.T
        return out

    def _head_backward(self, grad: Floats) -> Floats:
        """[T, hidden] from the gradient with respect to the logits [T, vocab]."""
        parts = (grad[:, part] @ W for part, W in self._head_parts())
        return sum(parts, np.zeros((len(grad), self.network.spec.hidden), np.float32))

    def _head_parts(self) -> Iterator[tuple[slice, Floats]]:
        head = self.network.head
        for start in range(0, head.rows, HEAD_ROWS):
            stop = min(start + HEAD_ROWS, head.rows)
            yield slice(start, stop), head.dense_rows(start, stop)

    def _keep(self, index: int, states: Floats) -> None:
        to_bf16(states).tofile(self.place / str(index))

    def _kept(self, index: int) -> Floats:
        path = self.place / str(index)
        flat = np.fromfile(path, np.uint16)
        path.unlink()
        return from_bf16(flat.reshape(self.tokens.size, -1))


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _mean_square(x: Floats) -> Floats:
    """[T] of rows [T, cols]."""
    return np.asarray(np.einsum("tc,tc->t", x, x) / np.float32(x.shape[1]), np.float32)


def _moment(weights: Floats, x: Floats) -> Floats:
    """Sum over rows of weight x^2 [cols]."""
    return np.asarray(weights @ np.square(x), np.float32)


def _softmax(scores: Floats) -> Floats:
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def _fisher_probe(share: Floats, generator: np.random.Generator) -> Floats:
    """Random z [T, vocab] with E[z z^T] = diag(p) - p p^T, the Fisher information of the logits p;
    z takes the place of `share`.

    The gradient p - onehot(y) of a drawn token y has the same second moment, but where the model
    is sure a draw is nearly always worth nothing and seldom everything; here every draw is typical.
    """
    for start in range(0, len(share), PROBE_ROWS):
        part = share[start : start + PROBE_ROWS]
        bits = np.frombuffer(generator.bytes(-(-part.size // 8)), np.uint8)
        signs = np.unpackbits(bits, count=part.size).reshape(part.shape)
        z = np.sqrt(part)
        np.negative(z, out=z, where=signs.view(bool))
        part *= -z.sum(axis=1, keepdims=True)
        part += z
    return share
