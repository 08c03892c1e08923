from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.codec.program import Program
from loop_singular_bit.engine.artefact import read_spec
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.models.spec import ModelSpec, RopeScaling


@pytest.fixture
def spec(tiny_model: Path) -> ModelSpec:
    return read_spec(tiny_model)


def test_angles_are_position_times_frequency(spec: ModelSpec) -> None:
    table = rotary_table(spec, 100)
    assert table.cosine.shape == table.sine.shape == (100, spec.head_dim // 2)
    for position in (0, 1, 99):
        for pair in range(spec.head_dim // 2):
            angle = position * spec.rope_theta ** (-2 * pair / spec.head_dim)
            assert table.cosine[position, pair] == pytest.approx(math.cos(angle), abs=1e-5)
            assert table.sine[position, pair] == pytest.approx(math.sin(angle), abs=1e-5)


def test_rotation_pairs_the_halves_of_a_head(spec: ModelSpec) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2 * spec.head_dim), np.float32)
    turned = x.copy()
    table, positions = rotary_table(spec, 32), np.array([0, 5, 31], np.int32)
    program = Program(3)
    table.rotate(program, turned, spec.head_dim)
    program.run(np.zeros(3, np.int32), positions, 0, program.steps)
    half = spec.head_dim // 2
    pairs = x.reshape(3, 2, 2, half)
    angle = table.cosine[positions][:, None] + 1j * table.sine[positions][:, None]
    expected = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * angle
    found = turned.reshape(3, 2, 2, half)
    assert np.allclose(found[:, :, 0], expected.real, atol=1e-5)
    assert np.allclose(found[:, :, 1], expected.imag, atol=1e-5)
    assert np.array_equal(turned[0], x[0])


def test_scaling_keeps_short_waves_and_stretches_long_ones(spec: ModelSpec) -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 1000)
    scaled = replace(spec, rope_scaling=scaling)
    angles, plain = (
        np.arctan2(table.sine[1], table.cosine[1]).astype(float)
        for table in (rotary_table(scaled, 2), rotary_table(spec, 2))
    )
    turns = 1000 * plain / (2 * math.pi)
    ratio = angles / plain
    assert (turns > 4).any()
    assert (turns < 1).any()
    assert np.allclose(ratio[turns > 4], 1, rtol=1e-5)
    assert np.allclose(ratio[turns < 1], 1 / 8, rtol=1e-5)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    smooth = (turns[between] - 1) / 3
    assert np.allclose(ratio[between], smooth + (1 - smooth) / 8, rtol=1e-5)
