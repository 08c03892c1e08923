"""What is finished of a weights file, in a file beside it that only grows.

A line is one part of the network: what the writer needs to go on behind it, and what the encoder
reported. It is written when the bytes it speaks of are durable, so they are there whenever it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from loop_singular_bit._native import crc32c
from loop_singular_bit.codec.planes import EncodeReport
from loop_singular_bit.container.partial import sync_directory
from loop_singular_bit.container.writer import Mark

EMBEDDING = -1  # the part before layer 0, where embedding and head are two matrices
_DIGITS = 8


class Part(msgspec.Struct, frozen=True):
    """A finished run of the file.

    index  EMBEDDING, the layer's, or their number for final norm and head
    mark   what the writer wrote
    reports, absolute_errors  of its matrices, as in `Written`
    """

    index: int
    mark: Mark
    reports: Mapping[str, EncodeReport]
    absolute_errors: Mapping[str, float]


class Journal:
    """The parts of one artefact in the order they were finished, in the file at `path`.

    A line that was being written when the process ended is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.parts, nbytes = _whole_parts(path.read_bytes()) if path.exists() else ([], 0)
        if path.exists():
            os.truncate(path, nbytes)

    @property
    def next(self) -> int:
        """Index of the first part that is not finished."""
        return self.parts[-1].index + 1 if self.parts else EMBEDDING

    def add(self, part: Part) -> None:
        """Adds a part, whose bytes are durable, and makes it durable."""
        with self._path.open("ab") as file:
            file.write(_line(msgspec.json.encode(part)))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._path.parent)
        self.parts.append(part)

    def clear(self) -> None:
        """Forgets all parts."""
        self._path.unlink(missing_ok=True)
        self.parts = []


def _line(document: bytes) -> bytes:
    return f"{crc32c(document):0{_DIGITS}x} ".encode() + document + b"\n"


def _whole_parts(data: bytes) -> tuple[list[Part], int]:
    """The parts up to the first line that is not whole, and the bytes they take."""
    parts: list[Part] = []
    nbytes = 0
    for line in data.splitlines(keepends=True):
        document = line[_DIGITS + 1 : -1]
        if line != _line(document):
            break
        parts.append(msgspec.json.decode(document, type=Part))
        nbytes += len(line)
    return parts, nbytes
