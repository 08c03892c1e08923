from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TEXT

from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.artefact_plan import predicted_ram
from loop_singular_bit.compress.compressor import EvaluationOptions, LoopCompressor
from loop_singular_bit.compress.estimate import run_ram
from loop_singular_bit.compress.pipeline import CalibrationOptions, make_plan
from loop_singular_bit.compress.source import open_source


@pytest.mark.parametrize("codec", ["raw", "int8", "uniform1", "outlier1"])
def test_prediction_is_that_of_the_estimate_before(
    codec: str, tiny_model: Path, tmp_path: Path
) -> None:
    options = CodecOptions(codec, outlier_ratio=0.02 if codec == "outlier1" else 0.0)
    assert_same(tiny_model, tmp_path / "out", options)


def test_prediction_of_planes_with_outliers(tiny_model: Path, tmp_path: Path) -> None:
    assert_same(tiny_model, tmp_path / "out", CodecOptions(planes=2, outlier_ratio=0.01))


def assert_same(model: Path, out: Path, options: CodecOptions) -> None:
    LoopCompressor(
        target_ram_mb=None, target_storage_gb=None, quality_threshold=None, codec=options,
        calibration=CalibrationOptions(tokens=256),
        evaluation=EvaluationOptions(" ".join(TEXT), context=32, tokens=32), threads=1,
    ).compress_model(model, out)  # fmt: skip
    source = open_source(str(model))
    resident, streamed = run_ram(source, make_plan(source, options, Budgets()), 64)
    for ram_bytes, expected in ((None, resident), (resident.total_bytes, resident),
                                (resident.total_bytes - 1, streamed)):  # fmt: skip
        found = predicted_ram(out, 64, ram_bytes)
        # How long the index of outliers is depends on where they fall (codec/outliers.py).
        slack = 0.01 * expected.total_bytes if options.outlier_ratio else 0
        assert found.total_bytes == pytest.approx(expected.total_bytes, abs=slack)
        assert found.entries.keys() == expected.entries.keys()
