from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_model import FakeModel, write_tokenizer
from live_server import Gate, RunningServer, running

from loop_singular_bit.engine.text import Text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.open(Path(write_tokenizer(tmp_path_factory.mktemp("serve"))))


@pytest.fixture
def model(text: Text) -> FakeModel:
    return FakeModel(text)


@pytest.fixture
def start() -> Iterator[Callable[..., RunningServer]]:
    with ExitStack() as stack:

        def begin(model: FakeModel, queue_max: int = 4) -> RunningServer:
            return stack.enter_context(running(model, queue_max))

        yield begin


@pytest.fixture
def server(model: FakeModel, start: Callable[..., RunningServer]) -> RunningServer:
    return start(model)


@pytest.fixture
def gate(model: FakeModel) -> Iterator[Callable[[int], Gate]]:
    gates: list[Gate] = []

    def close(at_position: int = 0) -> Gate:
        gates.append(Gate(model, at_position))
        return gates[-1]

    yield close
    for each in gates:
        each.open()
