from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit import memory
from loop_singular_bit.memory import current_rss_bytes, peak_rss_bytes, total_memory_bytes

BLOCK_BYTES = 64 << 20


def test_current_memory_follows_an_allocation_and_the_peak_keeps_it() -> None:
    before = current_rss_bytes()
    block = np.ones(BLOCK_BYTES, np.uint8)
    during = current_rss_bytes()
    assert block[-1] == 1
    del block
    assert 0.8 * BLOCK_BYTES < during - before < 1.5 * BLOCK_BYTES
    # Linux counts pages in batches for each core: the two may differ by a few.
    assert peak_rss_bytes() >= during - (4 << 20)
    assert current_rss_bytes() < during - 0.5 * BLOCK_BYTES


def test_machine_has_more_memory_than_this_process_takes() -> None:
    total = total_memory_bytes()
    if total is None:
        pytest.skip("this system does not tell")
    assert peak_rss_bytes() < total < 1 << 60


def test_system_without_proc_gives_the_peak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_proc = peak_rss_bytes()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    found = peak_rss_bytes()
    assert current_rss_bytes() >= found
    # getrusage of a child may still count its parent; never less than what is in use.
    assert found >= 0.9 * with_proc


def test_darwin_counts_bytes_and_linux_kibibytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory.sys, "platform", "linux")
    linux = peak_rss_bytes()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert linux / peak_rss_bytes() == pytest.approx(1024, rel=0.01)


def test_missing_field_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmRSS:\t    1234 kB\n", "ascii")
    monkeypatch.setattr(memory, "_STATUS", status)
    assert current_rss_bytes() == 1234 * 1024
    assert memory._status_bytes("VmHWM") is None
