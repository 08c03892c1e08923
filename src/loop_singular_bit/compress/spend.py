"""Spending bytes on planes where they save most, by what each matrix is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from loop_singular_bit.codec.codecs import Codec, Planes
from loop_singular_bit.codec.planes import distortion
from loop_singular_bit.models.spec import ModelSpec, TensorSpec, all_tensors


def predicted_nats(codecs: Mapping[str, Codec], sensitivity: Mapping[str, float]) -> float:
    """Nats a token that all matrices with planes cost together, to second order.

    sensitivity: of each matrix at a relative error of 1 (compress/sensitivity.py).
    """
    return sum(
        sensitivity[name] * distortion(codec.options.window, codec.options.planes)
        for name, codec in codecs.items()
        if isinstance(codec, Planes)
    )


def spent(
    spec: ModelSpec,
    least: Mapping[str, Codec],
    nbytes: int | None,
    sensitivity: Mapping[str, float],
    most: Mapping[str, int],
    nats: float = 0.0,
) -> dict[str, Codec]:
    """`least` with more planes, up to `most` of each matrix and for at most `nbytes` (None: any
    number), until all matrices are predicted to cost at most `nats`.

    One plane after the other goes to the matrix where a byte saves most: all but the last few are
    placed best, as every further plane of a matrix saves less than the one before.
    """
    codecs, tensors = dict(least), {t.name: t for t in all_tensors(spec)}
    cost, left = predicted_nats(codecs, sensitivity), nbytes
    waiting = [
        _offer(tensors[name], codec, sensitivity[name])
        for name, codec in codecs.items()
        if isinstance(codec, Planes) and codec.options.planes < most[name]
    ]
    heapify(waiting)
    while waiting and cost > nats:
        offer = heappop(waiting)
        if left is not None:
            if offer.nbytes > left:
                continue
            left -= offer.nbytes
        codecs[offer.name], cost = offer.codec, cost + offer.rate * offer.nbytes
        if offer.codec.options.planes < most[offer.name]:
            heappush(waiting, _offer(tensors[offer.name], offer.codec, sensitivity[offer.name]))
    return codecs


@dataclass(frozen=True, order=True)
class _Offer:
    """One more plane for a matrix. rate: nats a byte, negative, so that the best is the least."""

    rate: float
    name: str
    nbytes: int
    codec: Planes = field(compare=False)


def _offer(tensor: TensorSpec, codec: Planes, sensitivity: float) -> _Offer:
    window, planes, (rows, cols) = codec.options.window, codec.options.planes, tensor.shape
    more = replace(codec, options=replace(codec.options, planes=planes + 1))
    before, after = (sum(c.extent_bytes(rows, cols, "f16").values()) for c in (codec, more))
    saved = sensitivity * (distortion(window, planes) - distortion(window, planes + 1))
    return _Offer(-saved / (after - before), tensor.name, after - before, more)
