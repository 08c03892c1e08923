"""`lsb serve`: an OpenAI-compatible server."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from loop_singular_bit.cli.options import kv_option, unpack_flag
from loop_singular_bit.errors import UsageError


@click.command("serve")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--ram-mb", type=click.IntRange(1), help="Memory for the engine [10^6 bytes].")
@click.option("--context", type=click.IntRange(1), help="Positions of one request.")
@kv_option
@unpack_flag
@click.option("--threads", type=click.IntRange(1), help="Threads that compute.")
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=16,
    show_default=True,
    help="Requests that may wait behind the running one.",
)
def serve(
    directory: Path,
    host: str,
    port: int,
    ram_mb: int | None,
    context: int | None,
    kv_bits: str,
    unpack: bool,
    threads: int | None,
    queue: int,
) -> None:
    """Serve the model in DIRECTORY over HTTP, as OpenAI's API does.

    \b
    lsb serve my-model
    lsb serve my-model --port 9000 --ram-mb 400
    """
    try:
        from loop_singular_bit.serve.app import serve_http
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"{error.name} is not installed: pip install 'loop-singular-bit[serve]'"
        ) from error
    from loop_singular_bit.engine.runtime import open_model

    ram_bytes = None if ram_mb is None else ram_mb * 1_000_000

    def announce(address: str) -> None:
        click.echo(f"serving {model.name} at {address} (context {model.context}, Ctrl-C to stop)")

    # After draining, the server raises the signal it got once more: end as an interrupt does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open_model(
        directory,
        ram_bytes=ram_bytes,
        context=context,
        threads=threads,
        kv_bits=kv_bits,
        unpack=unpack,
    ) as model:
        try:
            serve_http(model, host=host, port=port, queue_max=queue, announce=announce)
        except KeyboardInterrupt:
            click.echo("stopped")
