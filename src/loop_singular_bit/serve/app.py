"""OpenAI's HTTP interface over a scheduler (Starlette), and the server that carries it (uvicorn).

Nothing here runs the engine: handlers check, tokenize, queue, and word the events that come back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from loop_singular_bit.engine.generate import Finish, Generated, check_prompt
from loop_singular_bit.engine.session import LanguageModel
from loop_singular_bit.errors import LoopError, ResourceError
from loop_singular_bit.serve.replies import (
    ChatReply,
    CompletionReply,
    ErrorBody,
    ErrorReply,
    Problem,
    Reply,
    problem_of,
)
from loop_singular_bit.serve.scheduler import QUEUE_MAX, Event, Failed, Job, Scheduler
from loop_singular_bit.serve.schema import (
    BODY_BYTES_MAX,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    RequestError,
    read_request,
)

PING_SECONDS = 15.0  # silence after which a stream sends a comment, so that no proxy gives up
CONNECTIONS_SPARE = 32  # connections beyond the queue: health checks, idle keep-alive

_log = logging.getLogger(__name__)


class ModelEntry(msgspec.Struct):
    id: str
    created: int
    object: str = "model"
    owned_by: str = "loop-singular-bit"


class ModelList(msgspec.Struct):
    data: list[ModelEntry]
    object: str = "list"


class Health(msgspec.Struct):
    """running and waiting: requests now; failed: requests the engine could not finish so far."""

    model: str
    context: int
    running: int
    waiting: int
    failed: int
    status: str = "ok"


def create_app(
    model: LanguageModel, scheduler: Scheduler, *, hosts: list[str] | None = None
) -> Starlette:
    """The ASGI application. `hosts`: the Host headers it answers to; None is any.

    Shutting the application down drains the scheduler.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(scheduler.close)

    service = _Service(model, scheduler)
    # A page on another site can make a browser call 127.0.0.1 under a name of its own.
    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)]
    return Starlette(
        routes=[
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.complete, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model),
            Route("/health", service.health),
        ],
        middleware=guard if hosts else [],
        exception_handlers={
            LoopError: _answer_error,
            HTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_error,
        },
        lifespan=lifespan,
    )


class _Service:
    def __init__(self, model: LanguageModel, scheduler: Scheduler) -> None:
        self._model = model
        self._scheduler = scheduler
        self._created = int(time.time())

    async def chat(self, request: Request) -> Response:
        asked = read_request(await _read_body(request), ChatRequest)
        self._check_model(asked.model)
        options, messages = asked.options(), asked.conversation()
        ids = await run_in_threadpool(self._model.text.render_chat, messages)
        reply = ChatReply(
            self._model.name,
            self._model.text,
            logprobs=bool(asked.logprobs),
            include_usage=asked.include_usage,
        )
        return await self._answer(request, asked, Job(tuple(ids), options), reply)

    async def complete(self, request: Request) -> Response:
        asked = read_request(await _read_body(request), CompletionRequest)
        self._check_model(asked.model)
        options, prompt = asked.options(), asked.text_or_ids(self._model.text.vocab)
        # Whoever sends a raw prompt writes the model's control tokens too, as a template would.
        ids = prompt if isinstance(prompt, list) else await run_in_threadpool(self._encode, prompt)
        reply = CompletionReply(
            self._model.name,
            self._model.text,
            logprobs=asked.logprobs is not None,
            include_usage=asked.include_usage,
        )
        return await self._answer(request, asked, Job(tuple(ids), options), reply)

    async def models(self, request: Request) -> Response:
        return _json(ModelList([ModelEntry(self._model.name, self._created)]))

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return _json(ModelEntry(self._model.name, self._created))

    async def health(self, request: Request) -> Response:
        load = self._scheduler.load
        model = self._model
        return _json(Health(model.name, model.context, load.running, load.waiting, load.failed))

    def _encode(self, prompt: str) -> list[int]:
        return self._model.text.encode(prompt, special=True)

    def _check_model(self, name: str) -> None:
        if name != self._model.name:
            raise RequestError(
                f"the model {name!r} does not exist: this server has {self._model.name!r}",
                param="model",
                status=404,
                code="model_not_found",
            )

    async def _answer(
        self, request: Request, asked: GenerationRequest, job: Job, reply: Reply
    ) -> Response:
        check_prompt(len(job.prompt_ids), self._model.context)
        run = _Run(request, self._scheduler, job)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(
                _server_sent_events(run, reply), headers=headers, media_type="text/event-stream"
            )
        tokens: list[Generated] = []
        async for event in run.events():
            if isinstance(event, Generated):
                tokens.append(event)
            elif isinstance(event, Finish):
                return _json(reply.whole(tokens, event))
            elif isinstance(event, Failed):
                return _problem(problem_of(event.error))
        raise ClientDisconnect


