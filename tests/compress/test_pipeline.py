from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_gguf, write_tiny_model

from loop_singular_bit import _native
from loop_singular_bit.budget import Budgets
from loop_singular_bit.codec.numbers import from_pattern
from loop_singular_bit.codec.outliers import select
from loop_singular_bit.codec.weights import DenseWeight, PlanesWeight
from loop_singular_bit.compress.allocate import CodecOptions, record_plans
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    Written,
    calibration_tokens,
    make_calibration,
    make_plan,
    silent,
    write_artefacts,
)
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.errors import ConfigError
from loop_singular_bit.models.spec import all_tensors, layer_tensors

TEXT = "The river runs slowly past the old mill. " * 120


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Source]:
    folder = tmp_path_factory.mktemp("sources")
    models = {
        "llama f16": write_tiny_model(folder / "a", dtype="f16", tied=False),
        "qwen2 bf16": write_tiny_model(folder / "b", "qwen2", dtype="bf16"),
        "mistral f32": write_tiny_model(folder / "c", "mistral"),
        "gguf": write_tiny_gguf(folder / "d.gguf"),
        # 9 blocks of 16: the rotation mixes blocks; the widest matrix has 288 columns.
        "odd widths": write_tiny_model(
            folder / "e", hidden=144, heads=9, kv_heads=3, intermediate=288
        ),
    }
    return {name: open_source(str(path)) for name, path in models.items()}


NAMES = ("llama f16", "qwen2 bf16", "mistral f32", "gguf", "odd widths")


def write(source: Source, options: CodecOptions, folder: Path, seed: int = 0) -> Written:
    folder.mkdir(exist_ok=True)
    found = make_plan(source, options, Budgets(), seed)
    calibration = None
    if options.codec == "planes":
        calibration = calibrated(source, folder)
    return write_artefacts(source, [(found, folder)], calibration, seed)[0]


def calibrated(source: Source, folder: Path) -> Calibration:
    network = OriginalNetwork(source, 2)
    return make_calibration(source, network, CalibrationOptions(512, TEXT), folder, silent)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", NAMES)
