"""Spending bytes on planes and outliers where they save most, by what each matrix is predicted to
cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from types import MappingProxyType

from loop_singular_bit.codec.codecs import Codec, Planes
from loop_singular_bit.codec.planes import distortion
from loop_singular_bit.models.spec import ModelSpec, TensorSpec, all_tensors

# Shares of a matrix that the planner may keep as outliers.
OUTLIER_SHARES = (1e-5, 1e-4, 1e-3, 5e-3)
LEAST_HELD = 0.02  # of the energy: less is not worth a sparse product for every token
# By matrix that may have outliers: the share of its energy that so many hold.
Kept = Mapping[str, Sequence[float]]


def predicted_nats(
    codecs: Mapping[str, Codec], sensitivity: Mapping[str, float], kept: Kept
) -> float:
    """Nats a token that all matrices with planes cost together, to second order.

    sensitivity: of each matrix at a relative error of 1 (compress/sensitivity.py).
    """
    return sum(
        sensitivity[name] * _error(codec, kept.get(name, ()))
        for name, codec in codecs.items()
        if isinstance(codec, Planes)
    )


def _error(codec: Planes, kept: Sequence[float]) -> float:
    """Relative error to be expected: planes see what outliers leave."""
    error = distortion(codec.options.window, codec.options.planes)
    return error * (1 - _held(codec, kept))


def _held(codec: Planes, kept: Sequence[float]) -> float:
    """Share of the energy that its outliers hold, 0 where nothing is known of it."""
    if not kept or not codec.outlier_ratio:
        return 0.0
    return kept[OUTLIER_SHARES.index(codec.outlier_ratio)]


def spent(
    spec: ModelSpec,
    least: Mapping[str, Codec],
    nbytes: int | None,
    sensitivity: Mapping[str, float],
    most: Mapping[str, int],
    nats: float = 0.0,
    kept: Kept = MappingProxyType({}),
) -> dict[str, Codec]:
    """`least` with more planes, up to `most` of each matrix, and more outliers where `kept` names a
    matrix, for at most `nbytes` (None: any number), until all matrices are predicted to cost at
    most `nats`.

    One step after the other goes to the matrix where a byte saves most: all but the last few are
    placed best, as every further plane of a matrix saves less than the one before.
    """
    codecs, tensors = dict(least), {t.name: t for t in all_tensors(spec)}
    cost, left = predicted_nats(codecs, sensitivity, kept), nbytes

    def offers(name: str) -> Iterator[_Offer]:
        codec, shares = codecs[name], kept.get(name, ())
        if isinstance(codec, Planes):
            for more in _steps(codec, most[name], shares):
                yield _offer(tensors[name], codec, more, sensitivity[name], shares)

    waiting = [offer for name in codecs for offer in offers(name)]
    heapify(waiting)
    while waiting and cost > nats:
        offer = heappop(waiting)
        if codecs[offer.name] is not offer.before:
            continue  # another step of the matrix was taken
        if left is not None:
            if offer.nbytes > left:
                continue
            left -= offer.nbytes
        codecs[offer.name], cost = offer.codec, cost + offer.rate * offer.nbytes
        for following in offers(offer.name):
            heappush(waiting, following)
    return codecs


def _steps(codec: Planes, most: int, kept: Sequence[float]) -> Iterator[Planes]:
    """The same codec with one more plane; with each larger share of outliers that holds enough, as
    the first ones cost a count for every row."""
    if codec.options.planes < most:
        yield replace(codec, options=replace(codec.options, planes=codec.options.planes + 1))
    before = _held(codec, kept)
    for share, held in zip(OUTLIER_SHARES, kept, strict=False):
        if share > codec.outlier_ratio and held - before >= LEAST_HELD:
            yield replace(codec, outlier_ratio=share)


@dataclass(frozen=True, order=True)
class _Offer:
    """A step of a matrix. rate: nats a byte, negative, so that the best is the least."""

    rate: float
    name: str
    nbytes: int
    before: Planes = field(compare=False)
    codec: Planes = field(compare=False)


def _offer(
    tensor: TensorSpec, codec: Planes, more: Planes, sensitivity: float, kept: Sequence[float]
) -> _Offer:
    rows, cols = tensor.shape
    before, after = (sum(c.extent_bytes(rows, cols, "f16").values()) for c in (codec, more))
    saved = sensitivity * (_error(codec, kept) - _error(more, kept))
    return _Offer(-saved / (after - before), tensor.name, after - before, codec, more)
