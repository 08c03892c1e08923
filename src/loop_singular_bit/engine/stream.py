"""Matrices larger than memory: their bytes pass by, in file order, while a sweep multiplies.

What is small stays in memory: norms, biases, rotations and the scales of rows. The rest of a layer,
and the head, is cut into spans of whole extents, and a matrix is multiplied extent by extent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.program import Program
from loop_singular_bit.codec.records import unpack_frame, unpack_outliers, unpack_weight
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import InputRows, PlanesWeight, multiply
from loop_singular_bit.container import ContainerReader, Record, Span
from loop_singular_bit.engine.ring import Ring

Floats = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SPAN_BYTES = 4 * 1024 * 1024  # read in one go where single extents are not larger


def streamed_extents(kind: str, extents: Iterable[str]) -> list[list[str]]:
    """The extents of a matrix that stream, in file order, grouped where they are used together."""
    if kind != "planes":
        return [list(extents)]
    names = list(extents)
    tiles = [[name] for name in names if name.startswith("tiles")]
    outliers = [name for name in names if name.startswith("outlier")]
    return [*tiles, outliers] if outliers else tiles


def cut(sizes: Sequence[int], most: int = SPAN_BYTES) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) of consecutive items whose sizes add up to at most `most`, or of one."""
    start, total = 0, 0
    for number, size in enumerate(sizes):
        if total and total + size > most:
            yield start, number
            start, total = number, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)


def plan_spans(reader: ContainerReader, records: Sequence[Record]) -> list[Span]:
    """Spans over what streams of the matrices of one run."""
    groups = [
        [(record.name, name) for name in group]
        for record in records
        for group in streamed_extents(record.kind, (extent.name for extent in record.extents))
    ]
    whole = [reader.span(group[0], group[-1]) for group in groups]
    sizes = [span.end - span.offset for span in whole]
    return [reader.span(groups[start][0], groups[stop - 1][-1]) for start, stop in cut(sizes)]


class Stream:
    """The bytes of a sweep: the spans of the layers, then those of the head."""

    def __init__(self, ring: Ring, layers: Sequence[Span], head: Sequence[Span]) -> None:
        self._ring = ring
        self._layers = range(len(layers))
        self._head = range(len(layers), len(layers) + len(head))
        self._places = {
            (piece.record, piece.extent.name): (number, at)
            for number, span in enumerate([*layers, *head])
            for at, piece in enumerate(span.pieces)
        }
        self._current = -1
        self._views: tuple[U8, ...] = ()

    def close(self) -> None:
        """Stops reading ahead."""
        self._ring.close()

    def begin_layers(self, head_follows: bool) -> None:
        """A sweep over the layers starts; reading goes on to what comes after it."""
        head = self._head if head_follows else ()
        self._begin([*self._layers, *head, *self._layers])

    def begin_head(self) -> None:
        """A pass over the head starts."""
        self._begin([*self._head, *self._layers])

    def read_through(self) -> None:
        """Reads what a sweep over layers and head reads, and multiplies nothing."""
        self.begin_layers(head_follows=True)
        for number in (*self._layers, *self._head):
            self._ring.take(number)

    def view(self, record: str, extent: str) -> U8:
        """Bytes of an extent, valid until one of another span is asked for; in file order."""
        number, at = self._places[record, extent]
        if number != self._current:
            self._views = self._ring.take(number)
            self._current = number
        return self._views[at]

    def _begin(self, order: list[int]) -> None:
        self._current, self._views = -1, ()
        self._ring.expect(order)


class StreamedPlanes:
    """A matrix of planes; a stream brings its tiles and outliers."""

    correction = None  # the outliers are added as they come

    def __init__(self, record: Record, frame: PlanesWeight, stream: Stream) -> None:
        self.rows = frame.rows
        self._frame, self._record = frame, record
        self._view = partial(stream.view, record.name)
        self._checked = False  # outliers are looked through the first time they pass

    def multiply(self, inputs: InputRows, out: Floats) -> None:
        """Records out = x W^T, as the bytes come."""
        packed, x = inputs.packed(self._frame.transform), inputs.x
        inputs.program.between(lambda rows: self._multiply(packed, x[:rows], out[:rows]))

    def _multiply(self, packed: _native.PackedRows, x: Floats, out: Floats) -> None:
        for number, (name, _) in enumerate(self._frame.tiling.extent_bytes()):
            start, part = self._frame.extent(number, self._view(name))
            part.multiply_rows(packed, out, start)
        outliers = unpack_outliers(
            self._record.name, self._record.attributes, self._view, checked=self._checked
        )
        if outliers is not None:
            self._checked = True
            outliers.add_product_now(x, out)


class StreamedWeight:
    """A matrix of another kind; a stream brings all of it at once."""

    correction = None

    def __init__(self, record: Record, stream: Stream) -> None:
        self.rows = int(record.attributes["rows"])
        self._record = record
        self._view = partial(stream.view, record.name)

    def multiply(self, inputs: InputRows, out: Floats) -> None:
        """Records out = x W^T, when the bytes are there."""
        x = inputs.x
        inputs.program.between(lambda rows: self._multiply(x[:rows], out[:rows]))

    def _multiply(self, x: Floats, out: Floats) -> None:
        record, places = self._record, np.zeros(len(x), np.int32)
        weight = unpack_weight(record.name, record.kind, record.attributes, self._view, {})
        program, inputs = Program(len(x)), InputRows(1, x.shape[1])
        inputs.load(program, x)
        multiply(inputs, [(weight, out)])
        program.run_steps(places, places)


def streamed_matrix(
    reader: ContainerReader,
    record: Record,
    transforms: Mapping[str, InputTransform],
    stream: Stream,
) -> StreamedPlanes | StreamedWeight:
    """A matrix of the file; what of it stays in memory is read."""
    if record.kind != "planes":
        return StreamedWeight(record, stream)
    read = partial(reader.read, record.name)
    return StreamedPlanes(
        record, unpack_frame(record.name, record.attributes, read, transforms), stream
    )
