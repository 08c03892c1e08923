from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from container_files import Places, pattern, places, read_index
from hypothesis import given, settings
from hypothesis import strategies as st

from loop_singular_bit.container import (
    ContainerReader,
    ContainerWriter,
    Piece,
    RecordPlan,
    plan_layout,
)
from loop_singular_bit.errors import FormatError

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=5)
)
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), VALUES, max_size=3)
PLANS = st.lists(
    st.builds(
        RecordPlan,
        name=NAMES,
        kind=NAMES,
        attributes=OBJECTS,
        extents=st.dictionaries(NAMES, st.integers(0, 9000), min_size=1, max_size=4),
        begins_run=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda plan: plan.name,
)
OPTIONAL = st.dictionaries(NAMES, st.integers(0, 5000), max_size=2)


LIMITS = st.integers(4096, 60_000) | st.just(5_000_000_000)


def _write(
    path: Path, plans: list[RecordPlan], meta: Any, optional: dict[str, int], shard_bytes: int
) -> None:
    with ContainerWriter(path, block_bytes=4096, shard_bytes=shard_bytes) as writer:
        for number, plan in enumerate(plans):
            if plan.begins_run:
                writer.begin_run()
            extents = {name: pattern(size, number) for name, size in plan.extents.items()}
            writer.add(plan.name, plan.kind, plan.attributes, extents)
        for name, size in optional.items():
            writer.add_optional(name, pattern(size, 99))
        writer.set_meta(meta)


def _placed(pieces: Sequence[Piece]) -> Places:
    return {
        (piece.record, piece.extent.name): (piece.shard, piece.offset, piece.size_bytes)
        for piece in pieces
    }


@settings(max_examples=25, deadline=None)
@given(plans=PLANS, meta=OBJECTS, optional=OPTIONAL, shard_bytes=LIMITS)
def test_plan_is_what_is_on_disk_and_reads_back(
    plans: list[RecordPlan], meta: dict[str, Any], optional: dict[str, int], shard_bytes: int
) -> None:
    layout = plan_layout(plans, meta, optional, 4096, shard_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.lsb"
        _write(path, plans, meta, optional, shard_bytes)
        with ContainerReader.open(path) as reader:
            sizes = tuple(found.stat().st_size for found in reader.paths)
            assert sizes == layout.shard_file_bytes
            assert set(reader.paths) == set(Path(folder).iterdir())
            assert reader.file_bytes == layout.file_bytes == sum(sizes)
            assert _placed(layout.pieces) == places(read_index(path.read_bytes()))
            assert reader.records == layout.index.records
            assert reader.meta == meta
            assert list(reader.optional) == list(optional)
            assert len(reader.runs) == len(layout.index.runs)
            for number, plan in enumerate(plans):
                for name, size in plan.extents.items():
                    assert reader.read(plan.name, name).tobytes() == pattern(size, number)
            reader.verify_all()


@settings(max_examples=50, deadline=None)
@given(plans=PLANS, optional=OPTIONAL, shard_bytes=LIMITS)
def test_places_are_aligned_and_ordered_with_small_gaps(
    plans: list[RecordPlan], optional: dict[str, int], shard_bytes: int
) -> None:
    layout = plan_layout(plans, {}, optional, 4096, shard_bytes)
    ends, block, shard = [64] * len(layout.shard_ends), 0, 0
    for piece in layout.pieces:
        assert piece.shard in (shard, shard + 1) or not piece.record
        shard = piece.shard
        assert piece.offset % 64 == 0
        assert 0 <= piece.offset - ends[shard] < 4096
        assert piece.first_block == block
        if piece.size_bytes:
            ends[shard], block = piece.end, block + -(-piece.size_bytes // 4096)
    assert tuple(ends) == layout.shard_ends
    assert 0 <= layout.table_offset - ends[0] < 64
    assert layout.table_bytes == 4 * block
    assert layout.index_offset % 64 == 0
    assert layout.shard_file_bytes[0] == layout.index_offset + layout.index_bytes


@settings(max_examples=50, deadline=None)
@given(plans=PLANS, shard_bytes=LIMITS)
def test_a_run_starts_at_a_page_of_one_shard_that_stays_below_the_limit(
    plans: list[RecordPlan], shard_bytes: int
) -> None:
    layout = plan_layout(plans, {}, None, 4096, shard_bytes)
    found = {plan.name: [p for p in layout.pieces if p.record == plan.name] for plan in plans}
    runs: list[list[Piece]] = []
    for plan in plans:
        if plan.begins_run:
            runs.append([])
        if runs:
            runs[-1] += found[plan.name]
    for run in runs:
        assert run[0].offset % 4096 == 0
        assert len({piece.shard for piece in run}) == 1
    for shard, end in enumerate(layout.shard_ends):
        lone = sum(any(p.size_bytes and p.shard == shard for p in run) for run in runs) <= 1
        assert end <= shard_bytes or lone


def test_empty_container_has_a_layout() -> None:
    layout = plan_layout([], {})
    assert layout.index_offset == 64
    assert layout.shard_ends == (64,)


def test_sizes_beyond_any_disk_are_planned_without_loops_over_blocks() -> None:
    layout = plan_layout([RecordPlan("w", "raw", {}, {"values": 2**60})], {})
    assert layout.table_bytes == 4 * 2**60 // 262144


def test_shards_are_counted_in_five_digits() -> None:
    def plans(count: int) -> list[RecordPlan]:
        return [_record(name=f"w{n}", extents={"v": 4096}, begins_run=True) for n in range(count)]

    assert len(plan_layout(plans(100_000), {}, shard_bytes=4096).shard_ends) == 100_000
    with pytest.raises(FormatError, match="100000 files; raise shard_bytes above 4096"):
        plan_layout(plans(100_001), {}, shard_bytes=4096)


def _record(**changes: Any) -> RecordPlan:
    fields: dict[str, Any] = {"name": "w", "kind": "raw", "attributes": {}, "extents": {"v": 1}}
    return RecordPlan(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "record name: found ''"),
        ({"name": "a b"}, "record name: found 'a b'"),
        ({"name": "x" * 256}, "record name: found 'xxx"),
        ({"name": "w\n"}, "record name: found"),
        ({"name": "é"}, "record name: found"),
        ({"name": 3}, "record name: found 3"),
        ({"kind": ""}, "record 'w' kind: found ''"),
        ({"extents": {}}, "record 'w': 0 extents"),
        ({"extents": {"a b": 1}}, "record 'w' extent name: found 'a b'"),
        ({"attributes": {"a": [1, float("nan")]}}, "record 'w' attributes a 1: found nan"),
        ({"attributes": {"a": float("inf")}}, "record 'w' attributes a: found inf"),
        ({"attributes": {"a": 2**63}}, "record 'w' attributes a: an integer of 64 bits"),
        ({"attributes": {"a": b"x"}}, "record 'w' attributes a: found a bytes"),
        ({"attributes": {"a": {1: 2}}}, "record 'w' attributes a: key 1 is not a string"),
        ({"attributes": {"a": "\ud800"}}, "not Unicode text"),
    ],
)
def test_what_the_format_forbids_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        plan_layout([_record(**changes)], {})


def test_repeated_record_name_is_refused() -> None:
    with pytest.raises(FormatError, match="record name: 'w' stands 2 times"):
        plan_layout([_record(), _record()], {})


def test_bad_optional_name_is_refused() -> None:
    with pytest.raises(FormatError, match="optional extent name: found 'a b'"):
        plan_layout([], {}, {"a b": 1})


@pytest.mark.parametrize("block_bytes", [0, -4096, 2048, 5000, 2**25])
def test_bad_block_size_is_refused(block_bytes: int) -> None:
    with pytest.raises(FormatError, match=f"block_bytes: found {block_bytes}"):
        plan_layout([], {}, block_bytes=block_bytes)


@pytest.mark.parametrize("shard_bytes", [0, -1, 4095, 2**63])
def test_bad_shard_limit_is_refused(shard_bytes: int) -> None:
    with pytest.raises(FormatError, match=f"shard_bytes: found {shard_bytes}"):
        plan_layout([], {}, shard_bytes=shard_bytes)


def test_nesting_is_limited() -> None:
    value: Any = {}
    for _ in range(31):
        value = {"a": value}
    plan_layout([], value)
    with pytest.raises(FormatError, match="meta: nested deeper than 32"):
        plan_layout([], {"a": value})
