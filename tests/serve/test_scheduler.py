from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest
from fake_model import FakeModel, FakeSession
from live_server import Gate

from loop_singular_bit.engine.generate import (
    Finish,
    Generated,
    GenerateOptions,
    generate,
)
from loop_singular_bit.errors import ResourceError
from loop_singular_bit.serve.scheduler import (
    Event,
    Failed,
    Job,
    QueueFullError,
    Scheduler,
    ShutdownError,
    Ticket,
)

FIVE = GenerateOptions(max_tokens=5)


class Client:
    """Submits one job and collects its events."""

    def __init__(self, scheduler: Scheduler, first_id: int, options: GenerateOptions = FIVE):
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.job = Job((first_id, 11, 12), options)
        self.ticket: Ticket = scheduler.submit(self.job, self.events.put)

    def all(self) -> list[Event]:
        """Events up to the last."""
        events = [self.events.get(timeout=10)]
        while isinstance(events[-1], Generated):
            events.append(self.events.get(timeout=10))
        return events

    def ids(self) -> list[int]:
        return [event.id for event in self.all() if isinstance(event, Generated)]


@pytest.fixture
def scheduler(model: FakeModel) -> Iterator[Scheduler]:
    scheduler = Scheduler(model, queue_max=2)
    yield scheduler
    scheduler.close(cancel=True)


def alone(model: FakeModel, job: Job) -> list[int]:
    with model.session() as session:
        events = list(generate(model, session, job.prompt_ids, job.options))
    return [event.id for event in events if isinstance(event, Generated)]


def test_events_are_those_of_the_engine(model: FakeModel, scheduler: Scheduler) -> None:
    client = Client(scheduler, 10)
    events = client.all()
    assert isinstance(events[-1], Finish)
    assert [event.id for event in events if isinstance(event, Generated)] == alone(
        model, client.job
    )


def test_requests_run_one_behind_another_in_order(
    model: FakeModel, scheduler: Scheduler, gate: Callable[..., Gate]
) -> None:
    held = gate()
    clients = [Client(scheduler, first) for first in (10, 20, 30)]
    assert held.reached.wait(10)
    assert (scheduler.load.running, scheduler.load.waiting) == (1, 2)
    held.open()
    answers = [client.ids() for client in clients]
    assert [session.ids[0] for session in model.sessions] == [10, 20, 30]
    assert answers == [alone(model, client.job) for client in clients]


def test_full_queue_refuses_with_a_time_to_retry(
    scheduler: Scheduler, gate: Callable[..., Gate]
) -> None:
    gate()
    for first in (10, 20, 30):
        Client(scheduler, first)
    with pytest.raises(QueueFullError, match="3 requests are running or waiting, at most 3") as e:
        Client(scheduler, 40)
    assert e.value.retry_seconds >= 1


def test_cancelled_while_waiting_frees_its_place_at_once(
    model: FakeModel, scheduler: Scheduler, gate: Callable[..., Gate]
) -> None:
    held = gate()
    clients = [Client(scheduler, first) for first in (10, 20, 30)]
    clients[1].ticket.cancel()
    replacement = Client(scheduler, 40)
    held.open()
    assert replacement.ids()
    assert clients[1].events.empty()
    assert [session.ids[0] for session in model.sessions] == [10, 30, 40]


def test_cancelled_while_running_ends_within_one_token(
    model: FakeModel, scheduler: Scheduler, gate: Callable[..., Gate]
) -> None:
    held = gate(4)
    client = Client(scheduler, 10, GenerateOptions())
    assert held.reached.wait(10)
    client.ticket.cancel()
    held.open()
    follower = Client(scheduler, 20)
    assert follower.ids() == alone(model, follower.job)
    assert model.sessions[0].position == 5  # the advance that was under way, and no other
    assert client.events.qsize() == 3


def test_cancel_after_the_end_is_harmless(scheduler: Scheduler) -> None:
    client = Client(scheduler, 10)
    client.all()
    client.ticket.cancel()
    assert Client(scheduler, 20).ids()


@pytest.mark.parametrize("error", [ResourceError("disk gone"), RuntimeError("bug"), MemoryError()])
def test_failure_ends_one_request_only(
    model: FakeModel, scheduler: Scheduler, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(session: FakeSession) -> None:
        if session.position == 4:
            raise error

    model.before_advance = fail
    *tokens, last = Client(scheduler, 10).all()
    assert len(tokens) == 1 + 1
    assert isinstance(last, Failed)
    assert last.error is error
    assert scheduler.load.failed == 1
    assert len(caplog.records) == 1
    model.before_advance = lambda session: None
    follower = Client(scheduler, 20)
    assert follower.ids() == alone(model, follower.job)


def test_refused_prompt_is_a_failure_of_its_request(scheduler: Scheduler) -> None:
    events: SimpleQueue[Event] = SimpleQueue()
    scheduler.submit(Job((), FIVE), events.put)
    assert isinstance(events.get(timeout=10), Failed)
    assert Client(scheduler, 20).ids()


def test_close_answers_what_was_taken(
    model: FakeModel, scheduler: Scheduler, gate: Callable[..., Gate]
) -> None:
    held = gate()
    clients = [Client(scheduler, first) for first in (10, 20)]
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    while True:
        try:
            Client(scheduler, 30)
        except ShutdownError:
            break
        except QueueFullError:
            continue
    held.open()
    closer.join(10)
    assert not closer.is_alive()
    assert all(len(client.ids()) == 5 for client in clients)


def test_close_with_cancel_ends_everything(
    model: FakeModel, scheduler: Scheduler, gate: Callable[..., Gate]
) -> None:
    held = gate(4)
    clients = [Client(scheduler, first, GenerateOptions()) for first in (10, 20)]
    assert held.reached.wait(10)
    threading.Timer(0.01, held.open).start()
    scheduler.close(cancel=True)
    assert len(model.sessions) == 1
    assert clients[1].events.empty()
    assert scheduler.load.running == 0
