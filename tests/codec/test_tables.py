from __future__ import annotations

import hashlib
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from codec_data import flat_transform, gaussian

from loop_singular_bit import _native
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.tables import PLANES_MAX, WINDOWS, native_tables, table_set
from loop_singular_bit.errors import UsageError

# When the constants change: the hash is also in docs/format.md.
SHA256 = "c3cbbf06e54e92a56d09ad24b69b78c45ad4abc91a951386e266c3f251ad53d2"
SHAPE = (256, 512)
# Mean squared error of a unit Gaussian after 1, 2, 3, 4 and 8 planes, by window.
PLANES = (1, 2, 3, 4, 8)
DESIGN = {
    4: (0.3041, 0.09385, 0.02972, 0.009941, 0.0005783),
    5: (0.2953, 0.08831, 0.02719, 0.008776, 0.0004367),
    6: (0.2882, 0.08385, 0.02482, 0.007529, 0.0002763),
    7: (0.2839, 0.0812, 0.02357, 0.007003, 0.0002347),
    8: (0.2803, 0.07908, 0.02251, 0.006573, 0.0001867),
    9: (0.2746, 0.07613, 0.02139, 0.006139, 0.0002119),
    10: (0.2714, 0.07409, 0.02043, 0.005757, 0.0001676),
}


@cache
def distortion(window: int, planes: int) -> float:
    """Of integer tables on a Gaussian of their own size, after the best single amplitude."""
    x = gaussian(*SHAPE, seed=77)
    tile = np.zeros(planes * _native.plane_bytes(*SHAPE), np.uint8)
    decoded = np.zeros(SHAPE, np.int16)
    target = x * np.float32(table_set(window).sigma)
    _native.encode(target, None, native_tables(window, planes), 256, 64, [tile], decoded)
    W, Q = x.astype(np.float64), decoded.astype(np.float64)
    return float(1 - (W * Q).sum() ** 2 / ((Q * Q).sum() * (W * W).sum()))


def test_the_tables_are_the_constants_of_the_format() -> None:
    """Of every window from 4 on its 32 hashes, then its 128 levels."""
    sets = [table_set(window) for window in range(4, 11)]
    constants = b"".join(found.hashes.tobytes() + found.levels.tobytes() for found in sets)
    assert hashlib.sha256(constants).hexdigest() == SHA256


@pytest.mark.parametrize("window", WINDOWS)
def test_shapes(window: int) -> None:
    found = table_set(window)
    assert found.window == window
    assert (found.hashes.dtype, found.hashes.shape) == (np.uint8, (2, 16))
    assert (found.levels.dtype, found.levels.shape) == (np.int8, (8, 16))
    assert 20 < found.sigma < 45


@pytest.mark.parametrize("window", WINDOWS)
def test_hashes_are_nibbles_of_what_the_window_holds(window: int) -> None:
    """The window's newest bit is bit 3 of the newest nibble: bits older than it change no hash."""
    hashes = table_set(window).hashes
    assert hashes.max() < 16
    for nibble, newest in enumerate((window - 4, window - 8)):  # bits of each that are inside
        lowest = 4 - min(max(newest, 0), 4)
        same = hashes[nibble].reshape(-1, 1 << lowest)
        assert (same == same[:, :1]).all()
        assert newest > 0 or not hashes[nibble].any()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("group", [slice(0, 4), slice(4, 8)])
def test_planes_that_share_an_int8_weight_cannot_overflow_it(window: int, group: slice) -> None:
    largest = np.abs(table_set(window).levels[group].astype(int)).max(axis=1)
    assert largest.sum() <= 127


@pytest.mark.parametrize("planes", range(1, 9))
@pytest.mark.parametrize("window", WINDOWS)
def test_native_tables_are_the_first_planes(window: int, planes: int) -> None:
    """Steps whose older bits are all known decode to what the definition says."""
    native, found = native_tables(window, planes), table_set(window)
    assert (native.window, native.count) == (window, planes)
    rng = np.random.default_rng(window)
    plane = rng.integers(0, 256, _native.plane_bytes(96, 4), np.uint8)
    decoded = np.zeros((96, 4), np.int16)
    _native.planes_decode([np.tile(plane, planes)], 96, 4, 96, native, 0, decoded)
    for stream, (row, column) in enumerate(np.ndindex(4, 4)):
        bits = sum(int(byte) << 8 * i for i, byte in enumerate(plane[stream::64]))
        for step in range(12, 24):
            newest, before, oldest = (bits >> step - 3 - 4 * back & 15 for back in range(3))
            index = newest ^ found.hashes[0, before] ^ found.hashes[1, oldest]
            levels = found.levels[:, index].astype(int)
            expected = levels[:planes].sum() + 7 * levels[:4].sum() * (planes > 4)
            assert decoded[4 * step + row, column] == expected


@pytest.mark.parametrize("planes", PLANES)
@pytest.mark.parametrize("window", DESIGN)
def test_gaussian_distortion_is_within_two_percent_of_the_design(window: int, planes: int) -> None:
    found = distortion(window, planes)
    assert found <= 1.02 * DESIGN[window][PLANES.index(planes)]
    assert found >= 4.0**-planes  # nothing beats the rate-distortion bound


@pytest.mark.parametrize("planes", [1, 4])
def test_longer_windows_are_better(planes: int) -> None:
    assert distortion(10, planes) < 0.99 * distortion(8, planes)
    assert distortion(8, planes) < 0.99 * distortion(6, planes)


@pytest.mark.parametrize("window", [4, 7])
def test_planes_five_to_eight_still_lower_the_error(window: int) -> None:
    errors = [distortion(window, planes) for planes in range(4, 9)]
    assert all(after < before / 1.4 for before, after in pairwise(errors))


def test_every_prefix_of_the_planes_is_the_code_with_fewer_planes() -> None:
    W, transform = gaussian(48, 64), flat_transform(64)
    whole = encode(W, transform, PlaneOptions(6))[0]
    for planes in range(1, 6):
        fewer = encode(W, transform, PlaneOptions(planes))[0]
        (mine,), (theirs,) = fewer.extents, whole.extents  # one tile
        assert np.array_equal(mine, theirs[: len(mine)])


@pytest.mark.parametrize("window", [3, 11])
def test_unknown_windows_are_refused(window: int) -> None:
    with pytest.raises(UsageError, match=rf"window {window}: must be 4\.\.10"):
        table_set(window)


@pytest.mark.parametrize("planes", [0, PLANES_MAX + 1])
def test_unknown_plane_counts_are_refused(planes: int) -> None:
    with pytest.raises(UsageError, match=rf"planes {planes}: must be 1\.\.8"):
        native_tables(7, planes)
