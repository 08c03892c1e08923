from __future__ import annotations

from pathlib import Path

import pytest

from loop_singular_bit.compress.output import new_directory
from loop_singular_bit.errors import InputRefusedError, InterruptedRunError


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a" / "out") as partial:
        (partial / "file").write_text("x", "utf-8")
        assert not (tmp_path / "a" / "out").exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    assert (tmp_path / "a" / "out" / "file").read_text("utf-8") == "x"


@pytest.mark.parametrize(
    ("error", "becomes"),
    [(KeyboardInterrupt, InterruptedRunError), (OSError, OSError),
     (InputRefusedError, InputRefusedError)],
)  # fmt: skip
def test_a_failure_leaves_no_directory(
    error: type[BaseException], becomes: type[BaseException], tmp_path: Path
) -> None:
    with pytest.raises(becomes), new_directory(tmp_path / "out") as partial:
        (partial / "file").write_text("x", "utf-8")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_directory_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(InputRefusedError, match="not an empty directory"), new_directory(tmp_path):
        pass
    assert (tmp_path / "file").read_text("utf-8") == "x"


def test_what_a_stopped_compression_has_finished_is_not_removed(tmp_path: Path) -> None:
    kept = tmp_path / "out.partial" / "settings.json"
    kept.parent.mkdir()
    kept.write_text("{}", "utf-8")
    with pytest.raises(InputRefusedError, match="name another"), new_directory(tmp_path / "out"):
        pass
    assert kept.exists()


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model.lsb.partial").write_bytes(b"half")
    with new_directory(tmp_path / "out"):
        pass
    assert not list((tmp_path / "out").iterdir())
