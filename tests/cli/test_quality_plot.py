"""What the picture of a study shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from loop_singular_bit.cli.quality_plot import write_plot
from loop_singular_bit.compress.points import Point, maker_of
from loop_singular_bit.measure.quality import Quality


def point(name: str, bits: float, loss: float, kl: float) -> Point:
    quality = Quality(100, 20.0, 0.1, 10.0, loss, 0.1, kl, 0.01, kl, kl, 0.9)
    size = round(bits * 1e6)
    return Point(name, maker_of(name), size, bits, 16 / bits, None, None, quality, {})


@pytest.fixture
def picture(tmp_path: Path) -> str:
    points = [
        point("2.5", 2.49, 40.0, 0.5), point("4.5", 4.5, 0.01, 0.02),
        point("uniform1", 2.6, 6.5e6, 11.0), point("Q4_K_M", 5.0, 2.0, 0.03),
        point("F16", 16.1, 0.0, 0.0),
    ]  # fmt: skip
    write_plot(points, "a model", tmp_path / "plot.svg")
    return (tmp_path / "plot.svg").read_text("utf-8")


def test_every_point_is_named_in_both_panels(picture: str) -> None:
    assert picture.startswith("<?xml")
    for words in ("a model", "bits per weight, every byte counted", "size [MB]", ">2.5<"):
        assert words in picture
    assert picture.count(">Q4_K_M<") == 2


def test_a_value_off_the_scale_is_written_out(picture: str) -> None:
    assert picture.count(">uniform1: 6.5e+06<") == 1
    assert picture.count(">uniform1<") == 1  # its divergence fits
    assert picture.count(">4.5: 0.01<") == 1


def test_files_of_16_bits_are_left_to_the_table(picture: str) -> None:
    assert "F16" not in picture


def test_alone_they_are_drawn(tmp_path: Path) -> None:
    write_plot([point("F16", 16.1, 0.1, 0.001)], "a model", tmp_path / "plot.svg")
    assert "F16" in (tmp_path / "plot.svg").read_text("utf-8")
