"""Every tensor of a written artefact against the original's, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.planes import CHUNK_ROWS, PROXY_ROWS
from loop_singular_bit.codec.weights import DenseWeight, PlanesWeight, Weight
from loop_singular_bit.compress.calibrate import HeadStatistics, statistics
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.engine.artefact import ArtefactNetwork
from loop_singular_bit.models.spec import TensorSpec, all_tensors, layer_tensors

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorError:
    """One tensor as it was read back.

    encoding        "planes", "raw", ... as a person is told; planes: how many, else 0
    finite          every value is a finite number
    relative_error  ||W - W'||^2 / ||W||^2; None without an original
    proxy_loss      tr(E H E^T) / tr(W H W^T) over PROXY_ROWS evenly spaced rows of every
                    CHUNK_ROWS, H = E[x x^T] of its inputs in the original; None where no H is known
    """

    name: str
    layer: int | None
    encoding: str
    planes: int
    finite: bool
    relative_error: float | None = None
    proxy_loss: float | None = None


def compared_tensors(
    network: ArtefactNetwork, original: OriginalNetwork, tokens: Tokens
) -> Iterator[TensorError]:
    """All tensors in the order of the file. tokens [sequences, length] enter the original, and give
    the H of every input."""
    top = {tensor.name: tensor for tensor in all_tensors(network.spec) if tensor.layer is None}
    if "head" in top:  # tied, the embedding is a head with inputs of its own
        yield _compared(top["embed"], network.matrix("embed"), original.embedding, None)
    for found in statistics(original, tokens):
        if isinstance(found, HeadStatistics):
            yield _vector(top["final_norm"], network.vector("final_norm"), original.final_norm)
            last = top.get("head", top["embed"])
            yield _compared(last, network.matrix(last.name), original.head, found.hessian)
            return
        for tensor in layer_tensors(network.spec, found.index):
            theirs = getattr(found.weights, tensor.role.value)
            if len(tensor.shape) == 1:
                yield _vector(tensor, network.vector(tensor.name), theirs)
            else:
                H = found.hessians[tensor.role]
                yield _compared(tensor, network.matrix(tensor.name), theirs, H)


def checked_tensors(network: ArtefactNetwork) -> Iterator[TensorError]:
    """All tensors, decoded, without an original to compare with."""
    for tensor in all_tensors(network.spec):
        read = network.matrix if len(tensor.shape) == 2 else network.vector
        yield _checked(tensor, read(tensor.name))


def _checked(tensor: TensorSpec, weight: Weight | Floats) -> TensorError:
    if isinstance(weight, np.ndarray):
        return TensorError(tensor.name, tensor.layer, "vector", 0, bool(np.isfinite(weight).all()))
    starts = range(0, weight.rows, CHUNK_ROWS)
    parts = (weight.dense_rows(a, min(a + CHUNK_ROWS, weight.rows)) for a in starts)
    finite = all(bool(np.isfinite(part).all()) for part in parts)
    return TensorError(tensor.name, tensor.layer, *_encoding(weight), finite)


def _vector(tensor: TensorSpec, mine: Floats, theirs: Floats) -> TensorError:
    power = float(np.square(theirs, dtype=np.float64).sum())
    lost = float(np.square(mine - theirs, dtype=np.float64).sum())
    finite = bool(np.isfinite(mine).all())
    return TensorError(tensor.name, tensor.layer, "vector", 0, finite, _ratio(lost, power))


def _compared(tensor: TensorSpec, mine: Weight, theirs: Weight, H: Floats | None) -> TensorError:
    sums, finite = np.zeros(4), True
    for start in range(0, mine.rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, mine.rows)
        W, coded = theirs.dense_rows(start, stop), mine.dense_rows(start, stop)
        finite &= bool(np.isfinite(coded).all())
        error = W - coded
        proxy = slice(None, None, -(-len(W) // PROXY_ROWS))
        weighted = (0.0, 0.0) if H is None else (_trace(error[proxy], H), _trace(W[proxy], H))
        sums += _trace(error), _trace(W), *weighted
    proxy_loss = None if H is None else _ratio(sums[2], sums[3])
    return TensorError(
        tensor.name, tensor.layer, *_encoding(mine), finite, _ratio(sums[0], sums[1]), proxy_loss
    )


def _trace(A: Floats, H: Floats | None = None) -> float:
    """tr(A H A^T), H the identity where it is not given."""
    A = np.ascontiguousarray(A)
    AH = A
    if H is not None:
        AH = np.empty_like(A)
        _native.dense_matmul(0, H, None, A, AH)
    return float(np.einsum("rc,rc->", AH, A, dtype=np.float64))


def _ratio(lost: float, power: float) -> float:
    """A loss where there was nothing to lose is a whole one."""
    return float(lost / power) if power > 0 else float(lost > 0)


def _encoding(weight: Weight) -> tuple[str, int]:
    if isinstance(weight, PlanesWeight):
        return "planes", weight.planes
    assert isinstance(weight, DenseWeight)
    return weight.kind.name.lower(), 0
