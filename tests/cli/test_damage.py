"""One byte of a streaming artefact is wrong: the run stops, says where, and says nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runs import Command, streaming_bytes

from loop_singular_bit.container import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.generate import Generated, GenerateOptions, generate
from loop_singular_bit.engine.runtime import Model, open_model
from loop_singular_bit.errors import ResourceError

CONTEXT = 64
MATRICES = [f"layers.6.{role}" for role in ("q", "k", "v", "o", "gate", "up", "down")]
BLOCKS = [
    ("layers.6.attn_norm", "data"),
    ("layers.6.mlp_norm", "data"),
    ("final_norm", "data"),
    ("layers.6.attn_in", "scale"),
    *((name, kind) for name in MATRICES for kind in ("scale", "tiles", "outlier")),
    ("head", "scale"),
    ("head", "tiles"),
    ("embed", "scale"),
    ("embed", "tiles"),
]


def extents(artefact: Path, record: str, kind: str) -> list[str]:
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        names = [extent.name for extent in reader.record(record).extents]
    return [name for name in names if name.startswith(kind)]


def flip(artefact: Path, record: str, extent: str) -> None:
    """One bit in the middle of an extent, in place."""
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        piece = reader.piece(record, extent)
    at = piece.offset + piece.size_bytes // 2
    with (artefact / WEIGHTS_FILE).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 16]))


@pytest.mark.parametrize(("record", "kind"), BLOCKS)
def test_a_flipped_bit_stops_the_run(
    deep_artefact: Path, tmp_path: Path, lsb: Command, record: str, kind: str
) -> None:
    damaged = shutil.copytree(deep_artefact, tmp_path / "damaged")
    (*_, extent) = extents(deep_artefact, record, kind)
    flip(damaged, record, extent)
    ram_mb = streaming_bytes(deep_artefact, CONTEXT) / 1e6
    flags = ("--context", CONTEXT, "--threads", 1, "--ram-mb", ram_mb)
    outcome = lsb("run", "--raw", damaged, "hello", *flags)
    assert outcome.refused(5, f"record {record!r} extent {extent!r}", "crc32c", "download")


@contextmanager
def opened(artefact: Path) -> Iterator[Model]:
    ram_bytes = streaming_bytes(artefact, CONTEXT)
    with open_model(artefact, threads=1, context=CONTEXT, ram_bytes=ram_bytes) as model:
        assert model.streamed
        yield model


@pytest.mark.parametrize("draft", [0, None])
@pytest.mark.parametrize(("record", "kind"), [("layers.6.up", "tiles"), ("head", "tiles")])
def test_damage_while_tokens_come_ends_them(
    deep_artefact: Path, tmp_path: Path, record: str, kind: str, draft: int | None
) -> None:
    damaged = shutil.copytree(deep_artefact, tmp_path / "damaged")
    options = GenerateOptions(30, draft=draft)
    with opened(deep_artefact) as model, model.session() as session:
        events = generate(model, session, [5, 6, 7], options)
        expected = [event.id for event in events if isinstance(event, Generated)]
    found: list[int] = []
    with (
        opened(damaged) as model,
        model.session() as session,
        pytest.raises(ResourceError, match=f"record '{record}' extent '{kind}"),
    ):
        for event in generate(model, session, [5, 6, 7], options):
            assert isinstance(event, Generated)
            found.append(event.id)
            if len(found) == 3:
                flip(damaged, record, extents(deep_artefact, record, kind)[0])
    assert 3 <= len(found) < 30
    assert found == expected[: len(found)]
