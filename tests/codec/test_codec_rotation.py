"""codec/rotation.py; docs/format.md, "Rotation"."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from codec_data import correlated, flat_transform, gaussian, scaled_transform

from loop_singular_bit.codec.rotation import (
    InputTransform,
    activation_group,
    cosine_matrix,
    power_of_two_factor,
    random_signs,
)

WIDTHS = [64, 192, 576, 896, 1536, 8960]
UNMIXED = [4, 6, 260]  # one block; blocks of 2; 65 blocks
MASK = (1 << 64) - 1


def philox(key: tuple[int, int], count: int) -> list[int]:
    """Philox 4x64-10 as its paper describes it (Salmon et al., SC 2011), counters from 1."""
    words: list[int] = []
    for counter in range(1, -(-count // 4) + 1):
        c, (k0, k1) = [counter, 0, 0, 0], key
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [b >> 64 ^ c[1] ^ k0, b & MASK, a >> 64 ^ c[3] ^ k1, a & MASK]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
        words += c
    return words[:count]


def explicit_rotation(cols: int, seed: int) -> npt.NDArray[np.float64]:
    """V [cols, cols] from the words of docs/format.md."""
    block = 1
    while cols % (2 * block) == 0:
        block *= 2
    blocks = cols // block
    sign = [[(a & b).bit_count() % 2 for b in range(block)] for a in range(block)]
    hadamard = 1 - 2 * np.array(sign)
    mix = np.eye(blocks)
    if 1 < blocks <= 64 and block >= 4:
        k, n = np.mgrid[:blocks, :blocks]
        mix = np.sqrt(2 / blocks) * np.cos(np.pi * (n + 0.5) * k / blocks)
        mix[0] = np.sqrt(1 / blocks)
    words = philox((seed, cols), (cols + 1) // 2)
    bits = [word >> shift & 1 for word in words for shift in (31, 63)][:cols]
    return np.kron(mix, hadamard / np.sqrt(block)) * (2 * np.array(bits) - 1)


def test_the_signs_of_a_seed_never_change() -> None:
    found = "".join("+" if sign > 0 else "-" for sign in random_signs(576, 1)[:32])
    assert found == "-++-+-+-+--++--++-+-+++-+-+++++-"


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**63 - 1])
@pytest.mark.parametrize("cols", [1, 4, 7, 66])
def test_signs_are_two_bits_of_each_word_of_philox(cols: int, seed: int) -> None:
    words = philox((seed, cols), (cols + 1) // 2)
    bits = [word >> shift & 1 for word in words for shift in (31, 63)][:cols]
    found = random_signs(cols, seed)
    assert found.dtype == np.float32
    assert found.tolist() == [2.0 * bit - 1 for bit in bits]


def test_signs_depend_on_seed_and_width() -> None:
    assert not np.array_equal(random_signs(64, 1), random_signs(64, 2))
    assert not np.array_equal(random_signs(64, 1), random_signs(128, 1)[:64])


@pytest.mark.parametrize(
    ("cols", "block"), [(64, 64), (576, 64), (1536, 512), (8960, 256), (896, 128), (6, 2), (7, 1)]
)
def test_block_is_the_largest_power_of_two_that_divides(cols: int, block: int) -> None:
    assert power_of_two_factor(cols) == block
    assert flat_transform(cols).block == block


@pytest.mark.parametrize("size", [2, 3, 9, 35, 64])
def test_the_mix_is_orthonormal(size: int) -> None:
    M = cosine_matrix(size).astype(np.float64)
    assert np.abs(M @ M.T - np.eye(size)).max() < 1e-6


@pytest.mark.parametrize(
    ("cols", "mixed"),
    [(64, False), (192, True), (576, True), (8960, True), (6, False), (260, False)],
)
def test_which_widths_are_mixed(cols: int, mixed: bool) -> None:
    assert (flat_transform(cols).mix is not None) is mixed


@pytest.mark.parametrize("cols", [4, 6, 12, 64, 192, 260, 576])
def test_the_rotation_is_the_specified_matrix(cols: int) -> None:
    V = explicit_rotation(cols, seed=7)
    found = flat_transform(cols, seed=7).inputs(np.eye(cols, dtype=np.float32)).T
    assert np.abs(found - V).max() < 2e-6


@pytest.mark.parametrize("cols", WIDTHS + UNMIXED)
def test_the_rotation_is_orthogonal(cols: int) -> None:
    x = np.eye(cols, dtype=np.float32) if cols < 896 else gaussian(8, cols) / np.float32(cols**0.5)
    rotated = flat_transform(cols).inputs(x).astype(np.float64)
    assert np.abs(rotated @ rotated.T - x.astype(np.float64) @ x.T).max() < 1e-5


@pytest.mark.parametrize("cols", WIDTHS)
def test_one_weight_is_spread_over_every_column(cols: int) -> None:
    x = np.zeros((1, cols), np.float32)
    x[0, cols // 3] = 1
    assert np.abs(flat_transform(cols).inputs(x)).max() < 1.5 / np.sqrt(cols)


@pytest.mark.parametrize("cols", WIDTHS + UNMIXED)
def test_weights_come_back(cols: int) -> None:
    W, transform = gaussian(5, cols), scaled_transform(cols)
    assert np.abs(transform.restore_weights(transform.weights(W)) - W).max() < 1e-5


@pytest.mark.parametrize("cols", WIDTHS + UNMIXED)
def test_products_do_not_change(cols: int) -> None:
    x, W, transform = gaussian(3, cols, 1), gaussian(4, cols, 2), scaled_transform(cols)
    found = transform.inputs(x).astype(np.float64) @ transform.weights(W).T
    assert np.abs(found - x.astype(np.float64) @ W.T).max() < 1e-5 * cols**0.5 * 10


def test_the_channel_scale_goes_with_the_input() -> None:
    scale = np.linspace(0.5, 2, 64, dtype=np.float32)
    x = gaussian(2, 64)
    plain, scaled = InputTransform(np.ones_like(scale), 3), InputTransform(scale, 3)
    assert np.allclose(scaled.inputs(x), plain.inputs(x * scale), atol=1e-6)
    assert np.allclose(scaled.weights(x), plain.weights(x / scale), atol=1e-6)


@pytest.mark.parametrize("cols", [64, 192])
def test_hessian_is_that_of_the_rotated_inputs(cols: int) -> None:
    transform, H = scaled_transform(cols), correlated(cols)
    V = explicit_rotation(cols, transform.seed) * transform.channel_scale
    expected = V @ H @ V.T
    assert np.abs(transform.hessian(H) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("cols", "group"),
    [(64, 64), (576, 192), (1536, 256), (4096, 256), (8960, 256), (36, 36), (272, 16), (514, 514)],
)
def test_activation_groups_are_whole_strips_that_divide_the_columns(cols: int, group: int) -> None:
    assert activation_group(cols) == group
