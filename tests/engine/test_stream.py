"""What passes by gives the bits of what is in memory, however it is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.pipeline import Calibration, make_plan, write_artefacts
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.container import PAGE_BYTES, ContainerReader
from loop_singular_bit.engine import stream
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ResidentNetwork, StreamedNetwork
from loop_singular_bit.engine.memory_plan import (
    PROCESS_BYTES,
    READING_BYTES_PER_TOKEN,
    SLOTS_MAX,
    Setting,
    as_plans,
    resident_plan,
    span_bytes,
    spread,
    streamed_plan,
)
from loop_singular_bit.engine.runtime import Engine
from loop_singular_bit.engine.stream import cut, plan_spans, streamed_extents

CODECS = {
    "planes": CodecOptions(planes=2),
    "planes and outliers": CodecOptions(planes=5, outlier_ratio=0.02, embedding="int8"),
    "int8": CodecOptions("int8", embedding="raw"),
    "signs": CodecOptions("outlier1", outlier_ratio=0.05, embedding="int8"),
}


@pytest.fixture(scope="module", params=CODECS)
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers whose widest matrices have two extents; head tied with half of the codecs."""
    folder = tmp_path_factory.mktemp("streamed")
    tied = request.param in ("planes", "signs")
    source = open_source(
        str(write_tiny_model(folder / "m", layers=5, intermediate=1040, tied=tied))
    )
    plan = make_plan(source, CODECS[request.param], Budgets())
    (folder / "a").mkdir()
    tokens = np.random.default_rng(0).integers(4, 512, (2, 64))
    write_artefacts(source, [(plan, folder / "a")], Calibration(tokens), 0)
    return folder / "a"


def logits(network: ResidentNetwork | StreamedNetwork) -> list[np.ndarray]:
    engine = Engine(network, 1, 64, 8)
    found = []
    for start, stop in ((0, 20), (20, 21), (21, 22), (22, 30)):
        hidden = engine.hidden(list(range(5 + start, 5 + stop)), 0, start)
        found.append(engine.logits(hidden))
    return found


@pytest.mark.parametrize("span", [1, 20_000, 4 << 20])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_bits_are_those_of_weights_in_memory(
    artefact: Path, span: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "cut", lambda sizes: cut(sizes, span))
    resident = ResidentNetwork(artefact)
    sizes = span_bytes(resident.spec, as_plans(resident.reader.records))
    pinned, _ = spread(sizes, int(share * sum(sizes)))
    streamed = StreamedNetwork(artefact, 3, pinned)
    for found, expected in zip(logits(streamed), logits(resident), strict=True):
        assert np.array_equal(found, expected)
    streamed.close()
    resident.close()


def test_unpacked_weights_give_the_bits_of_packed_ones(artefact: Path) -> None:
    packed, unpacked = ResidentNetwork(artefact), ResidentNetwork(artefact, unpack=True)
    for found, expected in zip(logits(unpacked), logits(packed), strict=True):
        assert np.array_equal(found, expected)
    spec, records = packed.spec, as_plans(packed.reader.records)
    least, most = (
        resident_plan(spec, records, Setting(64, unpack=unpack)).ledger.entries["weights"]
        for unpack in (False, True)
    )
    planes = [r for r in records if r.kind == "planes"]
    assert (most > least) == bool(planes)
    unpacked.close()
    packed.close()


def test_rows_of_the_embedding_are_those_in_memory(artefact: Path) -> None:
    resident, streamed = ResidentNetwork(artefact), StreamedNetwork(artefact)
    rows = np.array([511, 0, 7, 7, 31, 32, 500])
    found = streamed.embedding.read_rows(rows)
    assert np.array_equal(found, resident.embedding.read_rows(rows))
    assert streamed.embedding.read_rows(rows[:1]).shape == (1, 64)
    streamed.close()
    resident.close()


def test_a_sweep_that_ended_early_leaves_no_trace(artefact: Path) -> None:
    streamed, resident = StreamedNetwork(artefact), ResidentNetwork(artefact)
    streamed.begin_layers(True)
    streamed.begin_head()
    streamed.begin_layers(False)
    assert np.array_equal(logits(streamed)[0], logits(resident)[0])
    streamed.close()
    resident.close()


