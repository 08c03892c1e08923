from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded import resharded

from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.container.index import Record
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.container.writer import ContainerWriter
from loop_singular_bit.engine.artefact import (
    WEIGHTS_FILE,
    ResidentNetwork,
    StreamedNetwork,
    read_spec,
)
from loop_singular_bit.engine.runtime import Engine, open_model
from loop_singular_bit.errors import ConfigError, FormatError, ResourceError

Change = Callable[[Record], tuple[str, dict[str, Any]] | None]


def rewritten(artefact: Path, directory: Path, change: Change) -> Path:
    """A copy whose records have the names and attributes `change` gives; None drops a record."""
    shutil.copytree(artefact, directory)
    (directory / WEIGHTS_FILE).unlink()
    with (
        ContainerReader.open(artefact / WEIGHTS_FILE) as reader,
        ContainerWriter(directory / WEIGHTS_FILE, reader.meta) as writer,
    ):
        for record in reader.records:
            changed = change(record)
            if changed is not None:
                extents = {e.name: reader.read(record.name, e.name) for e in record.extents}
                writer.add(changed[0], record.kind, changed[1], extents)
    return directory


def reconfigured(artefact: Path, directory: Path, **fields: object) -> Path:
    """A copy with other fields in config.json."""
    shutil.copytree(artefact, directory)
    config = json.loads((artefact / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(config | fields), "utf-8")
    return directory


def refusals(directory: Path) -> str:
    """The one message with which every way of opening refuses."""
    messages = set()
    for network in (ResidentNetwork, StreamedNetwork):
        with pytest.raises(FormatError) as caught:
            network(directory)
        messages.add(str(caught.value))
    with pytest.raises(FormatError) as caught, open_model(directory, threads=1):
        pass
    messages.add(str(caught.value))
    (message,) = messages
    return message


@pytest.mark.parametrize("name", ["embed", "layers.1.v", "layers.0.mlp_norm", "final_norm"])
def test_missing_record_is_refused(tiny_artefact: Path, tmp_path: Path, name: str) -> None:
    def change(record: Record) -> tuple[str, dict[str, Any]] | None:
        return None if record.name == name else (record.name, dict(record.attributes))

    message = refusals(rewritten(tiny_artefact, tmp_path / "a", change))
    assert message == f"record {name!r} is missing, config.json needs it"


def test_missing_rotation_is_refused(tiny_artefact: Path, tmp_path: Path) -> None:
    def change(record: Record) -> tuple[str, dict[str, Any]] | None:
        return None if record.name == "embed.in" else (record.name, dict(record.attributes))

    message = refusals(rewritten(tiny_artefact, tmp_path / "a", change))
    assert message == "record 'embed': input 'embed.in' is missing, expected 64 columns"


@pytest.mark.parametrize(
    ("name", "attribute", "found", "expected"),
    [
        ("layers.1.down", "cols", (64, 132), (64, 128)),
        ("layers.0.attn_norm", "count", (65,), (64,)),
    ],
)
def test_wrong_shape_is_refused(
    tiny_artefact: Path, tmp_path: Path, name: str, attribute: str,
    found: tuple[int, ...], expected: tuple[int, ...],
) -> None:  # fmt: skip
    def change(record: Record) -> tuple[str, dict[str, Any]]:
        wrong = {attribute: found[-1]} if record.name == name else {}
        return record.name, dict(record.attributes) | wrong

    message = refusals(rewritten(tiny_artefact, tmp_path / "a", change))
    assert message == f"record {name!r} has shape {found}, config.json expects {expected}"


@pytest.mark.parametrize("new_name", ["layers.2.attn_in", "layers.x.q", "extra"])
def test_record_of_no_tensor_is_refused(tiny_artefact: Path, tmp_path: Path, new_name: str) -> None:
    def change(record: Record) -> tuple[str, dict[str, Any]]:
        name = new_name if record.name == "layers.1.attn_in" else record.name
        return name, dict(record.attributes)

    message = refusals(rewritten(tiny_artefact, tmp_path / "a", change))
    assert message == f"record {new_name!r} is not part of the network in config.json"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_hidden_layers": 1},
            "record 'layers.1.attn_in' is not part of the network in config.json",
        ),
        ({"num_hidden_layers": 3}, "record 'layers.2.attn_norm' is missing, config.json needs it"),
        ({"tie_word_embeddings": False}, "record 'head' is missing, config.json needs it"),
        (
            {"vocab_size": 513},
            "record 'embed' has shape (512, 64), config.json expects (513, 64)",
        ),
        (
            {"num_key_value_heads": 4},
            "record 'layers.0.k' has shape (32, 64), config.json expects (64, 64)",
        ),
        ({"model_type": "qwen2"}, "record 'layers.0.q_bias' is missing, config.json needs it"),
    ],
)
def test_config_of_another_network_is_refused(
    tiny_artefact: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    assert refusals(reconfigured(tiny_artefact, tmp_path / "a", **fields)) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "found list, expected an object")],
)
def test_unreadable_config_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_damaged_weights_are_reported_by_both_networks(tiny_artefact: Path, tmp_path: Path) -> None:
    directory = tmp_path / "a"
    shutil.copytree(tiny_artefact, directory)
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        offset = reader.piece("layers.1.up", "tiles0").offset
    with (directory / WEIGHTS_FILE).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ResourceError, match=r"layers\.1\.up"):
        ResidentNetwork(directory)
    network = StreamedNetwork(directory)
    with pytest.raises(ResourceError, match=r"layers\.1\.up"):
        Engine(network, 1, 16, 16).hidden([1, 2, 3], 0, 0)
    network.close()


