from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from tiny import Tiny, tiny_weights, write_safetensors, write_tiny_gguf, write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.codec.codecs import Int8, Outlier1, Planes, Raw16
from loop_singular_bit.codec.planes import distortion
from loop_singular_bit.codec.tables import WINDOW_DEFAULT
from loop_singular_bit.compress.allocate import (
    EMBEDDING_PLANES_MORE,
    PLANES_MOST,
    CodecOptions,
    Plan,
    input_name,
    plan,
)
from loop_singular_bit.compress.compressor import artefact_size_bytes
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.pipeline import (
    CalibrationOptions,
    make_calibration,
    make_plan,
    silent,
    write_artefacts,
)
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.compress.spend import predicted_nats
from loop_singular_bit.errors import BudgetError, UsageError
from loop_singular_bit.models.spec import LINEAR_ROLES, Role, all_tensors

TEXT = "The river runs slowly past the old mill. " * 40
SOURCES = {
    "tied": {},
    "untied": {"tied": False, "dtype": "f16"},
    "biases": {"family": "qwen2", "dtype": "bf16"},
}
PLANES = [CodecOptions(planes=planes) for planes in (1, 2, 3, 4, 8)]
OTHERS = [CodecOptions(codec=codec) for codec in ("raw", "int8", "uniform1")]
TOPS = [CodecOptions(planes=2, embedding=top) for top in ("raw", "int8")]
OUTLIERS = [
    CodecOptions(planes=planes, outlier_ratio=ratio)
    for planes in (2, 4) for ratio in (0.005, 0.02)
] + [CodecOptions(codec="outlier1"), CodecOptions(codec="outlier1", outlier_ratio=0.1)]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Source]:
    folder = tmp_path_factory.mktemp("sources")
    found = {
        name: open_source(str(write_tiny_model(folder / name, **options)))
        for name, options in SOURCES.items()
    }
    found["gguf"] = open_source(str(write_tiny_gguf(folder / "tiny.gguf")))
    return found


def written_bytes(source: Source, found: Plan, folder: Path, seed: int = 0) -> int:
    """Size of the artefact of a plan."""
    calibration = None
    if found.planes:
        network = OriginalNetwork(source, 2)
        options = CalibrationOptions(256, TEXT)
        calibration = make_calibration(source, network, options, folder, silent)
    write_artefacts(source, [(found, folder)], calibration, seed)
    return artefact_size_bytes(folder)