def test_planned_spans_are_those_of_the_file(artefact: Path) -> None:
    """But for what lies between extents: a scale of the next matrix, and zeros."""
    streamed = StreamedNetwork(artefact)
    head = streamed.reader.record("embed" if streamed.spec.tied_head else "head")
    spans = [s for index in range(5) for s in streamed._spans(index)]
    spans += plan_spans(streamed.reader, [head])
    sizes = span_bytes(streamed.spec, as_plans(streamed.reader.records))
    assert len(sizes) == len(spans)
    for size, span in zip(sizes, spans, strict=True):
        between = sum(p.size_bytes for p in span.pieces if p.extent.name == "scale")
        assert size <= span.end - span.offset <= size + between + 64 * len(span.pieces)
    streamed.close()


def test_everything_is_in_a_span_or_kept(artefact: Path) -> None:
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        for record in reader.records:
            names = [extent.name for extent in record.extents]
            if record.kind in ("vector", "input"):
                continue
            passing = [name for group in streamed_extents(record.kind, names) for name in group]
            kept = set(names) - set(passing)
            assert kept == ({"scale"} if record.kind == "planes" else set())
            assert passing == [name for name in names if name not in kept]


@pytest.mark.parametrize(
    ("sizes", "ranges"),
    [
        ([], []),
        ([3], [(0, 1)]),
        ([11], [(0, 1)]),
        ([4, 4, 4, 4, 4], [(0, 2), (2, 4), (4, 5)]),
        ([11, 1, 9, 1, 11], [(0, 1), (1, 3), (3, 4), (4, 5)]),
        ([0, 0, 10, 0], [(0, 4)]),
    ],
)
def test_cuts(sizes: list[int], ranges: list[tuple[int, int]]) -> None:
    assert list(cut(sizes, 10)) == ranges


@pytest.mark.parametrize(
    ("sizes", "most", "kept"),
    [
        ([], 10, []),
        ([5, 5, 5, 5], -1, []),
        ([5, 5, 5, 5], 4, []),
        ([5, 5, 5, 5], 5, [3]),
        ([5, 5, 5, 5], 10, [1, 3]),
        ([5, 5, 5, 5], 19, [1, 2, 3]),
        ([5, 5, 5, 5], 20, [0, 1, 2, 3]),
        ([1, 9, 1, 9], 11, [0, 2, 3]),
        ([4, 9], 9, [1]),
        ([9, 4], 12, [1]),
    ],
)
def test_what_stays_is_spread(sizes: list[int], most: int, kept: list[int]) -> None:
    assert spread(sizes, most) == (frozenset(kept), sum(sizes[number] for number in kept))


def test_a_plan_fills_its_budget_and_not_more(artefact: Path) -> None:
    network = ResidentNetwork(artefact)
    spec, records, setting = network.spec, as_plans(network.reader.records), Setting(64)
    network.close()
    least = streamed_plan(spec, records, setting).ledger.total_bytes
    most = resident_plan(spec, records, setting).ledger.total_bytes
    spans, rows = [size + 3 * PAGE_BYTES for size in span_bytes(spec, records)], 0
    for budget in np.linspace(least, max(most, least), 12).astype(int):
        plan = streamed_plan(spec, records, setting, int(budget))
        assert plan.ledger.total_bytes <= budget
        assert plan.rows >= rows
        out = [size for number, size in enumerate(spans) if number not in plan.pinned]
        assert plan.slots < SLOTS_MAX or plan.ledger.total_bytes + min(out, default=0) > budget
        rows = plan.rows
    assert rows == 64


def test_reading_a_large_tokenizer_may_take_more_than_the_run(artefact: Path) -> None:
    network = ResidentNetwork(artefact)
    spec, records = network.spec, as_plans(network.reader.records)
    network.close()
    small = resident_plan(spec, records, Setting(16)).ledger.entries
    assert small["opening"] == 0
    plan = resident_plan(replace(spec, vocab=10**6), records, Setting(16))
    read = PROCESS_BYTES + READING_BYTES_PER_TOKEN * 10**6
    assert plan.ledger.entries["opening"] > 0
    assert plan.ledger.total_bytes == read


def test_more_sequences_take_more_cache(artefact: Path) -> None:
    network = ResidentNetwork(artefact)
    spec, records = network.spec, as_plans(network.reader.records)
    network.close()
    one, two = (resident_plan(spec, records, Setting(256, n)).ledger.entries for n in (1, 2))
    assert two["kv"] == 2 * one["kv"]
    assert two["drafts"] == 2 * one["drafts"]
    assert two["weights"] == one["weights"]
