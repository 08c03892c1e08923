from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_gguf, write_tiny_model

from loop_singular_bit import CompressionResult, LoopCompressor, open_model
from loop_singular_bit.compress import compressor as module
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import (
    EvaluationOptions,
    artefact_size_bytes,
    default_directory,
    evaluation_tokens,
)
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.generate import GenerateOptions, generate
from loop_singular_bit.errors import BudgetError, FormatError, InputRefusedError, UsageError
from loop_singular_bit.measure.probe import RunFigures, RunRequest

SHORT = EvaluationOptions(context=64, tokens=64)
INT8 = CodecOptions("int8")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(request: RunRequest) -> RunFigures:
        return RunFigures(50_000_000, "direct", 8, 8, 100.0, 100.0)

    monkeypatch.setattr(module, "probe_run", probe)


def compress(model: Path, output: Path | None, **options: Any) -> CompressionResult:
    targets = {"target_ram_mb": None, "target_storage_gb": None, "quality_threshold": None}
    given = {"codec": INT8, "evaluation": SHORT} | targets | options
    return LoopCompressor(**given).compress_model(model, output)


def test_the_result_is_a_mapping_of_what_was_measured(
    tiny_model: Path, tmp_path: Path, probed: None
) -> None:
    result = compress(tiny_model, tmp_path / "out", target_storage_gb=1, target_ram_mb=60)
    assert result["all_targets_achieved"] is True
    assert result["targets"]["ram"] == {"limit": 60, "measured": 50.0, "met": True}
    assert set(result) == set(dict(result)) and len(result) == len(dict(result))
    assert "compression_ratio" in repr(result)
    size = artefact_size_bytes(tmp_path / "out")
    assert result["size_bytes"] == result["size_bytes_planned"] == size
    assert result["compression_ratio"] == 2 * result["parameters"] / size
    with pytest.raises(KeyError):
        result["no such figure"]


def test_the_report_has_the_result_and_every_matrix(
    tiny_model: Path, tmp_path: Path, probed: None
) -> None:
    result = compress(tiny_model, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    tensors = report.pop("tensors")
    assert report.pop("sensitivity") is None  # a baseline is not calibrated
    assert report == json.loads(json.dumps(dict(result)))
    assert len(tensors) == 2 * 7 + 1
    assert all(0 < t["relative_error"] < 1e-3 for t in tensors.values())


def test_the_report_has_what_each_matrix_was_predicted_to_cost(tiny_artefact: Path) -> None:
    report = json.loads((tiny_artefact / "report.json").read_text("utf-8"))
    assert set(report["sensitivity"]) == set(report["tensors"])
    assert all(nats > 0 for nats in report["sensitivity"].values())


def test_the_card_has_the_figures(tiny_model: Path, tmp_path: Path, probed: None) -> None:
    result = compress(tiny_model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "\n# out\n" in card
    assert f"{result['size_bytes']:,} bytes" in card
    assert f"original {result['perplexity_original']:.3f}" in card
    assert "| 50 MB |" in card


def test_a_target_just_met_is_met(tiny_model: Path, tmp_path: Path, probed: None) -> None:
    result = compress(tiny_model, tmp_path / "out", target_ram_mb=50.0)
    assert result["targets"]["ram"]["met"] is True


def test_a_refused_run_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(request: RunRequest) -> RunFigures:
        raise BudgetError("the plan needs 40 MB")

    monkeypatch.setattr(module, "probe_run", refuse)
    result = compress(tiny_model, tmp_path / "out", target_ram_mb=2)
    assert (result["ram_peak_bytes"], result["all_targets_achieved"]) == (None, False)
    assert result["run"] == {"refused": "the plan needs 40 MB"}
    assert "refused" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_gguf_from_file_to_text(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf", quantization="Q8_0")
    text = "The miller counts 12 sacks of flour. " * 60
    result = compress(
        model, tmp_path / "out", codec=CodecOptions(planes=3, outlier_ratio=0.01),
        calibration=module.CalibrationOptions(256, text),
    )  # fmt: skip
    assert result["run"]["reader"] and result["ram_peak_bytes"] > 10_000_000
    assert result["planes"] == {"3": 14, "5": 1}
    with open_model(tmp_path / "out") as opened, opened.session() as session:
        ids = opened.text.encode("The miller", special=True)
        events = list(generate(opened, session, ids, GenerateOptions(max_tokens=4)))
    assert events


def test_outlier_ratio_and_planes_are_used(tiny_model: Path, tmp_path: Path, probed: None) -> None:
    text = "The miller counts 12 sacks of flour. " * 60
    calibration = module.CalibrationOptions(256, text)
    result = compress(
        tiny_model, tmp_path / "out", codec=None, planes=1, outlier_ratio=0.02,
        calibration=calibration,
    )  # fmt: skip
    assert (result["outlier_ratio"], result["planes"]) == (0.02, {"1": 14, "3": 1})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"target_ram_mb": 0}, "--ram-mb"),
        ({"target_storage_gb": -1}, "--storage-gb"),
        ({"quality_threshold": float("nan")}, "--max-loss"),
        ({"outlier_ratio": 2.0}, "--outlier-ratio"),
        ({"planes": 9}, "--planes"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 257}, "257"),
    ],
)
def test_a_value_outside_its_range_is_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        LoopCompressor(**options)


@pytest.mark.parametrize(
    ("options", "word"), [({"context": 1}, "--context 1"), ({"tokens": 0}, "--tokens 0")]
)
def test_an_evaluation_of_nothing_is_refused(options: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        EvaluationOptions(**options)


def test_an_artefact_that_is_not_as_planned_is_refused(
    tiny_model: Path, tmp_path: Path, probed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "artefact_size_bytes", lambda directory: 1000)
    with pytest.raises(FormatError, match=r"1000 bytes, planned were \d+"):
        compress(tiny_model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_default_output_is_named_after_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: None
) -> None:
    model = write_tiny_model(tmp_path / "Tiny-v0.1")
    file = write_tiny_gguf(tmp_path / "Tiny.Q8_0.gguf", quantization="Q8_0")
    source = open_source(str(model))
    assert default_directory(str(model), source) == Path("Tiny-v0.1-lsb")
    assert default_directory(str(file), open_source(str(file))) == Path("Tiny.Q8_0-lsb")
    assert default_directory("org/Big-v0.1@main", source) == Path("Big-v0.1-lsb")
    monkeypatch.chdir(model)
    assert default_directory(".", open_source(".")) == Path("Tiny-v0.1-lsb")
    monkeypatch.chdir(tmp_path)
    assert compress(model, None)["artefact"] == "Tiny-v0.1-lsb"


def test_evaluation_windows_are_of_the_default_text(tiny_model: Path) -> None:
    source = open_source(str(tiny_model))
    found = evaluation_tokens(source, EvaluationOptions(context=64, tokens=100))
    assert found.shape == (2, 65)
    assert (found[0, -1] == found[1, 0]) and (found != found[0, 0]).any()


def test_a_context_beyond_the_model_is_its_own(tiny_model: Path) -> None:
    found = evaluation_tokens(open_source(str(tiny_model)), EvaluationOptions(tokens=256))
    assert found.shape == (1, 257)


def test_a_short_text_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"1 tokens, 65 are needed"):
        evaluation_tokens(open_source(str(tiny_model)), EvaluationOptions("a", 64, 64))