@pytest.mark.parametrize("name", [*SOURCES, "gguf"])
@pytest.mark.parametrize("options", PLANES + OTHERS + TOPS, ids=str)
def test_the_size_is_exact_without_outliers(
    name: str, options: CodecOptions, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    found = make_plan(sources[name], options, Budgets())
    assert found.size_bytes == written_bytes(sources[name], found, tmp_path)


@pytest.mark.parametrize("seed", [1, 12345, 2**32 - 1])
def test_the_size_is_exact_for_any_seed(
    seed: int, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    found = make_plan(sources["tied"], CodecOptions(planes=2), Budgets(), seed)
    assert found.size_bytes == written_bytes(sources["tied"], found, tmp_path, seed)


@pytest.mark.parametrize("name", [*SOURCES, "gguf"])
@pytest.mark.parametrize("options", OUTLIERS, ids=str)
def test_the_size_is_close_with_outliers(
    name: str, options: CodecOptions, sources: Mapping[str, Source], tmp_path: Path
) -> None:
    found = make_plan(sources[name], options, Budgets())
    size = written_bytes(sources[name], found, tmp_path)
    assert size == pytest.approx(found.size_bytes, rel=0.005)
    assert found.size_bytes < found.size_bytes_max or size == found.size_bytes
    assert size <= found.size_bytes_max


@pytest.mark.parametrize("ratio", [0.0, 0.02])
def test_more_storage_gives_more_planes_and_is_never_exceeded(
    ratio: float, sources: Mapping[str, Source]
) -> None:
    source, options = sources["untied"], CodecOptions(outlier_ratio=ratio)
    least = make_plan(source, CodecOptions(planes=1, outlier_ratio=ratio), Budgets()).size_bytes_max
    most = make_plan(source, CodecOptions(planes=6, outlier_ratio=ratio), Budgets()).size_bytes_max
    plans = []
    for step in range(12):
        budget = int(1 + (least + (most - least) * step / 11))
        found = make_plan(source, options, Budgets(storage_gb=budget / 1e9))
        assert found.size_bytes <= found.size_bytes_max <= budget
        plans.append(found)
    totals = [sum(planes * count for planes, count in p.planes.items()) for p in plans]
    assert all(before <= after for before, after in pairwise(totals))
    assert len(set(totals)) > 6
    # What fits the gap before the next layer is free: some matrices have a plane more even here.
    assert set(plans[0].planes) - {2} == {1, 1 + EMBEDDING_PLANES_MORE}
    assert set(plans[-1].planes) == {PLANES_MOST}


def sensitivity(source: Source, seed: int = 0) -> dict[str, float]:
    """Costs of matrices that differ by up to a thousand."""
    rng = np.random.default_rng(seed)
    names = [t.name for t in all_tensors(source.spec) if len(t.shape) == 2]
    return {name: float(10 ** rng.uniform(-3, 0)) for name in names}


def planes_of(found: Plan) -> dict[str, int]:
    return {
        name: codec.options.planes
        for name, codec in found.codecs.items()
        if isinstance(codec, Planes)
    }


def predicted(found: Plan, costs: Mapping[str, float]) -> float:
    return sum(
        costs[name] * distortion(WINDOW_DEFAULT, planes)
        for name, planes in planes_of(found).items()
    )


@pytest.mark.parametrize("name", ["untied", "tied"])
@pytest.mark.parametrize("ratio", [0.0, 0.02])
def test_planes_go_where_they_save_most(
    name: str, ratio: float, sources: Mapping[str, Source]
) -> None:
    source, options = sources[name], CodecOptions(outlier_ratio=ratio)
    costs = sensitivity(source)
    least = make_plan(source, CodecOptions(planes=1, outlier_ratio=ratio), Budgets()).size_bytes_max
    most = make_plan(source, CodecOptions(planes=6, outlier_ratio=ratio), Budgets()).size_bytes_max
    losses = []
    for step in range(8):
        budgets = Budgets(storage_gb=(1 + least + (most - least) * step // 7) / 1e9)
        found = make_plan(source, options, budgets, 0, costs)
        even = make_plan(source, options, budgets)
        assert found.size_bytes_max <= (budgets.storage_bytes or 0)
        assert predicted(found, costs) <= 1.02 * predicted(even, costs)
        losses.append(predicted(found, costs))
    assert all(before >= after for before, after in pairwise(losses))
    assert losses[3] < 0.8 * losses[2]
    assert set(planes_of(found).values()) == {PLANES_MOST}


def test_no_exchange_of_a_plane_would_save(sources: Mapping[str, Source]) -> None:
    """Between matrices of one size, a plane more for one is a plane less for another."""
    source = sources["untied"]
    costs = sensitivity(source, 1)
    size = make_plan(source, CodecOptions(planes=3), Budgets()).size_bytes_max
    found = make_plan(source, CodecOptions(), Budgets(storage_gb=size / 1e9), 0, costs)
    planes = planes_of(found)
    shapes = {t.name: t.shape for t in all_tensors(source.spec)}
    for one, two in permutations(planes, 2):
        if shapes[one] == shapes[two] and planes[one] < PLANES_MOST and planes[two] > 1:
            gained = costs[one] * (
                distortion(WINDOW_DEFAULT, planes[one])
                - distortion(WINDOW_DEFAULT, planes[one] + 1)
            )
            paid = costs[two] * (
                distortion(WINDOW_DEFAULT, planes[two] - 1)
                - distortion(WINDOW_DEFAULT, planes[two])
            )
            assert gained <= paid * 1.0001


def test_outliers_are_kept_where_they_hold_much(sources: Mapping[str, Source]) -> None:
    source = sources["untied"]
    costs, one = sensitivity(source, 2), "layers.1.down"
    names = [t.name for t in all_tensors(source.spec) if t.role in LINEAR_ROLES]
    kept = {name: (0.0, 1e-6, 1e-5, 1e-4) for name in names} | {one: (0.0, 0.0, 0.9, 0.95)}
    size = make_plan(source, CodecOptions(planes=3), Budgets()).size_bytes_max
    budgets, options = Budgets(storage_gb=size / 1e9), CodecOptions(outlier_ratio="auto")
    found = make_plan(source, options, budgets, 0, costs, kept=kept)
    shares = {n: c.outlier_ratio for n, c in found.codecs.items() if isinstance(c, Planes)}
    assert {name for name, share in shares.items() if share} == {one}
    assert shares[one] in (1e-3, 5e-3) and found.size_bytes_max <= size
    assert set(found.outliers.values()) == {1} and set(found.outliers) == {shares[one]}
    without = make_plan(source, options, budgets, 0, costs)
    assert predicted_nats(found.codecs, costs, kept) < predicted_nats(without.codecs, costs, kept)
    assert predicted_nats(without.codecs, costs, kept) == pytest.approx(predicted(without, costs))


def test_a_codec_that_was_fixed_gets_no_planes(sources: Mapping[str, Source]) -> None:
    source = sources["untied"]
    options = CodecOptions(embedding="int8")
    found = make_plan(source, options, Budgets(storage_gb=1), 0, sensitivity(source))
    assert {"embed", "head"}.isdisjoint(planes_of(found))


def test_outliers_in_a_few_columns_stay_below_the_largest_size(tmp_path: Path) -> None:
    # A layer whose longer index needs another page: below one, the next run's start hides it.
    sizes = {"hidden": 512, "intermediate": 448, "layers": 1}
    model = write_tiny_model(tmp_path / "model", **sizes)
    weights = tiny_weights(Tiny(**sizes))
    for value in weights.values():
        if value.ndim == 2:
            value[:, -8:] *= 20
    write_safetensors(model / "model.safetensors", weights)
    source, folder = open_source(str(model)), tmp_path / "out"
    folder.mkdir()
    found = make_plan(source, CodecOptions(planes=1, outlier_ratio=0.02), Budgets())
    write_artefacts(source, [(found, folder)], None, 0)
    assert found.size_bytes < artefact_size_bytes(folder) <= found.size_bytes_max


def test_room_that_is_left_goes_to_the_most_sensitive_matrices(
    sources: Mapping[str, Source],
) -> None:
    source = sources["tied"]
    size = make_plan(source, CodecOptions(planes=3), Budgets()).size_bytes
    found = make_plan(source, CodecOptions(), Budgets(storage_gb=(size + 600) / 1e9))
    more = {
        name
        for name, codec in found.codecs.items()
        if isinstance(codec, Planes) and codec.options.planes == 4
    }
    assert {"layers.0.v", "layers.1.v"} <= more
    assert not {"layers.0.gate", "layers.1.gate", "layers.0.up", "layers.1.up"} & more


def test_a_large_budget_takes_the_most_planes(sources: Mapping[str, Source]) -> None:
    assert make_plan(sources["tied"], CodecOptions(), Budgets(storage_gb=1)).planes == {6: 15}


def test_no_budget_takes_the_default(sources: Mapping[str, Source]) -> None:
    assert make_plan(sources["tied"], CodecOptions(), Budgets()).planes == {4: 14, 6: 1}


@pytest.mark.parametrize(
    "options",
    [CodecOptions(), CodecOptions(planes=3), CodecOptions(codec="int8"),
     CodecOptions(outlier_ratio=0.02), CodecOptions(codec="outlier1")],
    ids=str,
)  # fmt: skip
def test_the_least_size_of_a_refusal_is_feasible(
    options: CodecOptions, sources: Mapping[str, Source]
) -> None:
    with pytest.raises(BudgetError, match=r"--storage-gb 1e-06.*smallest.*bits per weight"):
        make_plan(sources["tied"], options, Budgets(storage_gb=1e-6))
    with pytest.raises(BudgetError) as refused:
        make_plan(sources["tied"], options, Budgets(storage_gb=1e-6))
    match = re.search(r"needs ([\d.]+) GB", str(refused.value))
    assert match is not None
    needed = round(float(match[1]) * 1e9)
    assert make_plan(sources["tied"], options, Budgets(storage_gb=needed / 1e9))
    with pytest.raises(BudgetError):
        make_plan(sources["tied"], options, Budgets(storage_gb=(needed - 1) / 1e9))


def test_baselines_keep_the_embedding_at_eight_bits(sources: Mapping[str, Source]) -> None:
    source = sources["untied"]
    codecs = make_plan(source, CodecOptions(codec="outlier1", outlier_ratio=0.1), Budgets()).codecs
    assert (codecs["embed"], codecs["head"], codecs["layers.0.q"]) == (
        Int8(), Int8(), Outlier1(0.1),
    )  # fmt: skip
    assert set(make_plan(source, CodecOptions(codec="raw"), Budgets()).codecs.values()) == {Raw16()}


def test_every_matrix_has_a_codec_and_vectors_have_none(sources: Mapping[str, Source]) -> None:
    source = sources["biases"]
    codecs = make_plan(source, CodecOptions(), Budgets()).codecs
    matrices = {t.name for t in all_tensors(source.spec) if len(t.shape) == 2}
    assert set(codecs) == matrices


def test_matrices_of_one_input_share_a_rotation(sources: Mapping[str, Source]) -> None:
    names = {t.role: input_name(t) for t in all_tensors(sources["untied"].spec) if t.layer in
             (0, None) and len(t.shape) == 2}  # fmt: skip
    assert names[Role.Q] == names[Role.K] == names[Role.V] == "layers.0.attn_in"
    assert names[Role.GATE] == names[Role.UP] == "layers.0.mlp_in"
    assert (names[Role.EMBEDDING], names[Role.HEAD]) == ("embed.in", "head.in")
    assert len(set(names.values())) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [("codec", "q4"), ("embedding", "q4"), ("planes", 0), ("planes", 9), ("window", 3),
     ("window", 11), ("block", 3), ("outlier_ratio", -0.01), ("outlier_ratio", 0.51),
     ("outlier_ratio", float("nan"))],
)  # fmt: skip
def test_an_option_outside_its_range_is_named(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')}.*{value}"):
        CodecOptions(**{field: value})  # type: ignore[arg-type]


def test_companions_count(sources: Mapping[str, Source]) -> None:
    source = sources["tied"]
    dtypes = {t.name: source.dtype(t) for t in all_tensors(source.spec)}
    sizes = [plan(source.spec, dtypes, n, CodecOptions(), None).size_bytes for n in (0, 1000)]
    assert sizes[1] - sizes[0] == 1000
