from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.compress.stages import differences, open_stages
from loop_singular_bit.errors import InputRefusedError, ResourceError, UsageError

SETTINGS = {"seed": 1, "codec": "planes"}


def test_a_stage_is_found_again(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(["x", "yz"])}
    with open_stages(tmp_path / "new" / "s", SETTINGS, "name another") as stages:
        assert stages.load("one") is None
        stages.save("one", arrays)
    with open_stages(tmp_path / "new" / "s", SETTINGS, "name another") as stages:
        found = stages.load("one")
        assert found is not None and list(found) == ["a", "b"]
        assert all(np.array_equal(found[key], arrays[key]) for key in arrays)
        assert stages.load("two") is None


def test_scratch_is_empty_every_time(tmp_path: Path) -> None:
    with open_stages(tmp_path, SETTINGS, "") as stages:
        (stages.scratch() / "x").write_bytes(b"x")
        assert not list(stages.scratch().iterdir())
    with open_stages(tmp_path, SETTINGS, ""):
        assert not (tmp_path / "scratch").exists()


def test_stopped_while_it_is_opened_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loop_singular_bit.compress.stages.differences", stopped)
    with pytest.raises(KeyboardInterrupt), open_stages(tmp_path / "s", SETTINGS, ""):
        pass
    assert not list(tmp_path.iterdir())


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    (tmp_path / "s" / "scratch").mkdir(parents=True)
    with (
        pytest.raises(InputRefusedError, match=r"something else"),
        open_stages(tmp_path / "s", SETTINGS, ""),
    ):
        pass
    assert (tmp_path / "s" / "scratch").is_dir()


def test_a_stage_that_failed_half_way_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with open_stages(tmp_path, SETTINGS, "") as stages:
        monkeypatch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="No space"):
            stages.save("one", {})
        assert stages.load("one") is None


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_stage_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    with open_stages(tmp_path, SETTINGS, "start over") as stages:
        stages.save("one", {"a": np.zeros(1000)})
        path = tmp_path / "one.npz"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage is None else damage)
        with pytest.raises(ResourceError, match=r"one\.npz is damaged.*start over"):
            stages.load("one")


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{", "utf-8")
    with (
        pytest.raises(ResourceError, match=r"is damaged.*start over"),
        open_stages(tmp_path, SETTINGS, "start over"),
    ):
        pass


def test_other_settings_are_refused_until_told(tmp_path: Path) -> None:
    with open_stages(tmp_path, SETTINGS, "") as stages:
        stages.save("one", {"a": np.zeros(1)})
    other = SETTINGS | {"seed": 2}
    with (
        pytest.raises(InputRefusedError, match="seed was 1, is 2; name another"),
        open_stages(tmp_path, other, "name another"),
    ):
        pass
    with open_stages(tmp_path, other, "", restart=True) as stages:
        assert stages.load("one") is None


def test_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with (
        pytest.raises(InputRefusedError, match=r"no settings\.json.*name another"),
        open_stages(tmp_path, SETTINGS, "name another"),
    ):
        pass
    assert (tmp_path / "mine").exists()


def test_a_directory_that_was_only_just_made_is_used(tmp_path: Path) -> None:
    """Killed before its settings were whole."""
    (tmp_path / "lock").write_bytes(b"")
    (tmp_path / "settings.json.new").write_bytes(b"{")
    with open_stages(tmp_path, SETTINGS, ""):
        assert (tmp_path / "settings.json").exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_stages(tmp_path, SETTINGS, ""),
        pytest.raises(UsageError, match="another process"),
        open_stages(tmp_path, SETTINGS, "", restart=True),
    ):
        pass
    with open_stages(tmp_path, SETTINGS, ""):
        pass


def test_differences_name_what_changed() -> None:
    before = {"a": 1, "files": {"x": [1, 2], "y": [3, 4]}, "same": None}
    now = {"a": None, "files": {"x": [1, 2], "y": [3, 5], "z": [0, 0]}, "same": None, "b": True}
    assert differences(before, before) == ""
    assert differences(before, now) == (
        "a was 1, is not given, files (y, z) changed, b was not given, is True"
    )
