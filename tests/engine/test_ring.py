"""Spans come in the order expected, each with its bytes, in a bounded number of buffers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.container import ContainerReader, ContainerWriter, Span
from loop_singular_bit.engine.ring import Ring
from loop_singular_bit.errors import ResourceError

COUNT = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with ContainerWriter(tmp_path / "x.lsb", {}) as writer:
        for number in range(COUNT):
            writer.begin_run()
            data = np.full(5000 + 1000 * number, number, np.uint8)
            writer.add(f"r{number}", "any", {}, {"data": data})
    return tmp_path / "x.lsb"


@pytest.fixture
def reader(path: Path) -> Iterator[ContainerReader]:
    with ContainerReader.open(path) as reader:
        yield reader


def spans(reader: ContainerReader) -> list[Span]:
    return [reader.span((r.name, "data"), (r.name, "data")) for r in reader.records]


def check(ring: Ring, number: int) -> None:
    (view,) = ring.take(number)
    assert len(view) == 5000 + 1000 * number
    assert (view == number).all()


@pytest.mark.parametrize("slots", [2, 3, COUNT + 5])
@pytest.mark.parametrize("pinned", [[], range(5), [1, 4, COUNT - 1], range(COUNT)])
def test_every_span_comes_in_its_turn(
    reader: ContainerReader, slots: int, pinned: Collection[int]
) -> None:
    ring = Ring(reader, spans(reader), slots, pinned)
    everything = list(range(COUNT))
    for _ in range(3):
        ring.expect(everything + everything)  # this sweep, and the next one begun ahead
        for number in everything:
            check(ring, number)
    ring.close()


def test_another_order_than_was_begun(reader: ContainerReader) -> None:
    ring = Ring(reader, spans(reader), 4)
    for order in ([0, 1, 2], [7, 3], [], [3, 3, 3, 0]):
        ring.expect([*order, 11, 10, 9, 8, 7])
        for number in order:
            check(ring, number)
    ring.close()


def test_only_what_is_expected_can_be_taken(reader: ContainerReader) -> None:
    ring = Ring(reader, spans(reader), 2)
    with pytest.raises(ValueError, match="span 0 was not expected next"):
        ring.take(0)
    ring.expect([1, 2])
    with pytest.raises(ValueError, match="span 2 was not expected next"):
        ring.take(2)
    check(ring, 1)
    ring.close()


def test_one_slot_is_too_few(reader: ContainerReader) -> None:
    with pytest.raises(ValueError, match="1 slots"):
        Ring(reader, spans(reader), 1)
    Ring(reader, spans(reader), 0, pinned=range(COUNT)).close()


def test_damage_is_told_where_it_is_taken_and_the_rest_can_be_read(path: Path) -> None:
    with ContainerReader.open(path) as reader:
        offset = spans(reader)[2].offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    with ContainerReader.open(path) as reader:
        ring = Ring(reader, spans(reader), 3)
        ring.expect(range(COUNT))
        check(ring, 0)
        check(ring, 1)
        with pytest.raises(ResourceError, match="record 'r2' extent 'data'"):
            ring.take(2)
        ring.expect(range(3, COUNT))
        for number in range(3, COUNT):
            check(ring, number)
        ring.close()
