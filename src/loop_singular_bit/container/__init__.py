"""Files of named, aligned, checksummed byte ranges (docs/format.md); no codec, no model."""

from loop_singular_bit.container.directio import PAGE_BYTES, AlignedBuffer, Backend, PageFile
from loop_singular_bit.container.index import BLOCK_BYTES, SHARD_BYTES, Extent, Record
from loop_singular_bit.container.layout import Layout, Piece, RecordPlan, plan_layout
from loop_singular_bit.container.preamble import FORMAT_VERSION
from loop_singular_bit.container.reader import ContainerReader, Span
from loop_singular_bit.container.writer import ContainerWriter, Payload

__all__ = [
    "BLOCK_BYTES",
    "FORMAT_VERSION",
    "PAGE_BYTES",
    "SHARD_BYTES",
    "AlignedBuffer",
    "Backend",
    "ContainerReader",
    "ContainerWriter",
    "Extent",
    "Layout",
    "PageFile",
    "Payload",
    "Piece",
    "Record",
    "RecordPlan",
    "Span",
    "plan_layout",
]
