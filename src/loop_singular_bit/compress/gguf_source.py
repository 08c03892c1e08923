"""A GGUF file as a source of original weights."""

from __future__ import annotations

from pathlib import Path

from loop_singular_bit.compress.source import Source
from loop_singular_bit.errors import InputRefusedError


def open_gguf_file(path: Path) -> Source:
    """Not there yet."""
    raise InputRefusedError(f"{path}: GGUF files cannot be read yet, give a Hugging Face directory")
