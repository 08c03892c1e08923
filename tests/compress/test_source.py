from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_tiny_gguf, write_tiny_model

from loop_singular_bit.compress.source import open_source
from loop_singular_bit.errors import InputRefusedError


def test_directory(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    assert open_source(str(tmp_path)).path == tmp_path


def test_gguf_file(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert open_source(str(path)).path == path


def test_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model(tmp_path / "snapshot")
    asked = []

    def fetch(model: str) -> Path:
        asked.append(model)
        return tmp_path / "snapshot"

    monkeypatch.setattr("loop_singular_bit.compress.hub.fetch", fetch)
    assert open_source("org/name@main").path == tmp_path / "snapshot"
    assert asked == ["org/name@main"]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputRefusedError, match=r"expected a directory or a \.gguf file"):
        open_source(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("model", ["", "/no/such/model", "./org/name", "a/b/c", "org/name.gguf"])
def test_neither_a_path_nor_a_hub_id(model: str) -> None:
    with pytest.raises(InputRefusedError, match="expected"):
        open_source(model)
