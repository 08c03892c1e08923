"""codec/records.py; docs/format.md, "Payloads"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from codec_data import DTYPES, gaussian, random_outliers, scaled_transform, stored_as

from loop_singular_bit.codec.numbers import DenseKind, from_pattern, to_bf16
from loop_singular_bit.codec.outliers import extract
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.records import (
    Attribute,
    Payload,
    ReadExtent,
    pack_transform,
    pack_vector,
    pack_weight,
    unpack_transform,
    unpack_vector,
    unpack_weight,
)
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import DenseWeight, PlanesWeight, Weight
from loop_singular_bit.errors import FormatError

NAME = "layers.0.q"
INPUT = "layers.0.attn_in"
ROWS, COLS = 40, 36
TRANSFORM = scaled_transform(COLS)


def reader(extents: Mapping[str, npt.NDArray[np.generic] | bytes]) -> ReadExtent:
    """What a container gives: bytes, or a FormatError for an extent that is not there."""

    def read(name: str) -> npt.NDArray[np.uint8]:
        if name not in extents:
            raise FormatError(f"record {NAME!r}: no extent {name!r}")
        data = extents[name]
        return np.frombuffer(data if isinstance(data, bytes) else data.tobytes(), np.uint8)

    return read


def unpack(
    payload: Payload, transforms: Mapping[str, InputTransform] | None = None
) -> Weight | InputTransform | npt.NDArray[np.float32]:
    read = reader(payload.extents)
    if payload.kind == "vector":
        return unpack_vector(NAME, payload.attributes, read)
    if payload.kind == "input":
        return unpack_transform(NAME, payload.attributes, read)
    known = {INPUT: TRANSFORM} if transforms is None else transforms
    return unpack_weight(NAME, payload.kind, payload.attributes, read, known)


def raw(dtype: str = "bf16") -> DenseWeight:
    return DenseWeight(DenseKind[dtype.upper()], COLS, stored_as(gaussian(ROWS, COLS), dtype))


def scales() -> npt.NDArray[np.float32]:
    return np.arange(ROWS, dtype=np.float32)  # zero is allowed, and small integers are bfloat16


def int8() -> DenseWeight:
    data = np.clip(40 * gaussian(ROWS, COLS), -127, 127).astype(np.int8)
    return DenseWeight(DenseKind.I8, COLS, data, scales())


def signs(share: float = 0.0, dtype: str = "f16") -> DenseWeight:
    bits = np.packbits(gaussian(ROWS, COLS) > 0, axis=1, bitorder="little")
    kept = random_outliers(ROWS, COLS, share, dtype) if share else None
    return DenseWeight(DenseKind.SIGN, COLS, bits, scales(), kept)


def planes(count: int = 2, share: float = 0.0, dtype: str = "f16", window: int = 6) -> PlanesWeight:
    kept = random_outliers(ROWS, COLS, share, dtype) if share else None
    options = PlaneOptions(count, window, tile_rows=32)
    return encode(gaussian(ROWS, COLS), TRANSFORM, options, outliers=kept)[0]


def wide_gaps() -> DenseWeight:
    """Outliers so far apart that 16-bit columns are the shorter index."""
    mask = np.zeros((2, 2000), bool)
    mask[[0, 1], [1000, 1999]] = True
    kept = extract(mask, gaussian(2, 2000), "f32")
    bits = np.full((2, 250), 0x5A, np.uint8)
    return DenseWeight(DenseKind.SIGN, 2000, bits, np.ones(2, np.float32), kept)


@cache
def payload_of(kind: str) -> Payload:
    if kind == "vector":
        return pack_vector(stored_as(gaussian(1, 9)[0], "f16"), "f16")
    if kind == "input":
        return pack_transform(TRANSFORM)
    weights = {
        "raw": raw,
        "int8": int8,
        "uniform1": signs,
        "outlier1": lambda: signs(0.05),
        "outlier1-columns": wide_gaps,
        "planes": planes,
        "planes-outliers": lambda: planes(5, 0.05),
    }
    return pack_weight(weights[kind](), INPUT)


KINDS = (
    "vector", "input", "raw", "int8", "uniform1", "outlier1", "outlier1-columns", "planes",
    "planes-outliers",
)  # fmt: skip
# What a record of each kind holds, in file order.
CONTENTS = {
    "vector": ("dtype count", "data"),
    "input": ("cols seed", "scale"),
    "raw": ("rows cols dtype", "data"),
    "int8": ("rows cols", "data scale"),
    "uniform1": ("rows cols", "data scale"),
    "outlier1": (
        "rows cols outliers outlier_dtype outlier_index",
        "data scale outlier_counts outlier_index outlier_values",
    ),
    "planes": ("rows cols window planes tile_rows extent_rows input", "scale tiles0"),
    "planes-outliers": (
        "rows cols window planes tile_rows extent_rows input outliers outlier_dtype outlier_index",
        "scale tiles0 outlier_counts outlier_index outlier_values",
    ),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_a_record_holds(kind: str) -> None:
    payload = payload_of(kind)
    attributes, extents = CONTENTS[kind]
    assert payload.kind == kind.split("-")[0]
    assert list(payload.attributes) == attributes.split()
    assert list(payload.extents) == extents.split()
    assert {type(value) for value in payload.attributes.values()} <= {int, str}


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_come_back(dtype: str) -> None:
    stored = stored_as(gaussian(1, 9)[0], dtype)
    found = unpack(pack_vector(stored, dtype))
    assert isinstance(found, np.ndarray)
    assert found.tobytes() == from_pattern(stored, dtype).tobytes()


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**63 - 1])
def test_transforms_come_back(seed: int) -> None:
    transform = scaled_transform(COLS, 4)
    found = unpack(pack_transform(replace(transform, seed=seed)))
    assert isinstance(found, InputTransform)
    assert found.seed == seed
    assert np.array_equal(found.channel_scale, transform.channel_scale)


WEIGHTS = {
    **{f"raw-{dtype}": raw(dtype) for dtype in DTYPES},
    "int8": int8(),
    "uniform1": signs(),
    **{f"outlier1-{dtype}": signs(0.05, dtype) for dtype in DTYPES},
    "outlier1-columns": wide_gaps(),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_dense_weights_come_back(name: str) -> None:
    weight = WEIGHTS[name]
    found = unpack(pack_weight(weight))
    assert isinstance(found, DenseWeight)
    assert (found.kind, found.rows, found.cols) == (weight.kind, weight.rows, weight.cols)
    assert (found.outliers is None) is (weight.outliers is None)
    assert found.dense().tobytes() == weight.dense().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [4, 7, 8, 10])
@pytest.mark.parametrize(("count", "share"), [(1, 0.0), (4, 0.002), (8, 0.1)])
def test_planes_come_back(count: int, share: float, window: int, dtype: str) -> None:
    weight = planes(count, share, dtype, window)
    found = unpack(pack_weight(weight, INPUT))
    assert isinstance(found, PlanesWeight)
    assert found.transform is TRANSFORM
    assert (found.window, found.tiling) == (window, weight.tiling)
    assert found.planes == count
    assert np.array_equal(found.integers(), weight.integers())
    assert found.dense().tobytes() == weight.dense().tobytes()


def broken_attributes() -> Iterator[tuple[str, str, Attribute | bool | None]]:
    """(kind, attribute, value): every attribute missing, of a wrong type and out of range."""
    for kind in KINDS:
        for name, value in payload_of(kind).attributes.items():
            yield kind, name, None
            if isinstance(value, int):
                yield from (
                    (kind, name, bad) for bad in (-1, 2**63, True, float(value), str(value))
                )
            else:
                yield from ((kind, name, bad) for bad in (1, "", "F16"))


@pytest.mark.parametrize(("kind", "name", "value"), list(broken_attributes()))
def test_broken_attributes_are_refused(kind: str, name: str, value: Attribute | None) -> None:
    payload = payload_of(kind)
    attributes = {key: old for key, old in payload.attributes.items() if key != name}
    if value is not None:
        attributes[name] = value
    with pytest.raises(FormatError, match=f"^record '{NAME}': {name} .*is .*expected"):
        unpack(replace(payload, attributes=attributes))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("window", (3, 11), "window is {}, expected 4..10"),
        ("planes", (0, 9), "planes is {}, expected 1..8"),
        ("tile_rows", (0, 31, 2**20 + 1), "tile_rows is {}, expected 32..1048576"),
        ("tile_rows", (33, 48, 80), "tile_rows is {}, expected a multiple of 32"),
        ("extent_rows", (0, 31, 2**20 + 1), "extent_rows is {}, expected 32..1048576"),
        ("extent_rows", (33, 48, 80), "extent_rows is {}, expected a multiple of 32"),
        ("rows", (0, 2**31 + 1), "rows is {}, expected 1..2147483648"),
        ("outliers", (0, ROWS * COLS + 1), f"outliers is {{}}, expected 1..{ROWS * COLS}"),
    ],
)
def test_limits_of_planes(name: str, values: tuple[int, ...], message: str) -> None:
    payload = payload_of("planes-outliers")
    for value in values:
        broken = replace(payload, attributes=payload.attributes | {name: value})
        with pytest.raises(FormatError, match=f"^record '{NAME}': {message.format(value)}"):
            unpack(broken)


def sizes_that_disagree() -> Iterator[tuple[str, str, int]]:
    """(kind, attribute, change): values in range that the extents contradict."""
    for kind in KINDS:
        for name, value in payload_of(kind).attributes.items():
            if isinstance(value, int) and name not in ("seed", "window", "tile_rows"):
                yield from ((kind, name, change) for change in (-1, 1))


@pytest.mark.parametrize(("kind", "name", "change"), list(sizes_that_disagree()))
def test_sizes_that_disagree_with_the_extents_are_refused(
    kind: str, name: str, change: int
) -> None:
    payload = payload_of(kind)
    value = payload.attributes[name]
    assert isinstance(value, int)
    if kind.startswith(("uniform1", "outlier1")) and name == "cols":
        change *= 8  # a byte of signs
    with pytest.raises(FormatError, match=f"^record '{NAME}': "):
        unpack(replace(payload, attributes=payload.attributes | {name: value + change}))


EXTENTS = [(kind, name) for kind in KINDS for name in payload_of(kind).extents]


@pytest.mark.parametrize(("kind", "name"), EXTENTS)
@pytest.mark.parametrize("change", ["one byte less", "one byte more", "empty"])
def test_extents_of_a_wrong_length_are_refused(kind: str, name: str, change: str) -> None:
    payload = payload_of(kind)
    data = payload.extents[name].tobytes()
    broken = {"one byte less": data[:-1], "one byte more": data + b"\0", "empty": b""}[change]
    extents = {**payload.extents, name: np.frombuffer(broken, np.uint8)}
    with pytest.raises(FormatError, match=f"^record '{NAME}': .*expected"):
        unpack(replace(payload, extents=extents))


@pytest.mark.parametrize(("kind", "name"), EXTENTS)
def test_missing_extents_are_refused(kind: str, name: str) -> None:
    payload = payload_of(kind)
    extents = {key: data for key, data in payload.extents.items() if key != name}
    with pytest.raises(FormatError, match=f"no extent '{name}'"):
        unpack(replace(payload, extents=extents))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["input", "int8", "uniform1", "outlier1", "planes"])
def test_bad_scales_are_refused(kind: str, bad: float) -> None:
    payload = payload_of(kind)
    scale = payload.extents["scale"].copy()
    scale[-1] = np.array([bad], np.float32).view(np.uint32)[0] >> 16
    broken = replace(payload, extents={**payload.extents, "scale": scale})
    with pytest.raises(FormatError, match="'scale' holds a scale that is negative or not finite"):
        unpack(broken)


def test_an_input_scale_of_zero_is_refused() -> None:
    payload = payload_of("input")
    scale = to_bf16(np.zeros(COLS, np.float32))
    with pytest.raises(FormatError, match=f"^record '{NAME}': extent 'scale' holds a zero"):
        unpack(replace(payload, extents={"scale": scale}))


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(FormatError, match=f"^record '{NAME}': input '{INPUT}' is missing"):
        unpack(payload_of("planes"), {})


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(FormatError, match=f"'{INPUT}' is 40 columns wide, expected 36 columns"):
        unpack(payload_of("planes"), {INPUT: scaled_transform(40)})


def test_columns_that_are_no_quads_are_refused() -> None:
    payload = payload_of("planes")
    with pytest.raises(FormatError, match="cols is 38, expected a multiple of 4"):
        unpack(
            replace(payload, attributes=payload.attributes | {"cols": 38}),
            {INPUT: scaled_transform(38)},
        )


@pytest.mark.parametrize("extent", ["outlier_counts", "outlier_index"])
def test_outliers_that_leave_the_matrix_are_refused(extent: str) -> None:
    payload = payload_of("planes-outliers")
    data = payload.extents[extent].copy()
    data[-1] += 40
    with pytest.raises(FormatError, match=f"^record '{NAME}': outliers: "):
        unpack(replace(payload, extents={**payload.extents, extent: data}))


@pytest.mark.parametrize("kind", ["vector", "input", "planes2", ""])
def test_kinds_that_are_no_matrix_are_refused(kind: str) -> None:
    payload = replace(payload_of("raw"), kind=kind)
    with pytest.raises(FormatError, match=f"^record '{NAME}': kind '{kind}' is not known"):
        unpack_weight(NAME, kind, payload.attributes, reader(payload.extents), {})
