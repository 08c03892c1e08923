"""The same artefact in several files."""

from __future__ import annotations

import shutil
from pathlib import Path

from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.container.writer import ContainerWriter
from loop_singular_bit.engine.artefact import WEIGHTS_FILE


def resharded(artefact: Path, directory: Path, shard_bytes: int) -> list[Path]:
    """Copies an artefact to `directory`, its runs in shards of `shard_bytes`; gives the files."""
    shutil.copytree(artefact, directory)
    path = directory / WEIGHTS_FILE
    with (
        ContainerReader.open(artefact / WEIGHTS_FILE) as reader,
        ContainerWriter(path, reader.meta, overwrite=True, shard_bytes=shard_bytes) as writer,
    ):
        starts = {run.pieces[0].record for run in reader.runs}
        for record in reader.records:
            if record.name in starts:
                writer.begin_run()
            extents = {e.name: reader.read(record.name, e.name) for e in record.extents}
            writer.add(record.name, record.kind, record.attributes, extents)
    with ContainerReader.open(path) as reader:
        return list(reader.paths)