def test_the_artefact_is_the_same_bit_for_bit_whatever_the_threads(
    name: str, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    options = CodecOptions(planes=3, outlier_ratio=0.01)
    found = []
    for run, threads in enumerate((1, 1, 2)):
        _native.set_threads(threads)
        write(sources[name], options, tmp_path / str(run))
        found.append(files(tmp_path / str(run)))
    assert found[0] == found[1]
    assert found[0] == found[2]


def test_another_seed_is_another_artefact(sources: Mapping[str, Source], tmp_path: Path) -> None:
    for seed in (0, 1):
        write(sources["gguf"], CodecOptions(planes=1), tmp_path / str(seed), seed)
    assert files(tmp_path / "0") != files(tmp_path / "1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("codec", ["planes", "outlier1"])
def test_outliers_are_the_source_bit_for_bit(
    name: str, codec: str, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    source = sources[name]
    write(source, CodecOptions(codec, planes=1, outlier_ratio=0.02), tmp_path)
    network = ResidentNetwork(tmp_path)
    for tensor in layer_tensors(source.spec, 1):
        if len(tensor.shape) != 2:
            continue
        stored = source.read(tensor)
        weight = getattr(network.layer(1), tensor.role.value)
        assert isinstance(weight, PlanesWeight | DenseWeight) and weight.outliers is not None
        mask = select(from_pattern(stored.data, stored.dtype), 0.02)
        assert weight.outliers.count == round(0.02 * tensor.count)
        assert weight.outliers.values.tobytes() == stored.data[mask].tobytes()
        assert weight.outliers.columns().tolist() == np.nonzero(mask)[1].tolist()
        assert weight.outliers.counts.tolist() == mask.sum(axis=1).tolist()
    network.close()


@pytest.mark.parametrize("name", NAMES)
def test_raw_is_the_source_bit_for_bit(
    name: str, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    source = sources[name]
    write(source, CodecOptions("raw"), tmp_path)
    with ContainerReader.open(tmp_path / "model.lsb") as reader:
        for tensor in all_tensors(source.spec):
            found = bytes(reader.read(tensor.name, "data"))
            assert found == source.read(tensor).data.tobytes(), tensor.name


def test_vectors_are_the_source_bit_for_bit(sources: Mapping[str, Source], tmp_path: Path) -> None:
    source = sources["qwen2 bf16"]
    write(source, CodecOptions(planes=1), tmp_path)
    with ContainerReader.open(tmp_path / "model.lsb") as reader:
        vectors = [tensor for tensor in all_tensors(source.spec) if len(tensor.shape) == 1]
        assert len(vectors) == 2 * (2 + 3) + 1
        for tensor in vectors:
            assert bytes(reader.read(tensor.name, "data")) == source.read(tensor).data.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_records_are_those_of_the_plan(
    name: str, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    source = sources[name]
    written = write(source, CodecOptions(planes=2), tmp_path)
    dtypes = {t.name: source.dtype(t) for t in all_tensors(source.spec)}
    expected = record_plans(source.spec, dtypes, written.plan.codecs)
    with ContainerReader.open(tmp_path / "model.lsb") as reader:
        assert [(r.name, r.kind, dict(r.attributes)) for r in reader.records] == [
            (p.name, p.kind, dict(p.attributes)) for p in expected
        ]


def test_companion_files_are_copied(sources: Mapping[str, Source], tmp_path: Path) -> None:
    source = sources["gguf"]
    write(source, CodecOptions("int8"), tmp_path)
    found = files(tmp_path)
    assert {k: v for k, v in found.items() if k != "model.lsb"} == source.companion_files()


def test_two_plans_share_a_pass_and_are_what_each_is_alone(
    sources: Mapping[str, Source], tmp_path: Path
) -> None:
    source = sources["gguf"]
    options = (CodecOptions(planes=2), CodecOptions("int8"))
    plans = []
    for index, each in enumerate(options):
        (tmp_path / f"both{index}").mkdir()
        plans.append((make_plan(source, each, Budgets()), tmp_path / f"both{index}"))
    write_artefacts(source, plans, calibrated(source, tmp_path), 0)
    for index, each in enumerate(options):
        write(source, each, tmp_path / f"alone{index}")
        assert files(tmp_path / f"both{index}") == files(tmp_path / f"alone{index}")


def test_more_planes_lose_less(sources: Mapping[str, Source], tmp_path: Path) -> None:
    source = sources["mistral f32"]
    errors = []
    for planes in (1, 2, 3, 4):
        written = write(source, CodecOptions(planes=planes), tmp_path / str(planes))
        errors.append(written.mean_absolute_error(source.spec))
        assert all(r.proxy_loss < 0.4**planes for r in written.reports.values())
    assert all(after < 0.7 * before for before, after in pairwise(errors))


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"bos_token_id": 5, "eos_token_id": 6}, 5),
        ({"bos_token_id": None, "eos_token_id": [7, 8]}, 7),
        ({"bos_token_id": None, "eos_token_id": []}, 0),
        ({"bos_token_id": None, "eos_token_id": None}, 0),
    ],
)
def test_samples_start_with_the_start_of_text(
    fields: dict[str, object], start: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop_singular_bit.compress.pipeline.SEQUENCE_TOKENS", 2)
    source = with_config(tmp_path, fields)
    network, options = OriginalNetwork(source, 2), CalibrationOptions(256)
    assert set(calibration_tokens(source, network, options, silent)[::3, 0]) == {start}


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [-1, 512])
def test_a_start_outside_the_vocabulary_is_refused(field: str, value: int, tmp_path: Path) -> None:
    source = with_config(tmp_path, {"bos_token_id": None, field: value})
    network = OriginalNetwork(source, 2)
    with pytest.raises(ConfigError, match=rf"{field} is {value}: must be 0\.\.511"):
        calibration_tokens(source, network, CalibrationOptions(256), silent)


def with_config(folder: Path, fields: dict[str, object]) -> Source:
    model = write_tiny_model(folder / "model")
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | fields), "utf-8")
    return open_source(str(model))