class _Run:
    """A queued request: its events, until it ends or its client goes away."""

    def __init__(self, request: Request, scheduler: Scheduler, job: Job) -> None:
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._ticket = scheduler.submit(job, deliver)
        # Also while the request waits or its prompt is read, when nothing is sent that could fail.
        self._watch = asyncio.create_task(self._until_disconnect(request))

    async def events(self) -> AsyncIterator[Event | None]:
        """Events as they come; None after PING_SECONDS of silence. Ends early, without `Finish` or
        `Failed`, only when the client has gone away."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._events.get(), PING_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                yield event
                if not isinstance(event, Generated):
                    return
        finally:
            self._ticket.cancel()
            self._watch.cancel()

    async def _until_disconnect(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._ticket.cancel()
        self._events.put_nowait(None)


async def _server_sent_events(run: _Run, reply: Reply) -> AsyncIterator[bytes]:
    for chunk in reply.start():
        yield _event(chunk)
    async for event in run.events():
        if event is None:
            yield b": waiting\n\n"
        elif isinstance(event, Failed):
            yield _event(problem_of(event.error).body)
            return
        else:
            for chunk in reply.chunks(event):
                yield _event(chunk)
            if isinstance(event, Finish):
                yield b"data: [DONE]\n\n"


def _event(value: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def _read_body(request: Request) -> bytes:
    """The body of a JSON request, at most BODY_BYTES_MAX."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages out: a browser asks before it sends this type to another site.
        raise RequestError(f"the content type is {kind!r}: expected 'application/json'", status=415)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise RequestError(
                f"the request body is longer than {BODY_BYTES_MAX} bytes",
                status=413,
                code="request_too_large",
            )
    return bytes(body)


def _json(
    value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    content = msgspec.json.encode(value)
    return Response(content, status, headers, media_type="application/json")


def _problem(problem: Problem) -> Response:
    seconds = problem.retry_seconds
    headers = None if seconds is None else {"Retry-After": str(seconds)}
    return _json(problem.body, problem.status, headers)


async def _answer_error(request: Request, error: Exception) -> Response:
    return _problem(problem_of(error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return _problem(problem_of(error))
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = ErrorReply(ErrorBody(message, "invalid_request_error"))
    return _json(body, error.status_code, error.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the client is gone; nginx's status for that


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ResourceError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def create_server(model: LanguageModel, scheduler: Scheduler, *, host: str) -> uvicorn.Server:
    """A server that drains on SIGTERM: it answers what it has taken, then returns."""
    hosts = ["127.0.0.1", "localhost", "[::1]", host] if is_loopback(host) else None
    config = uvicorn.Config(
        create_app(model, scheduler, hosts=hosts),
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        limit_concurrency=scheduler.pending_max + CONNECTIONS_SPARE,
    )
    return uvicorn.Server(config)


def serve_http(
    model: LanguageModel,
    *,
    host: str,
    port: int,
    queue_max: int = QUEUE_MAX,
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal; `announce` gets the address once clients can connect."""
    with listen(host, port) as listener:
        scheduler = Scheduler(model, queue_max=queue_max)
        server = create_server(model, scheduler, host=host)
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{listener.getsockname()[1]}/v1")
        try:
            server.run(sockets=[listener])
        finally:
            scheduler.close(cancel=True)  # a second signal does not wait
