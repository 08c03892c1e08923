"""From a layer and its statistics to its records: the same steps for every matrix of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.codecs import Codec, InputStatistics, Planes
from loop_singular_bit.codec.feedback import damped, feedback_panels
from loop_singular_bit.codec.numbers import from_bf16, from_pattern, to_bf16
from loop_singular_bit.codec.outliers import select
from loop_singular_bit.codec.planes import CHUNK_ROWS, EncodeReport
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import DenseWeight, Weight

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.uint16] | npt.NDArray[np.float32]

DAMPING = 0.01


@dataclass(frozen=True)
class Matrix:
    """A matrix as stored: patterns or float32 [rows, cols], "f16" | "bf16" | "f32".

    H  [cols, cols] of its inputs, in the original basis, where known
    """

    name: str
    data: Stored
    dtype: str
    H: Floats | None = None


def original_matrix(name: str, weight: Weight, H: Floats | None = None) -> Matrix:
    """A matrix of the original network, as it was stored."""
    if not isinstance(weight, DenseWeight):
        raise TypeError(f"{name} is not a matrix of an original")
    return Matrix(name, weight.data, weight.kind.name.lower(), H)  # type: ignore[arg-type]


@dataclass(frozen=True)
class EncodedInput:
    """Matrices that share an input: their weights, and its rotation where one is used.

    absolute_errors: sum of |W - W'| of each matrix, in the original basis
    """

    name: str
    transform: InputTransform | None
    weights: dict[str, Weight]
    reports: dict[str, EncodeReport]
    absolute_errors: dict[str, float]


# By (name of the input, seed, block, outlier ratios): the statistics of its matrices by name, kept
# for artefacts made side by side.
SharedStatistics = dict[
    tuple[str, int, int, tuple[float, ...]], tuple[InputTransform, dict[str, InputStatistics]]
]


def encode_input(
    name: str,
    matrices: list[Matrix],
    codecs: Mapping[str, Codec],
    seed: int,
    shared: SharedStatistics | None = None,
) -> EncodedInput:
    """Encodes all matrices that read the input `name`.

    shared: statistics found there are used again, and new ones are left there.
    """
    rotated = [(m, c) for m in matrices if isinstance(c := codecs[m.name], Planes)]
    transform: InputTransform | None = None
    statistics: dict[str, InputStatistics] = {}
    if rotated:
        transform, statistics = _input_statistics(name, rotated, seed, shared)
    weights: dict[str, Weight] = {}
    reports: dict[str, EncodeReport] = {}
    errors: dict[str, float] = {}
    for matrix in matrices:
        weight, reports[matrix.name] = codecs[matrix.name].encode(
            matrix.data, matrix.dtype, statistics.get(matrix.name)
        )
        weights[matrix.name] = weight
        errors[matrix.name] = absolute_error(weight, matrix)
    return EncodedInput(name, transform, weights, reports, errors)


def absolute_error(weight: Weight, matrix: Matrix) -> float:
    """Sum of |W - W'| of an encoded matrix and the one as stored, some rows at a time."""
    total = 0.0
    for start in range(0, weight.rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, weight.rows)
        lost = weight.dense_rows(start, stop)
        lost -= from_pattern(matrix.data[start:stop], matrix.dtype)
        total += float(np.abs(lost).sum(dtype=np.float64))
    return total


def _input_statistics(
    name: str,
    matrices: list[tuple[Matrix, Planes]],
    seed: int,
    shared: SharedStatistics | None,
) -> tuple[InputTransform, dict[str, InputStatistics]]:
    """The transform of an input, and the statistics of each of its matrices in that basis."""
    block = min(codec.options.block for _, codec in matrices)
    key = name, seed, block, tuple(codec.outlier_ratio for _, codec in matrices)
    if shared is not None and key in shared:
        return shared[key]
    transform = InputTransform(channel_scale(matrices), input_seed(name, seed))
    of_array: dict[int, InputStatistics] = {}
    for matrix, _ in matrices:
        if id(matrix.H) not in of_array:  # matrices may share one H
            of_array[id(matrix.H)] = _factored(transform, matrix.H, block)
    found = transform, {matrix.name: of_array[id(matrix.H)] for matrix, _ in matrices}
    if shared is not None:
        shared[key] = found
    return found


def _factored(transform: InputTransform, H: Floats | None, block: int) -> InputStatistics:
    if H is None:
        return InputStatistics(transform)
    rotated = damped(transform.hessian(H), DAMPING)
    return InputStatistics(transform, rotated, feedback_panels(rotated, block))


def channel_scale(matrices: list[tuple[Matrix, Planes]]) -> Floats:
    """s_in [cols]: root mean square of each input's weights over all matrices, outliers left out.

    With ideal error feedback the loss is proportional to mean(||W_j / s_j||^2) geomean(s_j^2),
    least when every scaled column has the same norm. Normalised to a geometric mean of 1.
    """
    power = np.zeros(matrices[0][0].data.shape[1])
    for matrix, codec in matrices:
        W = from_pattern(matrix.data, matrix.dtype)
        W[select(W, codec.outlier_ratio)] = 0
        power += np.einsum("rc,rc->c", W, W, dtype=np.float64)
    power = np.maximum(power, power.max() * 1e-8 if power.max() > 0 else 1.0)
    log_scale = 0.5 * np.log(power)
    scale = np.exp(log_scale - log_scale.mean()).astype(np.float32)
    return from_bf16(to_bf16(scale))


def input_seed(name: str, seed: int) -> int:
    """A seed for the signs of one input, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
