from __future__ import annotations

import numpy as np
import pytest

from loop_singular_bit.codec.program import Program

ONE = np.zeros(1, np.int32)


@pytest.fixture
def seen() -> list[object]:
    return []


@pytest.fixture
def program(seen: list[object]) -> Program:
    """Adds 1, calls, calls again, adds 1, adds 1 behind a mark, calls."""
    one, total = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    program = Program(1)
    program.add(one, total)
    program.between(lambda rows: seen.append(("first", rows, total[0, 0])))
    program.between(lambda rows: seen.append(("second", rows, total[0, 0])))
    program.add(one, total)
    program.mark()
    program.add(one, total)
    program.between(lambda rows: seen.append(("last", rows, total[0, 0])))
    return program


def test_work_is_done_between_the_steps_around_it(program: Program, seen: list[object]) -> None:
    program.run_steps(ONE, ONE)
    assert seen == [("first", 1, 1), ("second", 1, 1), ("last", 1, 3)]


def test_work_belongs_to_the_part_that_starts_with_it(program: Program, seen: list[object]) -> None:
    program.run_steps(ONE, ONE, 0, 1)
    assert seen == []
    program.run_steps(ONE, ONE, 1, 2)
    assert seen == [("first", 1, 1), ("second", 1, 1)]
    program.run_steps(ONE, ONE, 2)
    assert seen[2:] == [("last", 1, 3)]
