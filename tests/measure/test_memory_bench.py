from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from loop_singular_bit.compress.synthetic import SyntheticOptions, write_synthetic
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
from loop_singular_bit.engine.memory_plan import Setting, as_plans, streamed_plan
from loop_singular_bit.errors import BudgetError, ResourceError, UsageError
from loop_singular_bit.measure import disk, memory_bench, speed
from loop_singular_bit.measure.capped_run import Ended, MemoryUse
from loop_singular_bit.measure.memory_bench import (
    MemoryFigures,
    MemoryOptions,
    measure_memory,
)
from loop_singular_bit.measure.memory_child import ChildRequest, run_child

MB = 1_000_000
OPTIONS = MemoryOptions(None, context=64, prompt=20, generate=6, threads=1)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "KERNEL_SHAPE", (64, 256))
    monkeypatch.setattr(speed, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.05)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("memory") / "shape"
    write_synthetic(SyntheticOptions("small", 3.35), directory)
    return directory


@pytest.fixture(scope="module")
def figures(shape: Path) -> MemoryFigures:
    return measure_memory(shape, replace(OPTIONS, ram_bytes=300 * MB))


def test_a_run_that_fits_is_kept(figures: MemoryFigures) -> None:
    assert (figures.outcome, figures.kept, figures.limit_bytes) == ("finished", True, 300 * MB)
    assert 20 * MB < figures.use.peak_bytes < 300 * MB
    assert figures.use.anonymous_bytes + figures.use.file_bytes >= figures.use.peak_bytes / 2


def test_the_ledger_holds_the_peak(figures: MemoryFigures) -> None:
    assert figures.tokens is not None
    assert figures.use.peak_bytes <= 1.1 * sum(figures.tokens.ledger.values())


def test_rates_belong_together(figures: MemoryFigures) -> None:
    found = figures.tokens
    assert found is not None
    assert found.reader_seconds is None
    assert found.floor_seconds == found.kernel_seconds
    assert found.ratio_to_floor == pytest.approx(found.floor_seconds * found.generated_per_second)
    assert found.first_token_seconds > found.open_seconds
    assert found.threads == 1


def test_more_than_the_limit_or_an_early_end_is_not_kept(figures: MemoryFigures) -> None:
    use = figures.use
    assert not replace(figures, use=replace(use, peak_bytes=300 * MB + 1)).kept
    assert replace(figures, use=replace(use, peak_bytes=300 * MB)).kept
    assert replace(figures, use=replace(use, peak_bytes=900 * MB), limit_bytes=None).kept
    assert not replace(figures, outcome="killed: out of memory").kept


def test_streaming_is_told_by_what_was_read_from_disk(shape: Path) -> None:
    with ContainerReader.open(shape / WEIGHTS_FILE) as reader:
        plan = streamed_plan(read_spec(shape), as_plans(reader.records), Setting(64))
        layers = [r for r in reader.records if r.name.startswith("layers.")]
        layer_bytes = sum(e.size_bytes for record in layers for e in record.extents)
        direct = reader.backend.value.startswith("direct")
    streams = plan.ledger.total_bytes
    request = ChildRequest(str(shape), streams, 64, 4, 4, 1, "8", time.monotonic())
    streamed = run_child(request)
    resident = run_child(replace(request, ram_bytes=None, generate=7))
    assert (resident.generation_read_bytes, resident.reader_seconds) == (0, [])
    if not direct:
        pytest.skip("this file system counts no reads from disk")
    assert streamed.generation_read_bytes > 3 * layer_bytes
    assert len(streamed.token_seconds) == 4


def test_the_floor_is_compared_with_the_tokens_before_it() -> None:
    seconds = [1.0] * 5 + [2.0, 2.0, 4.0, 2.0, 2.0] + [5.0]
    assert memory_bench._ratio_to_floor(seconds, [0.9, 1.6, 4.0], 0.1) == pytest.approx(0.8)
    assert memory_bench._ratio_to_floor(seconds, [0.9, 1.6, 4.0], 1.0) == pytest.approx(0.8)
    assert memory_bench._ratio_to_floor(seconds, [0.1, 0.1, 4.0], 1.9) == pytest.approx(0.95)
    assert memory_bench._ratio_to_floor(seconds, [], 0.5) == pytest.approx(0.25)


def test_a_budget_that_the_engine_refuses_is_refused(shape: Path) -> None:
    with pytest.raises(BudgetError, match="--ram-mb 40"):
        measure_memory(shape, replace(OPTIONS, ram_bytes=40 * MB))


def test_damage_is_not_taken_for_a_lack_of_memory(shape: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shape, damaged)
    data = bytearray((damaged / WEIGHTS_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(ResourceError, match=r"exit code 5: .*crc32c"):
        measure_memory(damaged, OPTIONS)


@pytest.mark.parametrize(
    ("code", "stderr", "kills", "outcome"),
    [(-9, "", 1, "killed: out of memory"), (5, "no memory for a buffer", 0, "no memory for a")],
)
def test_a_lack_of_memory_is_an_outcome(
    shape: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, kills: int, outcome: str
) -> None:
    use = MemoryUse("cgroup v2", 400 * MB, 0, 0, 0, kills, 0)
    monkeypatch.setattr(memory_bench, "run_capped", lambda *_: Ended(code, "", stderr, use))
    found = measure_memory(shape, replace(OPTIONS, ram_bytes=400 * MB))
    assert found.outcome.startswith(outcome)
    assert (found.tokens, found.kept) == (None, False)
    json.dumps(asdict(found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": 0}, "at least 1"),
        ({"generate": 1}, "generated tokens 2"),
        ({"prompt": 60}, "--prompt 60 and --generate 6 do not fit --context 64"),
    ],
)
def test_bad_options_are_usage_errors(changes: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(OPTIONS, **changes)
