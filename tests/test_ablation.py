"""The ablation's variants: each changes what it says it changes, and nothing is left changed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.compress import encode
from loop_singular_bit.compress.guidance import guidance
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.pipeline import Calibration, silent
from loop_singular_bit.compress.sensitivity import sensitivities
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.measure.quality import NetworkScorer, windows
from loop_singular_bit.models.spec import parameter_count

BENCH = Path(__file__).parent.parent / "benches" / "ablation.py"

pytestmark = pytest.mark.skipif(not BENCH.is_file(), reason="only in a checkout")


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    sys.path.insert(0, str(BENCH.parent))
    try:
        spec = importlib.util.spec_from_file_location("ablation", BENCH)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["ablation"] = module  # dataclasses look themselves up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCH.parent))


@pytest.fixture(scope="module")
def rows(
    ablation: ModuleType, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    source = open_source(str(tiny_model))
    original = OriginalNetwork(source, 2)
    ids = np.random.default_rng(0).integers(4, 512, 600)
    tokens, folder = ids[:512].reshape(4, 128), tmp_path_factory.mktemp("states")
    found = guidance(original, tokens, 0, folder)
    bench = ablation.Bench(
        source, Calibration(tokens, found, sensitivities(original, found)),
        windows(ids.tolist(), 64, 128),
        NetworkScorer(original, 64, keep=True), storage_gb(tiny_model), silent,
    )  # fmt: skip
    measured = ablation.run(bench, tmp_path_factory.mktemp("ablation"), ablation.VARIANTS)
    return {row["name"]: row for row in measured}


def storage_gb(model: Path) -> float:
    """Six bits a weight beside the tokenizer: a few planes and what a small file adds to them."""
    source = open_source(str(model))
    tokenizer = sum(len(data) for data in source.companion_files().values())
    return (tokenizer + 0.75 * parameter_count(source.spec)) / 1e9


def test_every_variant_differs_from_all_parts_within_the_same_size(
    rows: dict[str, dict[str, Any]], ablation: ModuleType, tiny_model: Path
) -> None:
    base = rows["all parts"]
    assert len(rows) == len(ablation.VARIANTS)
    assert base["kl_mean"] > 0
    for name, row in rows.items():
        assert np.isfinite(row["kl_mean"])
        assert row["size_bytes"] <= 1e9 * storage_gb(tiny_model), name
        if name != "all parts":
            assert row["kl_mean"] != base["kl_mean"], name


def test_nothing_is_left_changed(rows: dict[str, dict[str, Any]], ablation: ModuleType) -> None:
    assert encode.feedback_panels is not ablation.no_feedback
    assert encode.channel_scale is not ablation.no_channel_scale
    assert isinstance(InputTransform.block, property)


def test_the_table_is_relative_to_the_first(
    rows: dict[str, dict[str, Any]], ablation: ModuleType
) -> None:
    lines = ablation.table(list(rows.values())).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "| 1.000 |" in lines[2]
