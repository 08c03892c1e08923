from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loop_singular_bit.measure import capped_run
from loop_singular_bit.measure.capped_run import (
    RESERVED_BYTES,
    WITHOUT_GROUP,
    Cap,
    Ended,
    run_capped,
)
from loop_singular_bit.measure.page_cache import evict, resident_bytes

MB = 1_000_000
HOLD = "; import time; time.sleep(0.3)"  # longer than many samples


def run(script: str, limit: int | None = None, files: tuple[Path, ...] = ()) -> Ended:
    return run_capped([sys.executable, "-c", script], Cap(limit), files)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """40 MB on disk, none of it in the page cache."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20) * 40)
    if evict([path]):
        pytest.skip("this file system keeps its files in memory")
    return path


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> float:
    """Seconds between looks at the page cache."""
    seconds = float(getattr(request, "param", 0.02))
    monkeypatch.setattr(capped_run, "CACHE_SECONDS", seconds)
    return seconds


def test_anonymous_memory_is_seen() -> None:
    idle, busy = run("pass" + HOLD).use, run(f"x = b'1' * (50 * {MB})" + HOLD).use
    assert busy.method == WITHOUT_GROUP
    assert 45 * MB < busy.peak_bytes - idle.peak_bytes < 60 * MB
    assert 45 * MB < busy.anonymous_bytes - idle.anonymous_bytes < 60 * MB
    assert abs(busy.file_bytes - idle.file_bytes) < 5 * MB


@pytest.mark.usefixtures("often")
def test_page_cache_that_a_read_leaves_is_part_of_the_peak(file: Path) -> None:
    script = f"f = open({str(file)!r}, 'rb', buffering=0)\nwhile f.read(1 << 20): pass\n"
    use = run(script + HOLD[2:], files=(file,)).use
    assert use.file_bytes >= 40 << 20
    assert use.peak_bytes >= use.file_bytes
    assert use.anonymous_bytes < 30 * MB
    assert use.read_bytes >= 40 << 20


@pytest.mark.parametrize("often", [0.0, 0.02, 60.0], indirect=True)
def test_a_file_that_is_cached_and_then_mapped_is_counted_once(file: Path, often: float) -> None:
    script = (
        f"f = open({str(file)!r}, 'rb', buffering=0)\nwhile f.read(1 << 20): pass\n"
        "import time; time.sleep(0.2)\n"
        f"import mmap; f = open({str(file)!r}, 'rb')\n"
        "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "sum(m[i] for i in range(0, len(m), 4096))\n"
    )
    use = run(script + HOLD[2:], files=(file,)).use
    assert 40 << 20 <= use.file_bytes < 70 << 20
    assert use.peak_bytes < 100 << 20


def test_allocating_beyond_the_limit_fails_in_the_process() -> None:
    ended = run(f"x = bytearray({RESERVED_BYTES} + 60 * {MB})", limit=50 * MB)
    assert ended.returncode == 1
    assert "MemoryError" in ended.stderr
    assert not ended.killed


def test_output_and_exit_code_come_back_whole() -> None:
    ended = run("import sys; print('x' * 200_000); sys.stderr.write('why'); sys.exit(7)")
    assert (ended.returncode, len(ended.stdout), ended.stderr) == (7, 200_001, "why")


def test_a_killed_process_is_told() -> None:
    assert run("import os; os.kill(os.getpid(), 9)").killed


def test_a_process_whose_time_is_up_is_killed_and_what_it_said_is_kept() -> None:
    script = "import time; print('begun', flush=True); time.sleep(60)"
    ended = run_capped([sys.executable, "-c", script], Cap(None, seconds=2.0), ())
    assert (ended.timed_out, ended.killed, ended.stdout) == (True, True, "begun\n")
    assert not run("pass").timed_out


def test_the_child_ends_with_the_parent(tmp_path: Path) -> None:
    """SIGTERM to the measuring process takes the measured one down with it."""
    note = tmp_path / "pid"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import sys\nfrom loop_singular_bit.measure.capped_run import Cap, run_capped\n"
        f"run_capped([sys.executable, '-c', {child!r}], Cap(None), [])"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as parent:
        while not (note.exists() and note.read_text()):
            time.sleep(0.02)
        parent.send_signal(signal.SIGTERM)
        assert b"InterruptedRunError: stopped by SIGTERM" in parent.communicate(timeout=30)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_looking_at_the_cache_reads_nothing(file: Path) -> None:
    assert resident_bytes([file]) == 0
    run("pass" + HOLD, files=(file,))
    assert resident_bytes([file]) == 0