def test_logits_do_not_depend_on_shards(tiny_artefact: Path, tmp_path: Path) -> None:
    assert len(resharded(tiny_artefact, tmp_path / "several", 4096)) > 2
    found = []
    for directory in (tiny_artefact, tmp_path / "several"):
        network = StreamedNetwork(directory)
        engine = Engine(network, 1, 64, 16)
        found.append(engine.logits(engine.hidden(list(range(5, 45)), 0, 0)[-16:]))
        network.close()
    assert np.array_equal(*found)


def test_resident_and_streamed_logits_are_bit_identical(tiny_artefact: Path) -> None:
    found = []
    for kind in (ResidentNetwork, StreamedNetwork):
        network = kind(tiny_artefact)
        engine = Engine(network, 1, 64, 16)
        hidden = engine.hidden(list(range(5, 45)), 0, 0)
        found.append(engine.logits(hidden[-16:]))
        network.close()
    assert np.array_equal(*found)


def test_artefact_is_close_to_the_original(tiny_artefact: Path, tiny_model: Path) -> None:
    network = ResidentNetwork(tiny_artefact)
    original = OriginalNetwork(open_source(str(tiny_model)), 2)
    assert network.head is network.embedding
    for name in ("q", "o", "down"):
        W = getattr(original.layer(1), name).dense()
        error = getattr(network.layer(1), name).dense() - W
        assert np.linalg.norm(error) < 0.2 * np.linalg.norm(W)
    network.close()


@pytest.mark.parametrize(
    ("modules", "never"),
    [
        (
            "engine.runtime engine.generate serve.app compress.compressor compress.gguf_source"
            " measure.probe cli",
            {"torch", "transformers"},
        ),
        (
            "cli.run engine.runtime engine.generate engine.template serve.app",
            {"torch", "transformers", "gguf", "huggingface_hub", "safetensors", "rich"},
        ),
    ],
)
def test_heavy_packages_are_not_imported(modules: str, never: set[str]) -> None:
    imports = ", ".join(f"loop_singular_bit.{name}" for name in modules.split())
    program = f"import sys, {imports}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not loaded & never
