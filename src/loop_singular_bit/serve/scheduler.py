"""Requests one behind another: one worker thread owns the engine, a bounded queue waits for it.

This module knows nothing of HTTP. Every request gets a session of its own, so that what it answers
does not depend on the requests before it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic

from loop_singular_bit.engine.generate import Finish, Generated, GenerateOptions, generate
from loop_singular_bit.engine.session import LanguageModel
from loop_singular_bit.errors import LoopError, ResourceError

QUEUE_MAX = 16
RETRY_SECONDS_MAX = 600

_log = logging.getLogger(__name__)


class QueueFullError(ResourceError):
    """No room for another request; try again in about `retry_seconds`."""

    def __init__(self, pending: int, pending_max: int, retry_seconds: int) -> None:
        super().__init__(
            f"{pending} requests are running or waiting, at most {pending_max}:"
            f" try again in {retry_seconds} s"
        )
        self.retry_seconds = retry_seconds


class ShutdownError(ResourceError):
    def __init__(self) -> None:
        super().__init__("the server is shutting down and takes no more requests")


@dataclass(frozen=True)
class Job:
    """A checked request: what the engine needs and nothing else."""

    prompt_ids: tuple[int, ...]
    options: GenerateOptions


@dataclass(frozen=True)
class Failed:
    """The last event of a request that the engine could not finish."""

    error: BaseException


Event = Generated | Finish | Failed


@dataclass(frozen=True)
class Load:
    """running and waiting: requests now; failed: requests that ended in `Failed` so far."""

    running: int
    waiting: int
    failed: int


class Ticket:
    """A request's place in the queue."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._future: Future[None] | None = None

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Give the place back: at once while waiting, within one token while running (whose event
        is still delivered). Harmless when done."""
        self._cancelled.set()
        if self._future is not None:
            self._future.cancel()


class Scheduler:
    def __init__(self, model: LanguageModel, *, queue_max: int = QUEUE_MAX) -> None:
        """queue_max: requests that may wait behind the running one."""
        self._model = model
        self.pending_max = queue_max + 1
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._closing = False
        self._failed = 0
        self._last_seconds = 1.0

    @property
    def load(self) -> Load:
        with self._lock:
            pending = len(self._tickets)
            running = min(pending, 1)
            return Load(running, pending - running, self._failed)

    def submit(self, job: Job, deliver: Callable[[Event], None]) -> Ticket:
        """Queue a request; `deliver` gets its events, on the engine's thread, until a `Finish` or
        a `Failed`. Raises QueueFullError or ShutdownError."""
        ticket = Ticket()
        with self._lock:
            if self._closing:
                raise ShutdownError
            pending = len(self._tickets)
            if pending >= self.pending_max:
                raise QueueFullError(pending, self.pending_max, self._retry_seconds(pending))
            self._tickets.add(ticket)
            ticket._future = self._executor.submit(self._run, job, deliver, ticket)
        # A failure of any kind ends up in the future, so that it can end one request only.
        ticket._future.add_done_callback(partial(self._done, ticket, deliver))
        return ticket

    def close(self, *, cancel: bool = False) -> None:
        """Take no more requests and wait until those taken are answered, or cancelled."""
        with self._lock:
            self._closing = True
            tickets = list(self._tickets)
        if cancel:
            for ticket in tickets:
                ticket.cancel()
        self._executor.shutdown(wait=True)

    def _run(self, job: Job, deliver: Callable[[Event], None], ticket: Ticket) -> None:
        if ticket.cancelled:
            return
        started = monotonic()
        with self._model.session() as session:
            for event in generate(self._model, session, job.prompt_ids, job.options):
                deliver(event)
                if ticket.cancelled:
                    break
        self._last_seconds = monotonic() - started

    def _done(self, ticket: Ticket, deliver: Callable[[Event], None], future: Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._tickets.discard(ticket)
            self._failed += error is not None
        if error is None:
            return
        # An error of ours says all in one line; anything else is a bug and needs its traceback.
        trace = None if isinstance(error, LoopError) else error
        _log.error("a request failed: %s", error, exc_info=trace)
        if not ticket.cancelled:
            deliver(Failed(error))

    def _retry_seconds(self, pending: int) -> int:
        """The queue's length in requests, each taken to last as long as the last one."""
        return min(max(math.ceil(pending * self._last_seconds), 1), RETRY_SECONDS_MAX)
