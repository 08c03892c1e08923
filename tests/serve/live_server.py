"""A real server on the loopback with real clients, and a gate that holds its engine."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import openai
import uvicorn
from fake_model import FakeModel, FakeSession

from loop_singular_bit.serve.app import create_server, listen
from loop_singular_bit.serve.scheduler import Scheduler


class RunningServer:
    """A real server on a free port of the loopback, and clients for it."""

    def __init__(
        self, model: FakeModel, server: uvicorn.Server, port: int, scheduler: Scheduler
    ) -> None:
        self.model = model
        self.server = server
        self.port = port
        self.scheduler = scheduler
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=10
        )

    def post(self, path: str, body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    @contextmanager
    def half_request(self, path: str, body: object) -> Iterator[None]:
        """A client that sends a request and goes away without reading the answer."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(head.encode() + content)
            yield

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.002)

    def wait_idle(self) -> None:
        self.wait(lambda: self.scheduler.load.running == 0)


@contextmanager
def running(model: FakeModel, queue_max: int) -> Iterator[RunningServer]:
    with listen("127.0.0.1", 0) as listener:
        scheduler = Scheduler(model, queue_max=queue_max)
        server = create_server(model, scheduler, host="127.0.0.1")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        handle = RunningServer(model, server, listener.getsockname()[1], scheduler)
        try:
            handle.wait(lambda: server.started)
            yield handle
        finally:
            handle.http.close()
            handle.client.close()
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop"
            scheduler.close(cancel=True)


class Gate:
    """Holds the engine at a certain advance until it is opened."""

    def __init__(self, model: FakeModel, at_position: int = 0) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._at = at_position
        model.before_advance = self._wait

    def open(self) -> None:
        self._open.set()

    def _wait(self, session: FakeSession) -> None:
        if session.position >= self._at:
            self.reached.set()
            assert self._open.wait(10), "the gate was never opened"
