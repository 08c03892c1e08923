from __future__ import annotations

from pathlib import Path

import pytest

from loop_singular_bit.compress import study
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import EvaluationOptions
from loop_singular_bit.compress.pipeline import CalibrationOptions, silent
from loop_singular_bit.compress.study import Variant, compress_variants
from loop_singular_bit.errors import InputRefusedError
from loop_singular_bit.measure.probe import RunFigures, RunRequest

TEXT = "The miller counts 12 sacks of flour. " * 60
CALIBRATION = CalibrationOptions(256, TEXT)
EVALUATION = EvaluationOptions(context=64, tokens=64)


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(request: RunRequest) -> RunFigures:
        assert (Path(request.directory) / "model.lsb").is_file()
        return RunFigures(50_000_000, "direct", 8, 8, 100.0, 100.0)

    monkeypatch.setattr(study, "probe_run", probe)


def test_variants_are_measured_in_their_order(tiny_model: Path, tmp_path: Path) -> None:
    options = (CodecOptions("raw"), CodecOptions("int8"), CodecOptions(planes=1))
    variants = [Variant(each, tmp_path / str(index)) for index, each in enumerate(options)]
    results = compress_variants(str(tiny_model), variants, CALIBRATION, EVALUATION, None, silent)
    assert [result["artefact"] for result in results] == [str(each.directory) for each in variants]
    assert [result["kl_mean"] == 0 for result in results] == [True, False, False]
    assert results[1]["kl_mean"] < results[2]["kl_mean"]
    assert len({result["perplexity_original"] for result in results}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    for each in variants:
        assert {path.name for path in each.directory.iterdir()} >= {"report.json", "README.md"}


def test_a_variant_keeps_its_storage_budget(tiny_model: Path, tmp_path: Path) -> None:
    (spent,) = compress_variants(
        str(tiny_model), [Variant(CodecOptions(planes=3), tmp_path / "all")], CALIBRATION,
        EVALUATION, None, silent,
    )  # fmt: skip
    variant = Variant(CodecOptions(), tmp_path / "less", (spent["size_bytes"] - 1) / 1e9)
    (found,) = compress_variants(str(tiny_model), [variant], CALIBRATION, EVALUATION, None, silent)
    assert found["size_bytes"] < spent["size_bytes"]
    assert found["targets"]["storage"]["met"]
    assert len(found["planes"]) > 1  # some matrices have a plane more than others


def test_a_failure_leaves_none_of_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: RunRequest) -> RunFigures:
        raise OSError("no process")

    monkeypatch.setattr(study, "probe_run", fail)
    variants = [Variant(CodecOptions("int8"), tmp_path / name) for name in ("a", "b")]
    with pytest.raises(OSError, match="no process"):
        compress_variants(str(tiny_model), variants, CALIBRATION, EVALUATION, None, silent)
    assert not list(tmp_path.iterdir())


def test_an_output_with_files_is_refused_before_any_work(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "write_artefacts", None)  # would end the test
    (tmp_path / "mine").write_text("x", "utf-8")
    with pytest.raises(InputRefusedError, match="not an empty directory"):
        compress_variants(
            str(tiny_model), [Variant(CodecOptions("int8"), tmp_path)], CALIBRATION, EVALUATION,
            None, silent,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
