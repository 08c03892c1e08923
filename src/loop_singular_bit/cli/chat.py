"""`lsb chat`: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from loop_singular_bit.cli.options import draft_option, kv_option, unpack_flag
from loop_singular_bit.errors import InputRefusedError

if TYPE_CHECKING:
    from loop_singular_bit.engine.conversation import Conversation
    from loop_singular_bit.engine.generate import Finish


@click.command("chat")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--ram-mb", type=click.IntRange(1), help="Memory for the engine [10^6 bytes].")
@click.option("--context", type=click.IntRange(1), help="Positions of the conversation.")
@kv_option
@unpack_flag
@click.option("--threads", type=click.IntRange(1), help="Threads that compute.")
@click.option("--temperature", default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-p", default=0.95, show_default=True, help="Nucleus sampling.")
@click.option("--top-k", default=0, show_default=True, help="Keep k tokens; 0 keeps all.")
@click.option("--min-p", default=0.0, show_default=True, help="Least share of the likeliest.")
@click.option("--seed", type=int, help="The same seed gives the same conversation.")
@click.option("--max-tokens", type=int, help="Longest answer [default: up to the context].")
@draft_option
@click.option("--system", help="System message the conversation starts with.")
def chat(
    directory: Path,
    ram_mb: int | None,
    context: int | None,
    kv_bits: str,
    unpack: bool,
    threads: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int | None,
    max_tokens: int | None,
    draft: int | None,
    system: str | None,
) -> None:
    """Talk with the model in DIRECTORY.

    /reset starts over, /exit or the end of input leaves, Ctrl-C cuts an answer short.

    \b
    lsb chat my-model
    lsb chat my-model --ram-mb 400 --system "Answer in one sentence."
    """
    # Imported here, so that `lsb --help` starts at once.
    from loop_singular_bit.engine.conversation import Conversation
    from loop_singular_bit.engine.generate import GenerateOptions
    from loop_singular_bit.engine.runtime import open_model
    from loop_singular_bit.engine.sampler import SamplingOptions

    sampling = SamplingOptions(temperature, top_k, top_p, min_p, seed)
    options = GenerateOptions(max_tokens, sampling, draft=draft)
    ram_bytes = None if ram_mb is None else ram_mb * 1_000_000
    with (
        open_model(
            directory,
            ram_bytes=ram_bytes,
            context=context,
            threads=threads,
            kv_bits=kv_bits,
            unpack=unpack,
        ) as model,
        model.session() as session,
    ):
        _talk(Conversation(model, session, options, system), interactive=sys.stdin.isatty())


def _talk(conversation: Conversation, *, interactive: bool) -> None:
    """Read messages, one a line, and write the answers, until the end of input or /exit."""
    while True:
        try:
            line = input("> " if interactive else "")
        except (EOFError, KeyboardInterrupt):
            return
        except UnicodeDecodeError as error:
            raise InputRefusedError(f"the input is not UTF-8: {error.reason}") from error
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/"):
            click.echo(f"unknown command {line}: expected /reset or /exit", err=True)
        elif line:
            _answer(conversation, line, interactive=interactive)


def _answer(conversation: Conversation, line: str, *, interactive: bool) -> None:
    from loop_singular_bit.engine.generate import Finish

    finish: Finish | None = None
    try:
        with _interrupts(conversation):
            for event in conversation.answer(line):
                click.echo(event.text, nl=False)
                if isinstance(event, Finish):
                    finish = event
    except InputRefusedError as error:
        click.echo(f"{error}; /reset starts a new conversation", err=True)
        return
    click.echo()
    if interactive and finish is not None:
        _show_speed(finish)


def _show_speed(finish: Finish) -> None:
    seconds = finish.prompt_seconds + finish.generation_seconds
    note = (
        f"{finish.prompt_tokens} tokens read, {finish.completion_tokens} written, {seconds:.1f} s"
    )
    click.secho(note, dim=True, err=True)


@contextmanager
def _interrupts(conversation: Conversation) -> Iterator[None]:
    """Ctrl-C ends the answer after its next token, never inside the engine."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        conversation.interrupt()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
