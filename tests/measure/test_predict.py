"""A prediction follows from the plan and from what was tried; how fast that was is not tested."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from loop_singular_bit import _native
from loop_singular_bit.budget import Ledger
from loop_singular_bit.container import RecordPlan
from loop_singular_bit.engine.memory_plan import RunPlan
from loop_singular_bit.measure import disk, predict, speed
from loop_singular_bit.measure.disk import core_awake, probe_disk
from loop_singular_bit.measure.predict import kernel_seconds


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "KERNEL_SHAPE", (64, 256))
    monkeypatch.setattr(speed, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.05)


@pytest.mark.parametrize(("disk_rate", "seconds"), [(500.0, 2.0), (5000.0, 1.0 + 0.25)])
def test_disk_or_processor_whichever_takes_longer(
    monkeypatch: pytest.MonkeyPatch, disk_rate: float, seconds: float
) -> None:
    before = _native.threads()
    monkeypatch.setattr(predict, "kernel_rate", lambda planes, window: 100.0)
    monkeypatch.setattr(predict, "memory_rate", lambda: 100.0)
    monkeypatch.setattr(predict, "_checksum_rate", lambda: 2000.0)
    monkeypatch.setattr(predict, "probe_disk", lambda path: disk_rate)
    plan = RunPlan(Ledger(), 16, slots=3, sweep_bytes=1000)
    found = predict.predict([record("layers.0.q", 2, 10, 10)], plan, Path("x"), 2)
    assert (found.kernel_seconds, found.verify_seconds, found.seconds) == (1.0, 0.25, seconds)
    assert found.tokens_per_second == 1 / seconds
    tiles = replace(record("layers.0.q", 2, 10, 10), extents={"tiles": 300})
    resident = predict.predict([tiles], RunPlan(Ledger(), 16), Path(), 2)
    assert (resident.disk_bytes_per_second, resident.sweep_bytes) == (None, 0)
    assert resident.seconds == resident.memory_seconds == 3
    _native.set_threads(before)


@pytest.mark.parametrize("size", [1, 5000, 9 << 20])
def test_a_file_of_any_size_is_read_for_a_moment(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(bytes(size))
    assert probe_disk(tmp_path / "x") > 0


def test_what_keeps_a_core_awake_ends() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), core_awake():
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before


def record(name: str, planes: int, rows: int, cols: int) -> RecordPlan:
    attributes = {"planes": planes, "window": 7, "rows": rows, "cols": cols}
    return RecordPlan(name, "planes", attributes, {})


def test_kernel_time_is_that_of_the_weights_by_their_planes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "kernel_rate", lambda planes, window: 100.0 / planes)
    layer = [record("layers.0.q", 2, 10, 10), record("layers.0.k", 3, 5, 20)]
    vector = RecordPlan("final_norm", "vector", {"count": 9}, {})
    embed, head = record("embed", 1, 100, 10), record("head", 1, 200, 10)
    assert kernel_seconds([*layer, vector]) == pytest.approx(2 + 3)
    assert kernel_seconds([*layer, embed]) == pytest.approx(5 + 10)  # tied: it is the head
    assert kernel_seconds([embed, *layer, head]) == pytest.approx(5 + 20)
