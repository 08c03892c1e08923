from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded import resharded
from tiny import write_tiny_model

from loop_singular_bit import open_model
from loop_singular_bit.budget import Budgets
from loop_singular_bit.codec.prefix import prefix
from loop_singular_bit.codec.weights import PlanesWeight
from loop_singular_bit.compress import compressor
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import (
    CompressionResult,
    EvaluationOptions,
    artefact_size_bytes,
)
from loop_singular_bit.compress.pipeline import Calibration, make_plan, silent, write_artefacts
from loop_singular_bit.compress.recut import Artefact, RecutOptions, plan_cut, recut
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.compress.synthetic import SyntheticOptions, write_synthetic
from loop_singular_bit.container import ContainerReader, ContainerWriter
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ArtefactNetwork, read_spec
from loop_singular_bit.engine.generate import Generated, GenerateOptions, generate
from loop_singular_bit.engine.memory_plan import Setting, as_plans, streamed_plan
from loop_singular_bit.errors import (
    BudgetError,
    FormatError,
    InputRefusedError,
    ResourceError,
    UsageError,
)
from loop_singular_bit.measure.probe import RunFigures, RunRequest
from loop_singular_bit.models.spec import all_tensors

SHORT = EvaluationOptions("The miller counts 12 sacks of flour. " * 60, 64, 64)
PLANES, TOP_PLANES = 4, 6


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(request: RunRequest) -> RunFigures:
        assert (Path(request.directory) / WEIGHTS_FILE).is_file()
        return RunFigures(50_000_000, "direct", 8, 8, 100.0, 100.0)

    monkeypatch.setattr(compressor, "probe_run", probe)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(
        tmp_path_factory.mktemp("recut") / "model", "qwen2", tied=False, vocab=1100, layers=3
    )


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planes with outliers and biases; embedding and head of several extents; no report."""
    folder = tmp_path_factory.mktemp("recut") / "whole"
    folder.mkdir()
    source = open_source(str(model))
    plan = make_plan(source, CodecOptions(planes=PLANES, outlier_ratio=0.01), Budgets())
    write_artefacts(source, [(plan, folder)], Calibration(np.full((2, 64), 7)), 3)
    return folder


def asked(artefact: Path, share: float = 0.75, **options: Any) -> RecutOptions:
    budgets = Budgets(share * artefact_size_bytes(artefact) / 1e9)
    return RecutOptions(budgets, evaluation=SHORT, threads=1, **options)


def cut(artefact: Path, output: Path, share: float = 0.75, **options: Any) -> CompressionResult:
    return recut(artefact, output, asked(artefact, share, **options))


def planes_of(artefact: Path) -> dict[str, int]:
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        planes = {r.name: r.attributes.get("planes") for r in reader.records}
    return {name: count for name, count in planes.items() if count is not None}


def with_report(artefact: Path, to: Path, report: object) -> Path:
    shutil.copytree(artefact, to)
    text = report if isinstance(report, str) else json.dumps(report)
    (to / "report.json").write_text(text, "utf-8")
    return to


def written_whole(artefact: Path, path: Path) -> None:
    """All planes of an artefact, as a cut writes them."""
    with closing(ArtefactNetwork(artefact)) as network:
        found = Artefact.of(network, artefact)
        found.write(found.sized(found.codecs), path, silent)


def test_all_planes_kept_are_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    written_whole(whole, tmp_path / WEIGHTS_FILE)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (whole / WEIGHTS_FILE).read_bytes()


def test_shards_are_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    files = resharded(whole, tmp_path / "sharded", 40_000)
    (tmp_path / "new").mkdir()
    written_whole(tmp_path / "sharded", tmp_path / "new" / WEIGHTS_FILE)
    assert len(files) > 3
    for path in files:
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()


def test_optional_extents_and_unknown_attributes_stay(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, other := tmp_path / "other")
    with (
        ContainerReader.open(whole / WEIGHTS_FILE) as reader,
        ContainerWriter(
            other / WEIGHTS_FILE, {**reader.meta, "by": "hand"}, overwrite=True, block_bytes=4096
        ) as writer,
    ):
        for record in reader.records:
            extents = {e.name: reader.read(record.name, e.name) for e in record.extents}
            writer.add(record.name, record.kind, {**record.attributes, "note": 1}, extents)
        writer.add_optional("about", b"more")
    written_whole(other, tmp_path / WEIGHTS_FILE)
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (other / WEIGHTS_FILE).read_bytes()
    cut(other, tmp_path / "small")
    with ContainerReader.open(tmp_path / "small" / WEIGHTS_FILE) as reader:
        assert (reader.meta["by"], bytes(reader.read_optional("about"))) == ("hand", b"more")
        assert all(record.attributes["note"] == 1 for record in reader.records)


def test_every_weight_is_the_first_planes_of_what_it_was(whole: Path, tmp_path: Path) -> None:
    cut(whole, tmp_path / "small")
    with (
        closing(ArtefactNetwork(whole)) as before,
        closing(ArtefactNetwork(tmp_path / "small")) as after,
    ):
        fewer = 0
        for tensor in all_tensors(before.spec):
            if len(tensor.shape) == 1:
                assert np.array_equal(before.vector(tensor.name), after.vector(tensor.name))
                continue
            old, new = before.matrix(tensor.name), after.matrix(tensor.name)
            assert isinstance(old, PlanesWeight) and isinstance(new, PlanesWeight)
            expected, _ = prefix(old, new.planes)
            assert len(old.extents) == len(new.extents)
            assert np.array_equal(expected.row_scale, new.row_scale)
            assert np.array_equal(expected.integers(), new.integers())
            assert np.array_equal(expected.dense(), new.dense())
            fewer += new.planes < old.planes
        assert fewer > 5


def test_the_same_inputs_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        cut(whole, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "one").iterdir() if p.name != "report.json")
    assert {"README.md", "config.json", "model.lsb", "tokenizer.json"} <= set(files)
    for name in (name for name in files if name != "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("sensitive", [False, True])
def test_the_size_is_as_planned_and_within_the_budget(
    sensitive: bool, whole: Path, tmp_path: Path
) -> None:
    if sensitive:
        costs = dict.fromkeys(planes_of(whole), 0.1)
        whole = with_report(whole, tmp_path / "whole", {"sensitivity": costs})
    had, totals = planes_of(whole), []
    for share in (0.65, 0.75, 0.85, 0.97):
        result = cut(whole, output := tmp_path / str(share), share)
        assert result["size_bytes"] == result["size_bytes_planned"] == artefact_size_bytes(output)
        assert result["size_bytes"] <= share * artefact_size_bytes(whole)
        assert result["size_bytes"] > (share - 0.08) * artefact_size_bytes(whole)
        assert all(1 <= planes <= had[name] for name, planes in planes_of(output).items())
        totals.append(sum(planes_of(output).values()))
    assert totals == sorted(totals) and totals[0] < totals[-1] < sum(had.values())


def test_a_matrix_that_costs_much_keeps_its_planes(whole: Path, tmp_path: Path) -> None:
    costs = dict.fromkeys(planes_of(whole), 0.01)
    dear = {"layers.1.gate": 10.0, "embed": 1000.0}
    source = with_report(whole, tmp_path / "whole", {"sensitivity": costs | dear})
    result = cut(source, tmp_path / "small", 0.68)
    found = planes_of(tmp_path / "small")
    assert (found["layers.1.gate"], found["embed"]) == (PLANES, TOP_PLANES)
    assert found["layers.0.gate"] < PLANES and found["head"] < TOP_PLANES
    assert result["order"] == "sensitivity"


def test_without_costs_the_order_is_that_of_a_compression(whole: Path, tmp_path: Path) -> None:
    result = cut(whole, tmp_path / "small", 0.72)
    found = planes_of(tmp_path / "small")
    assert result["order"] == "fixed"
    assert min(found["layers.0.v"], found["layers.2.v"]) >= max(
        found["layers.1.gate"], found["layers.1.up"]
    )
    assert found["head"] == found["embed"] > found["layers.1.gate"]


def test_a_real_artefact_is_cut_twice(tiny_artefact: Path, tmp_path: Path) -> None:
    first = cut(tiny_artefact, tmp_path / "first", 0.9)
    second = cut(tmp_path / "first", tmp_path / "second", 0.9)
    assert first["order"] == second["order"] == "sensitivity"
    assert second["size_bytes"] < first["size_bytes"] < first["cut_from_bytes"]
    report = json.loads((tmp_path / "second" / "report.json").read_text("utf-8"))
    before = json.loads((tiny_artefact / "report.json").read_text("utf-8"))
    assert (report["sensitivity"], report["model"]) == (before["sensitivity"], before["model"])


def test_what_was_not_measured_is_not_reported(whole: Path, tmp_path: Path) -> None:
    result = cut(whole, tmp_path / "small")
    assert result["quality"] == "not measured"
    assert not {"quality_loss", "kl_mean", "perplexity", "mean_absolute_error"} & set(result)
    assert (result["ram_peak_bytes"], result["run"]["generated_per_second"]) == (50_000_000, 100.0)
    assert (result["cut_from"], result["model"]) == (str(whole), None)
    assert set(result["targets"]) == {"storage"} and result["all_targets_achieved"]
    report = json.loads((tmp_path / "small" / "report.json").read_text("utf-8"))
    tensors = report.pop("tensors")
    assert report.pop("sensitivity") is None
    assert report == json.loads(json.dumps(dict(result)))
    for name, planes in planes_of(tmp_path / "small").items():
        assert (tensors[name]["planes"], tensors[name]["planes_before"]) == (
            planes, TOP_PLANES if name in ("embed", "head") else PLANES,
        )  # fmt: skip
        assert (tensors[name]["relative_change"] > 0) == (planes < tensors[name]["planes_before"])
        assert tensors[name]["relative_change"] < 0.4
    card = (tmp_path / "small" / "README.md").read_text("utf-8")
    assert "\n# small\n" in card and "Quality was not measured" in card and "| 50" not in card
    assert f"{result['size_bytes']:,} bytes" in card


def test_against_the_original_quality_is_measured(whole: Path, model: Path, tmp_path: Path) -> None:
    result = cut(whole, tmp_path / "small", against=str(model))
    assert result["kl_mean"] > 0 and result["eval_tokens"] == 64
    assert result["model"] == str(model) and "quality" not in result
    source = open_source(str(model))
    with closing(ArtefactNetwork(tmp_path / "small")) as network:
        matrices = [t for t in all_tensors(network.spec) if len(t.shape) == 2]
        errors = [
            np.abs(network.matrix(t.name).dense() - source.read(t).data).sum() for t in matrices
        ]
    mean = sum(errors) / sum(t.count for t in matrices)
    assert result["mean_absolute_error"] == pytest.approx(mean, rel=1e-4)
    card = (tmp_path / "small" / "README.md").read_text("utf-8")
    assert f"original {result['perplexity_original']:.3f}" in card
    assert "nothing was encoded again" in card


def test_targets_are_looked_at(whole: Path, tmp_path: Path) -> None:
    gigabytes = 0.75 * artefact_size_bytes(whole) / 1e9
    result = recut(whole, tmp_path / "small", RecutOptions(Budgets(gigabytes, 49.0)))
    assert result["targets"]["ram"] == {"limit": 49.0, "measured": 50.0, "met": False}
    assert not result["all_targets_achieved"]


def test_the_engine_runs_it_in_memory_and_streamed(whole: Path, tmp_path: Path) -> None:
    cut(whole, small := tmp_path / "small", 0.68)
    with ContainerReader.open(small / WEIGHTS_FILE) as reader:
        least = streamed_plan(read_spec(small), as_plans(reader.records), Setting(64)).ledger
    tokens = []
    for ram_bytes in (None, least.total_bytes):
        with (
            open_model(small, ram_bytes=ram_bytes, context=64, threads=1) as opened,
            opened.session() as session,
        ):
            ids = opened.text.encode("The miller", special=True)
            events = generate(opened, session, ids, GenerateOptions(max_tokens=4))
            tokens.append([event.id for event in events if isinstance(event, Generated)])
    assert len(tokens[0]) > 0
    assert tokens[0] == tokens[1]


def test_a_synthetic_artefact_stays_one(tmp_path: Path) -> None:
    write_synthetic(SyntheticOptions("tiny", 4.5), tmp_path / "shape")
    result = cut(tmp_path / "shape", tmp_path / "small")
    assert result["synthetic"] == "tiny"
    card = (tmp_path / "small" / "README.md").read_text("utf-8")
    assert "tags: [synthetic]" in card and "random weights in the shape of tiny" in card


def test_a_budget_that_the_artefact_has_already_is_refused(whole: Path, tmp_path: Path) -> None:
    size = artefact_size_bytes(whole)
    for nbytes in (size, 2 * size):
        options = RecutOptions(Budgets(nbytes / 1e9))
        with pytest.raises(UsageError, match=rf"--storage-gb .*{size / 1e9:.9f} GB"):
            recut(whole, tmp_path / "small", options)
    assert not list(tmp_path.iterdir())


def test_a_budget_below_the_least_is_refused_with_it(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="the smallest such artefact needs") as refused:
        cut(whole, tmp_path / "small", 0.1)
    least = float(str(refused.value).split("needs ")[1].split(" GB")[0])
    recut(whole, tmp_path / "least", RecutOptions(Budgets(least)))
    with (
        closing(ArtefactNetwork(whole)) as network,
        pytest.raises(BudgetError, match="smallest"),
    ):
        plan_cut(Artefact.of(network, whole), Budgets(least - 1e-9), None)
    assert [path.name for path in tmp_path.iterdir()] == ["least"]


def test_without_planes_nothing_can_go(model: Path, tmp_path: Path) -> None:
    (tmp_path / "int8").mkdir()
    source = open_source(str(model))
    plan = make_plan(source, CodecOptions("int8"), Budgets())
    write_artefacts(source, [(plan, tmp_path / "int8")], None, 0)
    with pytest.raises(BudgetError, match=f"{artefact_size_bytes(tmp_path / 'int8') / 1e9:.9f}"):
        cut(tmp_path / "int8", tmp_path / "small")


def test_a_damaged_tile_leaves_nothing_behind(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    with ContainerReader.open(whole / WEIGHTS_FILE) as reader:
        piece = reader.piece("layers.1.gate", "tiles0")
    data = bytearray((whole / WEIGHTS_FILE).read_bytes())
    data[piece.end - 1] ^= 1  # of the last plane, which would go
    (broken / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(ResourceError, match=r"layers\.1\.gate"):
        cut(broken, tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_tiles_of_another_length_are_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, other := tmp_path / "other")
    with (
        ContainerReader.open(whole / WEIGHTS_FILE) as reader,
        ContainerWriter(other / WEIGHTS_FILE, reader.meta, overwrite=True) as writer,
    ):
        for record in reader.records:
            extents = {e.name: reader.read(record.name, e.name) for e in record.extents}
            if record.name == "layers.0.k":
                extents["tiles0"] = extents["tiles0"][:-64]
            writer.add(record.name, record.kind, record.attributes, extents)
    with pytest.raises(FormatError, match=r"layers\.0\.k.*'tiles0' has \d+ bytes, expected"):
        cut(other, tmp_path / "small")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ("{", "not JSON"),
        ([], "found list"),
        ({"sensitivity": [1]}, "no object"),
        ({"sensitivity": {"embed": 1.0}}, "layers.0.q is None"),
        ({"sensitivity": {"embed": -1.0}}, "embed is -1.0"),
        ({"sensitivity": {"embed": float("nan")}}, "embed is nan"),
    ],
)
def test_a_report_that_is_none_of_ours_is_refused(
    report: object, words: str, whole: Path, tmp_path: Path
) -> None:
    source = with_report(whole, tmp_path / "whole", report)
    with pytest.raises(FormatError, match=f"report.json: .*{words}"):
        cut(source, tmp_path / "small")


def test_another_model_is_refused(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"--against .*name the model it was made from"):
        cut(whole, tmp_path / "small", against=str(tiny_model))
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_in_use_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine", "utf-8")
    with pytest.raises(InputRefusedError, match="not an empty directory"):
        cut(whole, tmp_path / "mine")
    with pytest.raises(InputRefusedError, match="inside"):
        cut(whole, whole / "small")
