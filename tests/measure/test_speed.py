from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit import _native
from loop_singular_bit.codec.tables import WINDOW_DEFAULT
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.errors import UsageError
from loop_singular_bit.measure import speed
from loop_singular_bit.measure.speed import SpeedOptions, measure_speed


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors measured on little memory: what they are is not tested, what is made of them is."""
    monkeypatch.setattr(speed, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "KERNEL_SHAPE", (64, 256))


def test_figures_belong_together(tiny_artefact: Path) -> None:
    found = measure_speed(tiny_artefact, SpeedOptions(prompt=20, generate=6, repeats=2), threads=1)
    assert (found.prompt_tokens, found.generated_tokens, found.context) == (20, 6, 26)
    assert (found.planes, found.window, found.threads) == (4, WINDOW_DEFAULT, 1)
    assert found.instruction_set == _native.active_tier()
    assert 0 < found.weight_bytes <= (tiny_artefact / WEIGHTS_FILE).stat().st_size
    rate = found.generated_per_second
    assert found.bytes_per_second == pytest.approx(found.weight_bytes * rate)
    weights = found.weights_per_second / rate
    by_memory = found.weight_bytes / found.memory_bytes_per_second
    by_kernel = weights / found.kernel_weights_per_second
    assert found.floor_seconds == pytest.approx(max(by_memory, by_kernel))
    assert found.ratio_to_floor == pytest.approx(found.floor_seconds * rate)


def test_one_repetition_has_no_deviation(tiny_artefact: Path) -> None:
    found = measure_speed(tiny_artefact, SpeedOptions(prompt=2, generate=2, repeats=1), threads=1)
    assert (found.prompt_deviation, found.generated_deviation) == (0, 0)


@pytest.mark.parametrize(
    "options", [SpeedOptions(prompt=0), SpeedOptions(generate=0), SpeedOptions(repeats=0)]
)
def test_nothing_to_measure_is_refused(tiny_artefact: Path, options: SpeedOptions) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        measure_speed(tiny_artefact, options, threads=1)


def test_memory_is_read_whole() -> None:
    words = np.arange(300_007, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert _native.sum_words(words) == int(words.sum(dtype=np.uint64))
