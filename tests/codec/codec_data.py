"""Small matrices, transforms and independent arithmetic for the codec's tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec.numbers import from_bf16, to_bf16
from loop_singular_bit.codec.outliers import Outliers, extract
from loop_singular_bit.codec.rotation import InputTransform

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.uint16] | npt.NDArray[np.float32]

DTYPES = ("f16", "bf16", "f32")


def gaussian(rows: int, cols: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def stored_as(W: Floats, dtype: str) -> Stored:
    """W as a checkpoint of that type stores it."""
    if dtype == "f32":
        return W.astype(np.float32)
    return to_bf16(W) if dtype == "bf16" else W.astype(np.float16).view(np.uint16)


def flat_transform(cols: int, seed: int = 1) -> InputTransform:
    return InputTransform(np.ones(cols, np.float32), seed)


def scaled_transform(cols: int, seed: int = 1) -> InputTransform:
    """Channel scales of about 0.5..2, as a record stores them."""
    power = np.random.default_rng(seed).uniform(-1, 1, cols)
    return InputTransform(from_bf16(to_bf16(np.exp2(power).astype(np.float32))), seed)


def random_outliers(rows: int, cols: int, share: float, dtype: str, seed: int = 5) -> Outliers:
    mask = np.random.default_rng(seed).random((rows, cols)) < share
    return extract(mask, stored_as(10 * gaussian(rows, cols, seed), dtype), dtype)


def correlated(cols: int, rho: float = 0.9, seed: int = 3) -> Floats:
    """E[x x^T] of neighbours that resemble each other, with unequal power."""
    distance = np.abs(np.subtract.outer(np.arange(cols), np.arange(cols)))
    power = np.exp(0.5 * np.random.default_rng(seed).standard_normal(cols))
    return (rho**distance * power[:, None] * power).astype(np.float32)


def lost(W: npt.NDArray[np.floating], coded: npt.NDArray[np.floating]) -> float:
    """||W - W'||^2 / ||W||^2."""
    exact = W.astype(np.float64)
    return float(((exact - coded) ** 2).sum() / (exact**2).sum())
