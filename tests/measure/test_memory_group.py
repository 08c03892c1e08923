from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loop_singular_bit.errors import ResourceError, UsageError
from loop_singular_bit.measure import memory_group as module
from loop_singular_bit.measure.capped_run import Cap, run_capped
from loop_singular_bit.measure.memory_group import V1, V2, Interface, MemoryGroup, memory_group

MB = 1_000_000
EVENTS = {
    V1: "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    V2: "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n",
}
# Only a group that was handed over is touched: name one here to run the tests on a real kernel.
REAL = os.environ.get("LSB_TEST_CGROUP")
needs_group = pytest.mark.skipif(
    REAL is None, reason="LSB_TEST_CGROUP names no memory control group handed over for tests"
)


@pytest.fixture(params=[V1, V2], ids=lambda face: face.version)
def group(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryGroup:
    """The files that a kernel shows in a group, as plain files."""
    face: Interface = request.param
    for name, text in (
        (face.limit, "max\n"), (face.swap_limit, "max\n"), (face.peak, "123456\n"),
        (face.events, EVENTS[face]), ("cgroup.procs", ""),
        ("memory.stat", f"{face.anonymous} 70\nother 1\n{face.file} 30\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    return MemoryGroup(tmp_path, face)


def test_every_figure_is_read_by_its_name(group: MemoryGroup) -> None:
    assert (group.peak_bytes, group.oom_kills, group.split()) == (123456, 2, (70, 30))


def test_the_limit_leaves_no_way_out_to_swap(group: MemoryGroup) -> None:
    group.limit(400 * MB)
    face = group.interface
    assert (group.directory / face.limit).read_text() == "400000000"
    # v1 limits memory and swap together, v2 swap alone.
    expected = "400000000" if face is V1 else "0"
    assert (group.directory / face.swap_limit).read_text() == expected


def test_a_kernel_without_swap_accounting_is_no_error(group: MemoryGroup) -> None:
    (group.directory / group.interface.swap_limit).unlink()
    group.limit(MB)
    assert not (group.directory / group.interface.swap_limit).exists()


def test_the_command_enters_the_group_before_it_begins(group: MemoryGroup) -> None:
    command = group.command([sys.executable, "-c", "import os; print(os.getpid())"])
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (group.directory / "cgroup.procs").read_text() == ran.stdout


def test_a_missing_file_is_named(group: MemoryGroup) -> None:
    (group.directory / group.interface.peak).unlink()
    with pytest.raises(ResourceError, match=group.interface.peak):
        _ = group.peak_bytes


def test_a_plain_directory_is_no_group(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a memory control group"), memory_group(tmp_path, MB):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_hands_no_memory_down_is_refused_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    with pytest.raises(UsageError, match="subtree_control"), memory_group(tmp_path, MB):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.controllers"]


def test_a_group_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMOVE_SECONDS", 0.0)
    (tmp_path / "busy").touch()
    with pytest.raises(ResourceError, match="cannot be removed"):
        module._remove(tmp_path)


@needs_group
def test_the_kernel_counts_page_cache_and_removes_the_group(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(30 * MB))
    script = f"data = bytearray(20 * {MB}); open({str(file)!r}, 'r+b').write(bytes(30 * {MB}))"
    parent = Path(str(REAL))
    ended = run_capped([sys.executable, "-c", script], Cap(200 * MB, parent), [])
    assert ended.returncode == 0
    assert 50 * MB < ended.use.peak_bytes <= 200 * MB
    assert list(parent.glob("lsb-bench-*")) == []


@needs_group
def test_the_kernel_kills_what_exceeds_its_limit() -> None:
    script = f"data = bytearray(200 * {MB})"
    ended = run_capped([sys.executable, "-c", script], Cap(60 * MB, Path(str(REAL))), [])
    assert ended.killed
    assert ended.use.oom_kills == 1
    assert ended.use.peak_bytes <= 60 * MB
