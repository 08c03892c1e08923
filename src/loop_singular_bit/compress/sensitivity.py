"""What each matrix is predicted to cost in divergence, before anything is encoded.

Errors of relative size D, spread evenly over the rotated and scaled weights of a matrix, cost
D / 2 sum_r p_r tr(H) nats a token to second order, with p_r the mean square of row r and H the
guided second moments in that basis. Error feedback leaves the geometric mean of H's eigenvalues in
place of their mean: at most that of the channels' second moments, and FEEDBACK of it as channels
are correlated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.codecs import Planes
from loop_singular_bit.codec.planes import PlaneOptions
from loop_singular_bit.codec.weights import Weight
from loop_singular_bit.compress.allocate import AUTO, CodecOptions
from loop_singular_bit.compress.encode import DAMPING, channel_scale, original_matrix
from loop_singular_bit.compress.guidance import Guidance, Importance
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.source import Source
from loop_singular_bit.compress.spend import OUTLIER_SHARES, Kept
from loop_singular_bit.engine.sweep import SITE_OF_ROLE, InputSite
from loop_singular_bit.models.spec import LINEAR_ROLES, Role

Floats = npt.NDArray[np.float32]

ROWS = 4096  # rows that are float32 at once
# About the medians over the layers of SmolLM2-135M (benches/results/feedback_share.json).
FEEDBACK: Mapping[Role, float] = {
    **dict.fromkeys((*LINEAR_ROLES, Role.HEAD), 0.6), Role.O: 0.38,
}  # fmt: skip


def sensitivities(network: OriginalNetwork, guidance: Guidance) -> dict[str, float]:
    """Nats a token that each matrix costs if its relative error is 1, by name."""
    found = {
        matrix.name: FEEDBACK[matrix.role]
        * _cost(matrix.weight, matrix.scale, guidance.layers[matrix.layer][matrix.role])
        for matrix in scaled_matrices(network)
    }
    return found | _top(network, guidance)


@dataclass(frozen=True)
class ScaledMatrix:
    """A linear matrix and the scale of its inputs [cols] that it is encoded with."""

    layer: int
    role: Role
    weight: Weight
    scale: Floats

    @property
    def name(self) -> str:
        return f"layers.{self.layer}.{self.role.value}"


def scaled_matrices(network: OriginalNetwork) -> Iterator[ScaledMatrix]:
    """Those of every layer; matrices that share an input share its scale."""
    for index in range(network.spec.layers):
        layer = network.layer(index)
        for site in InputSite:
            group = {r: getattr(layer, r.value) for r in LINEAR_ROLES if SITE_OF_ROLE[r] is site}
            scale = _scale(group)
            for role, weight in group.items():
                yield ScaledMatrix(index, role, weight, scale)


def _top(network: OriginalNetwork, guidance: Guidance) -> dict[str, float]:
    """Embedding and head; one that is both costs both."""
    head = network.head
    scale = _scale({Role.HEAD: head})
    as_head = FEEDBACK[Role.HEAD] * _cost(head, scale, guidance.head)
    spec = network.spec
    embedding = network.embedding
    looked_up = float(guidance.embedding.mean(dtype=np.float64))
    as_rows = 0.5 * looked_up * _power(embedding, np.ones(spec.hidden, np.float32)) / spec.vocab
    if spec.tied_head:
        return {"embed": as_head + as_rows}
    return {"embed": as_rows, "head": as_head}


def worth_keeping(source: Source, options: CodecOptions) -> Kept:
    """What outliers hold (`outlier_energy`) where their share is left to the planner."""
    if options.outlier_ratio != AUTO:
        return {}
    return outlier_energy(OriginalNetwork(source, resident_layers(source)))


def outlier_energy(network: OriginalNetwork) -> dict[str, tuple[float, ...]]:
    """The share of the energy of each linear matrix, scaled as it is encoded, that its largest
    weights hold: so many as each of OUTLIER_SHARES says, by name."""
    return {
        matrix.name: _held(matrix.weight.dense_rows(0, matrix.weight.rows), matrix.scale)
        for matrix in scaled_matrices(network)
    }


def _held(W: Floats, scale: Floats) -> tuple[float, ...]:
    """Of ||W diag(1/scale)||^2, what the largest |W| hold. W is overwritten."""
    counts = [round(share * W.size) for share in OUTLIER_SHARES]
    if not counts[-1]:
        return (0.0,) * len(counts)
    magnitude = np.abs(W).ravel()
    largest = np.argpartition(magnitude, W.size - counts[-1])[W.size - counts[-1] :]
    largest = largest[np.argsort(-magnitude[largest], kind="stable")]
    energy = (W.ravel()[largest] / scale[largest % W.shape[1]]).astype(np.float64) ** 2
    held = np.concatenate([[0.0], np.cumsum(energy)])
    W /= scale
    total = float(np.einsum("rc,rc->", W, W, dtype=np.float64))
    return tuple(float(held[count]) / total if total else 0.0 for count in counts)


def _scale(group: Mapping[Role, Weight]) -> Floats:
    codec = Planes(PlaneOptions(1))
    return channel_scale([(original_matrix(r.value, w), codec) for r, w in group.items()])


def _cost(weight: Weight, scale: Floats, importance: Importance) -> float:
    moment = scale.astype(np.float64) ** 2 * importance.moment
    moment += DAMPING * moment.mean()
    left = float(np.exp(np.log(moment).mean())) if moment.all() else 0.0
    return 0.5 * _power(weight, np.float32(1) / scale) * left


def _power(weight: Weight, scale: Floats) -> float:
    """||W diag(scale)||^2, some rows at a time."""
    total = 0.0
    for start in range(0, weight.rows, ROWS):
        W = weight.dense_rows(start, min(start + ROWS, weight.rows)) * scale
        total += float(np.einsum("rc,rc->", W, W, dtype=np.float64))
    return total
