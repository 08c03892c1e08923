"""Weights as records of a container and back: docs/format.md, "Payloads".

A record is a kind, attributes of plain values, and named byte ranges. What is read is validated
here before any kernel sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loop_singular_bit.codec import outliers as outliers_module
from loop_singular_bit.codec.numbers import DenseKind, from_bf16, from_pattern, to_bf16
from loop_singular_bit.codec.outliers import Outliers
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.tables import WINDOW_MAX, WINDOW_MIN
from loop_singular_bit.codec.tiling import Tiling
from loop_singular_bit.codec.weights import DenseWeight, PlanesWeight, Weight
from loop_singular_bit.errors import FormatError

Attribute = int | float | str
U8 = npt.NDArray[np.uint8]
ReadExtent = Callable[[str], U8]

_DENSE_NAMES = {
    "raw": (DenseKind.F32, DenseKind.F16, DenseKind.BF16),
    "int8": (DenseKind.I8,),
    "uniform1": (DenseKind.SIGN,),
}
_STORED = {"f32": np.float32, "f16": np.uint16, "bf16": np.uint16}


@dataclass(frozen=True)
class Payload:
    """One record: kind, attributes and the arrays of its extents, in file order."""

    kind: str
    attributes: dict[str, Attribute]
    extents: dict[str, npt.NDArray[np.generic]]


def pack_vector(stored: npt.NDArray[np.uint16] | npt.NDArray[np.float32], dtype: str) -> Payload:
    """A norm gain or bias, in its source type."""
    return Payload("vector", {"dtype": dtype, "count": len(stored)}, {"data": stored})


def pack_transform(transform: InputTransform) -> Payload:
    """The rotation of an input."""
    attributes: dict[str, Attribute] = {"cols": transform.cols, "seed": transform.seed}
    return Payload("input", attributes, {"scale": to_bf16(transform.channel_scale)})


def pack_weight(weight: Weight, input_name: str = "") -> Payload:
    """A matrix. `input_name`: the record of its InputTransform (planes only)."""
    if isinstance(weight, PlanesWeight):
        return _pack_planes(weight, input_name)
    attributes: dict[str, Attribute] = {"rows": weight.rows, "cols": weight.cols}
    extents: dict[str, npt.NDArray[np.generic]] = {"data": weight.data}
    if weight.scale is not None:
        extents["scale"] = to_bf16(weight.scale)
    if weight.outliers is not None:
        _pack_outliers(weight.outliers, attributes, extents)
        return Payload("outlier1", attributes, extents)
    name = next(name for name, kinds in _DENSE_NAMES.items() if weight.kind in kinds)
    if name == "raw":
        attributes["dtype"] = weight.kind.name.lower()
    return Payload(name, attributes, extents)


def _pack_planes(weight: PlanesWeight, input_name: str) -> Payload:
    attributes: dict[str, Attribute] = {
        "rows": weight.rows, "cols": weight.cols, "window": weight.window,
        "planes": weight.planes, "tile_rows": weight.tiling.tile_rows,
        "extent_rows": weight.tiling.extent_rows, "input": input_name,
    }  # fmt: skip
    extents: dict[str, npt.NDArray[np.generic]] = {"scale": to_bf16(weight.row_scale)}
    names = (name for name, _ in weight.tiling.extent_bytes())
    extents |= zip(names, weight.extents, strict=True)
    if weight.outliers is not None:
        _pack_outliers(weight.outliers, attributes, extents)
    return Payload("planes", attributes, extents)


def _pack_outliers(
    outliers: Outliers,
    attributes: dict[str, Attribute],
    extents: dict[str, npt.NDArray[np.generic]],
) -> None:
    attributes["outliers"] = outliers.count
    attributes["outlier_dtype"] = outliers.dtype
    attributes["outlier_index"] = "columns" if outliers.index.dtype == np.uint16 else "gaps"
    extents["outlier_counts"] = outliers.counts
    extents["outlier_index"] = outliers.index
    extents["outlier_values"] = outliers.values


_TILE_ROWS_MAX = 1 << 20


class _Fields:
    """Attributes of a record with their types checked; errors name the record."""

    def __init__(self, record: str, attributes: Mapping[str, object], read: ReadExtent) -> None:
        self.record = record
        self._attributes = attributes
        self._read = read

    def refuse(self, what: str) -> FormatError:
        return FormatError(f"record {self.record!r}: {what}")

    def integer(self, name: str, least: int, most: int) -> int:
        value = self._attributes.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.refuse(f"{name} is {value!r}, expected {least}..{most}")
        return value

    def multiple(self, name: str, unit: int) -> int:
        """Rows: a multiple of `unit`."""
        value = self.integer(name, unit, _TILE_ROWS_MAX)
        if value % unit:
            raise self.refuse(f"{name} is {value}, expected a multiple of {unit}")
        return value

    def choice(self, name: str, *allowed: str) -> str:
        value = self._attributes.get(name)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise self.refuse(f"{name} is {value!r}, expected {' or '.join(allowed) or 'a name'}")
        return value

    def array(self, name: str, dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[np.generic]:
        """The extent as an array of `dtype`; a shape of -1 takes what is there."""
        raw = self._read(name)
        size = np.dtype(dtype).itemsize
        wanted = int(np.prod(shape)) * size if -1 not in shape else len(raw) // size * size
        if len(raw) != wanted:
            raise self.refuse(f"extent {name!r} has {len(raw)} bytes, expected {wanted}")
        return raw.view(dtype).reshape(shape)

    def scale(self, name: str, count: int) -> npt.NDArray[np.float32]:
        """bfloat16 scales, finite and not negative."""
        values = from_bf16(self.array(name, np.uint16, count).view(np.uint16))
        if not np.isfinite(values).all() or (values < 0).any():
            raise self.refuse(f"extent {name!r} holds a scale that is negative or not finite")
        return values

    def has_outliers(self) -> bool:
        return any(name.startswith("outlier") for name in self._attributes)


_SIZE_MAX = 1 << 31


def unpack_vector(
    record: str, attributes: Mapping[str, object], read: ReadExtent
) -> npt.NDArray[np.float32]:
    """A norm gain or bias as float32."""
    fields = _Fields(record, attributes, read)
    dtype = fields.choice("dtype", *_STORED)
    data = fields.array("data", _STORED[dtype], fields.integer("count", 1, _SIZE_MAX))
    return from_pattern(data, dtype)  # type: ignore[arg-type]


def unpack_transform(
    record: str, attributes: Mapping[str, object], read: ReadExtent
) -> InputTransform:
    """The rotation of an input."""
    fields = _Fields(record, attributes, read)
    cols = fields.integer("cols", 4, _SIZE_MAX)
    scale = fields.scale("scale", cols)
    if (scale == 0).any():
        raise fields.refuse("extent 'scale' holds a zero")
    return InputTransform(scale, fields.integer("seed", 0, (1 << 63) - 1))


def unpack_weight(
    record: str,
    kind: str,
    attributes: Mapping[str, object],
    read: ReadExtent,
    transforms: Mapping[str, InputTransform],
) -> Weight:
    """A matrix; `transforms` by record name."""
    fields = _Fields(record, attributes, read)
    rows, cols = fields.integer("rows", 1, _SIZE_MAX), fields.integer("cols", 1, _SIZE_MAX)
    if kind == "planes":
        return _unpack_planes(fields, _unpack_frame(fields, rows, cols, transforms))
    if kind == "raw":
        dtype = fields.choice("dtype", *_STORED)
        data = fields.array("data", _STORED[dtype], rows, cols)
        return DenseWeight(DenseKind[dtype.upper()], cols, data)
    if kind == "int8":
        data = fields.array("data", np.int8, rows, cols)
        return DenseWeight(DenseKind.I8, cols, data, fields.scale("scale", rows))
    if kind in ("uniform1", "outlier1"):
        data = fields.array("data", np.uint8, rows, -(-cols // 8))
        outliers = _unpack_outliers(fields, rows, cols) if kind == "outlier1" else None
        return DenseWeight(DenseKind.SIGN, cols, data, fields.scale("scale", rows), outliers)
    raise fields.refuse(f"kind {kind!r} is not known to this version")


def unpack_frame(
    record: str,
    attributes: Mapping[str, object],
    read: ReadExtent,
    transforms: Mapping[str, InputTransform],
) -> PlanesWeight:
    """A matrix of kind `planes` with its scale and rotation, without its tiles and outliers."""
    fields = _Fields(record, attributes, read)
    rows, cols = fields.integer("rows", 1, _SIZE_MAX), fields.integer("cols", 1, _SIZE_MAX)
    return _unpack_frame(fields, rows, cols, transforms)


def unpack_outliers(
    record: str, attributes: Mapping[str, object], read: ReadExtent, *, checked: bool = False
) -> Outliers | None:
    """The outliers of a matrix, None where it has none. `checked`: they were found valid before."""
    fields = _Fields(record, attributes, read)
    if not fields.has_outliers():
        return None
    rows, cols = fields.integer("rows", 1, _SIZE_MAX), fields.integer("cols", 1, _SIZE_MAX)
    return _unpack_outliers(fields, rows, cols, checked)


def _unpack_frame(
    fields: _Fields, rows: int, cols: int, transforms: Mapping[str, InputTransform]
) -> PlanesWeight:
    name = fields.choice("input")
    transform = transforms.get(name)
    if transform is None or transform.cols != cols:
        found = "missing" if transform is None else f"{transform.cols} columns wide"
        raise fields.refuse(f"input {name!r} is {found}, expected {cols} columns")
    if cols % 4:
        raise fields.refuse(f"cols is {cols}, expected a multiple of 4")
    window = fields.integer("window", WINDOW_MIN, WINDOW_MAX)
    tile_rows = fields.multiple("tile_rows", 32)
    planes, extent_rows = fields.integer("planes", 1, 8), fields.multiple("extent_rows", tile_rows)
    tiling = Tiling(rows, cols, planes, tile_rows, extent_rows)
    return PlanesWeight(tiling, window, (), fields.scale("scale", rows), transform)


def _unpack_planes(fields: _Fields, frame: PlanesWeight) -> PlanesWeight:
    extents = tuple(
        fields.array(name, np.uint8, nbytes).view(np.uint8)
        for name, nbytes in frame.tiling.extent_bytes()
    )
    outliers = None
    if fields.has_outliers():
        outliers = _unpack_outliers(fields, frame.rows, frame.cols)
    return replace(frame, extents=extents, outliers=outliers)


def _unpack_outliers(fields: _Fields, rows: int, cols: int, checked: bool = False) -> Outliers:
    count = fields.integer("outliers", 1, rows * cols)
    dtype = fields.choice("outlier_dtype", *_STORED)
    wide = fields.choice("outlier_index", "columns", "gaps") == "columns"
    counts = fields.array("outlier_counts", np.uint16, rows).view(np.uint16)
    values = fields.array("outlier_values", _STORED[dtype], count)
    index = fields.array("outlier_index", np.uint16 if wide else np.uint8, -1)
    outliers = Outliers(counts, index, values, dtype)  # type: ignore[arg-type]
    try:
        if not checked:
            outliers_module.validate(outliers, rows, cols)
    except FormatError as error:
        raise fields.refuse(str(error)) from error
    return outliers
