from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from codec_data import flat_transform, gaussian

from loop_singular_bit import _native
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.tables import PLANES_MAX, WINDOWS, native_tables, table_set
from loop_singular_bit.errors import UsageError

SHA256 = "5e0194a0fbec656545c197cf1c0abf23c8eaee03c471f924aea8bb28d39fb610"  # docs/format.md
SHAPE = (256, 512)
# Mean squared error of a unit Gaussian after 1, 2, 3 and 4 planes.
DESIGN = {
    6: (0.297, 0.0883, 0.0265, 0.0081),
    7: (0.287, 0.0835, 0.0245, 0.0073),
    8: (0.283, 0.0806, 0.0231, 0.0067),
}


def distortion(window: int, planes: int) -> float:
    """Of integer tables on a Gaussian of their own size, after the best single amplitude."""
    x = gaussian(*SHAPE, seed=77)
    streams = [np.zeros(_native.stream_bytes(*SHAPE, 256), np.uint8) for _ in range(planes)]
    decoded = np.zeros(SHAPE, np.int16)
    target = x * np.float32(table_set(window).sigma)
    _native.encode(target, None, native_tables(window, planes), 256, 64, streams, decoded)
    W, Q = x.astype(np.float64), decoded.astype(np.float64)
    return float(1 - (W * Q).sum() ** 2 / ((Q * Q).sum() * (W * W).sum()))


def test_the_tables_are_the_constants_of_the_format() -> None:
    entries = b"".join(table_set(window).entries.tobytes() for window in range(4, 11))
    assert hashlib.sha256(entries).hexdigest() == SHA256


@pytest.mark.parametrize("window", WINDOWS)
def test_shapes(window: int) -> None:
    found = table_set(window)
    assert found.entries.dtype == np.int8
    assert found.entries.shape == (8, 1 << window)
    assert 20 < found.sigma < 40


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("group", [slice(0, 4), slice(4, 8)])
def test_planes_that_share_an_int8_weight_cannot_overflow_it(window: int, group: slice) -> None:
    largest = np.abs(table_set(window).entries[group].astype(int)).max(axis=1)
    assert largest.sum() <= 127


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
@pytest.mark.parametrize("window", DESIGN)
def test_gaussian_distortion_is_within_two_percent_of_the_design(window: int, planes: int) -> None:
    found = distortion(window, planes)
    assert found <= 1.02 * DESIGN[window][planes - 1]
    assert found >= 4.0**-planes  # nothing beats the rate-distortion bound


@pytest.mark.parametrize("planes", [1, 4])
def test_longer_windows_are_better(planes: int) -> None:
    assert distortion(10, planes) < 0.99 * distortion(8, planes)


@pytest.mark.parametrize("window", [4, 7])
def test_planes_five_to_eight_still_lower_the_error(window: int) -> None:
    errors = [distortion(window, planes) for planes in range(4, 9)]
    assert all(after < before / 1.7 for before, after in pairwise(errors))


def test_every_prefix_of_the_planes_is_the_code_with_fewer_planes() -> None:
    W, transform = gaussian(48, 64), flat_transform(64)
    whole = encode(W, transform, PlaneOptions(6))[0]
    for planes in range(1, 6):
        fewer = encode(W, transform, PlaneOptions(planes))[0]
        for mine, theirs in zip(fewer.streams, whole.streams, strict=False):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("window", [3, 11])
def test_unknown_windows_are_refused(window: int) -> None:
    with pytest.raises(UsageError, match=rf"window {window}: must be 4\.\.10"):
        table_set(window)


@pytest.mark.parametrize("planes", [0, PLANES_MAX + 1])
def test_unknown_plane_counts_are_refused(planes: int) -> None:
    with pytest.raises(UsageError, match=rf"planes {planes}: must be 1\.\.8"):
        native_tables(7, planes)
