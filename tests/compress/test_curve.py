from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.curve import loss_curve
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.errors import InputRefusedError
from loop_singular_bit.measure.default_text import default_text


def test_more_bytes_lose_less(tiny_model: Path) -> None:
    source = open_source(str(tiny_model))
    points = loss_curve(source, CodecOptions(), default_text(), bits=(6.0, 8.0, 10.0, 16.0))
    assert len(points) >= 3
    for smaller, larger in pairwise(points):
        assert smaller.size_bytes < larger.size_bytes
        assert smaller.nats > larger.nats > 0
        assert smaller.loss_percent > larger.loss_percent > 0


def test_a_loss_allowed_is_a_point_and_sizes_too_small_are_none(tiny_model: Path) -> None:
    source = open_source(str(tiny_model))
    (point,) = loss_curve(source, CodecOptions(), default_text(), 5.0, bits=(0.1,))
    assert 0 < point.loss_percent <= 5.0


def test_a_short_text_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputRefusedError, match="tokens"):
        loss_curve(open_source(str(tiny_model)), CodecOptions(), "too short")
