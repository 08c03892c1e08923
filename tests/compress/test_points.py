"""A study of one model at several sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import write_tiny_gguf, write_tiny_model

from loop_singular_bit.compress import checkpoint, pipeline
from loop_singular_bit.compress import points as study
from loop_singular_bit.compress.importance import importance_matrix
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.pipeline import CalibrationOptions, silent
from loop_singular_bit.compress.points import (
    Point,
    PointsOptions,
    maker_of,
    mean_magnitude,
    measure_points,
)
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.container import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.errors import (
    BudgetError,
    InputRefusedError,
    InterruptedRunError,
    UsageError,
)
from loop_singular_bit.measure import llama_cpp
from loop_singular_bit.measure.quality import NetworkScorer

TEXTS = {
    "story": "The miller counts 12 sacks of flour. " * 60,
    "code": "for i in range(9): print(i)\n" * 60,
}
OPTIONS = PointsOptions(
    ("9.0", "int8"), TEXTS, context=64, tokens=64,
    calibration=CalibrationOptions(256, TEXTS["story"]), threads=1,
)  # fmt: skip


def measured(model: Path, directory: Path, options: PointsOptions = OPTIONS) -> list[Point]:
    return measure_points(str(model), directory, options, silent)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("points") / "study"
    measured(tiny_model, directory)
    return directory


def test_a_point_says_what_its_artefact_costs(finished: Path) -> None:
    ours, int8 = (study.load_point(finished / f"{name}.json") for name in OPTIONS.points)
    assert (ours.maker, int8.maker) == ("loops", "baseline")
    assert ours.bits_per_weight <= 9.0
    for point in (ours, int8):
        artefact = finished / point.name
        files = [p for p in artefact.iterdir() if p.name != "report.json"]
        assert point.size_bytes == sum(path.stat().st_size for path in files)
        assert point.quality.tokens == 128
        assert {name: q.tokens for name, q in point.texts.items()} == {"story": 64, "code": 64}
        kl = [q.kl_mean for q in point.texts.values()]
        assert point.quality.kl_mean == pytest.approx(np.mean(kl))
        assert 0 < point.quality.kl_mean < 1


def test_efficiency_is_precision_for_size(finished: Path, tiny_model: Path) -> None:
    point = study.load_point(finished / "int8.json")
    assert point.mean_absolute_error is not None
    magnitude = mean_magnitude(open_source(str(tiny_model)))
    precision = math.log2(magnitude / point.mean_absolute_error)
    assert 5 < precision < 8  # 8 bits by the largest of a row
    assert point.efficiency == pytest.approx(precision / point.bits_per_weight)


def test_what_is_finished_is_not_made_again(
    finished: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "write_artefacts", None)
    monkeypatch.setattr(study, "compare_tokens", None)
    assert [point.name for point in measured(tiny_model, finished)] == ["9.0", "int8"]


def test_a_whole_artefact_is_measured_without_encoding_it_again(
    finished: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = study.load_point(finished / "9.0.json")
    (finished / "9.0.json").unlink()
    monkeypatch.setattr(study, "write_artefacts", None)
    assert measured(tiny_model, finished)[0] == before


def test_a_study_calibrates_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "write_artefacts", interrupted)
        with pytest.raises(InterruptedRunError):
            measured(tiny_model, tmp_path / "study")
    monkeypatch.setattr(checkpoint, "calibration_tokens", None)  # not called again
    monkeypatch.setattr(pipeline, "guidance", None)
    found = measured(tiny_model, tmp_path / "study")
    assert [point.name for point in found] == ["9.0", "int8"]


def test_points_can_be_added(finished: Path, tiny_model: Path) -> None:
    found = measured(tiny_model, finished, replace(OPTIONS, points=("int8", "uniform1", "9.0@4")))
    assert [point.name for point in found] == ["int8", "uniform1", "9.0@4"]
    assert found[1].quality.kl_mean > found[0].quality.kl_mean
    with ContainerReader.open(finished / "9.0@4" / WEIGHTS_FILE) as reader:
        assert {r.attributes["window"] for r in reader.records if r.kind == "planes"} == {4}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tokens": 128}, "tokens"),
        ({"texts": {"story": TEXTS["story"]}}, "texts"),
        ({"calibration": CalibrationOptions(512, TEXTS["story"])}, "calibration"),
    ],
)
def test_other_settings_in_one_study_are_refused(
    finished: Path, tiny_model: Path, change: dict[str, object], name: str
) -> None:
    with pytest.raises(InputRefusedError, match=f"another {name}"):
        measured(tiny_model, finished, replace(OPTIONS, **change))  # type: ignore[arg-type]


def test_a_directory_of_something_else_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x", "utf-8")
    with pytest.raises(InputRefusedError, match="holds no study"):
        measured(tiny_model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_size_that_cannot_be_is_refused_with_the_smallest(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="smallest"):
        measured(tiny_model, tmp_path / "study", replace(OPTIONS, points=("0.5",)))


def test_names_tell_who_makes_a_point() -> None:
    assert [maker_of(name) for name in ("3.35", "int8", "Q4_K_M")] == [
        "loops", "baseline", "llama.cpp",
    ]  # fmt: skip
    assert [maker_of(name) for name in ("3.9@10", "3.9@8")] == ["loops L=10", "loops"]
    with pytest.raises(UsageError, match="16 bits"):
        maker_of("17")
    with pytest.raises(UsageError, match="--window 99"):
        maker_of("3.9@99")


def test_a_peer_without_a_file_of_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "require_type", lambda name: None)
    with pytest.raises(UsageError, match="--gguf"):
        replace(OPTIONS, points=("Q4_K_M",))


def test_a_peer_is_measured_like_ours(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that runs our engine on the original loses nothing."""
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    sizes: list[int] = []

    def quantize(
        source: Path, target: Path, kind: str, importance: Mapping[str, object], threads: int
    ) -> None:
        assert (source, kind, threads) == (gguf, "Q4_0", 1)
        assert "blk.1.ffn_down.weight" in importance
        target.write_bytes(b"x" * 1000)

    class Peer(NetworkScorer):
        def __init__(self, path: Path, context: int, vocab: int, threads: int) -> None:
            sizes.append(path.stat().st_size)
            super().__init__(OriginalNetwork(open_source(str(tiny_model)), 2), context)

        def close(self) -> None: ...

    monkeypatch.setattr(llama_cpp, "require_type", lambda name: None)
    monkeypatch.setattr(llama_cpp, "quantize", quantize)
    monkeypatch.setattr(llama_cpp, "LlamaCppScorer", Peer)
    options = replace(OPTIONS, points=("F16", "Q4_0"), gguf=gguf)
    exact, peer = measured(tiny_model, tmp_path / "study", options)
    assert sizes == [exact.size_bytes, peer.size_bytes] == [gguf.stat().st_size, 1000]
    assert (peer.maker, peer.mean_absolute_error, peer.efficiency) == ("llama.cpp", None, None)
    assert peer.quality.kl_mean == pytest.approx(0, abs=1e-9)
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == [
        "F16.json", "Q4_0.json", "calibration", "settings.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "study" / "settings.json").read_text("utf-8"))["tokens"] == 64


def test_magnitude_is_the_mean_of_all_matrices(tmp_path: Path) -> None:
    source = open_source(str(write_tiny_model(tmp_path / "m", tied=False, dtype="f16")))
    wanted: list[npt.NDArray[np.float32]] = []
    for tensor in study.all_tensors(source.spec):
        if len(tensor.shape) == 2:
            data = source.read(tensor).data.view(np.float16)
            wanted.append(np.abs(data.astype(np.float64)).reshape(-1))
    assert mean_magnitude(source) == pytest.approx(np.concatenate(wanted).mean(), rel=1e-6)


def test_importance_is_the_mean_square_of_every_input(tiny_model: Path) -> None:
    network = OriginalNetwork(open_source(str(tiny_model)), 2)
    tokens = np.random.default_rng(0).integers(4, 512, (2, 32))
    found = importance_matrix(network, tokens)
    assert len(found) == 2 * 7
    assert np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_v.weight"])
    x = network.embedding.read_rows(tokens.reshape(-1))
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + network.spec.norm_eps)
    wanted = ((x * network.layer(0).attn_norm) ** 2).mean(axis=0)
    assert np.allclose(found["blk.0.attn_q.weight"], wanted, rtol=1e-4)
    assert found["blk.1.ffn_down.weight"].shape == (network.spec.intermediate,)
