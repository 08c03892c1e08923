"""`lsb verify`: every byte of an artefact against its checksums."""

from __future__ import annotations

from pathlib import Path

import click

from loop_singular_bit.cli.options import directory_argument, quiet_flag
from loop_singular_bit.cli.show import progress_on_stderr, size_text


@click.command("verify")
@directory_argument
@quiet_flag
def verify(directory: Path, quiet: bool) -> None:
    """Read the whole artefact in DIRECTORY: structure, checksums, and that every tensor decodes.

    \b
    lsb verify smol
    """
    from loop_singular_bit.engine.artefact import ArtefactNetwork
    from loop_singular_bit.engine.text import Text

    Text.open(directory)
    network = ArtefactNetwork(directory)
    try:
        with progress_on_stderr(quiet) as progress:
            network.reader.verify_all(lambda done, total: progress("verify", done, total))
            network.read_each()
        click.echo(
            f"{directory}: {size_text(network.reader.file_bytes)} verified, all tensors sound"
        )
    finally:
        network.close()
