"""Flags that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from loop_singular_bit.errors import InputRefusedError

if TYPE_CHECKING:
    from loop_singular_bit.compress.allocate import CodecOptions

F = TypeVar("F", bound=Callable[..., Any])

json_flag = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
quiet_flag = click.option("--quiet", "-q", is_flag=True, help="No progress.")
threads_option = click.option("--threads", type=click.IntRange(1, 256), help="Threads to use.")
ram_option = click.option("--ram-mb", type=float, help="Memory of a run [10^6 bytes].")
draft_option = click.option(
    "--draft", type=int, metavar="N",
    help="Longest draft a sweep verifies, 0 for none [default: by where the weights are].",
)  # fmt: skip
# Those of engine/kv.py, which is not imported: `lsb --help` starts at once.
_KV_BITS = click.Choice(["16", "8", "8:4", "4"])
kv_option = click.option(
    "--kv", "kv_bits", type=_KV_BITS, default="8", show_default=True,
    help="Bits of a number in the KV cache, or keys:values.",
)  # fmt: skip
unpack_flag = click.option(
    "--unpack", is_flag=True,
    help="Decode planes on opening: about 8 bits a weight of memory, faster tokens.",
)  # fmt: skip
exact_kv_option = click.option(
    "--kv", "kv_bits", type=_KV_BITS, default="16", show_default=True,
    help="Bits of a number in the artefact's KV cache; 16 leaves its share of the loss out.",
)  # fmt: skip
directory_argument = click.argument(
    "directory", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


def budget_options(command: F) -> F:
    """--storage-gb, --ram-mb, --max-loss."""
    for option in (
        click.option("--max-loss", type=float, help="Quality loss allowed [percent]."),
        ram_option,
        click.option("--storage-gb", type=float, help="Size allowed on disk [10^9 bytes]."),
    ):
        command = option(command)
    return command


def _outlier_ratio(
    context: click.Context, parameter: click.Parameter, text: str
) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no number, nor auto") from error


def codec_options(command: F) -> F:
    """--codec, --planes, --window, --block, --outlier-ratio, --embedding."""
    for option in (
        click.option("--embedding", default="planes", show_default=True, help="Or int8, raw."),
        click.option("--outlier-ratio", default="0", show_default=True, callback=_outlier_ratio,
                     help="Share kept exactly, or auto: as much as is worth its bytes."),
        click.option("--block", default=4, show_default=True, help="Columns between feedbacks."),
        click.option("--window", default=8, show_default=True, help="L: bits that select a value."),
        click.option("--planes", type=int, help="Loops of a matrix [default: by budget]."),
        click.option("--codec", default="planes", show_default=True,
                     help="planes, raw, int8, uniform1 or outlier1."),
    ):  # fmt: skip
        command = option(command)
    return command


def codec_from(flags: Mapping[str, Any]) -> CodecOptions:
    """What the flags of `codec_options` say."""
    from loop_singular_bit.compress.allocate import CodecOptions

    return CodecOptions(
        flags["codec"], flags["planes"], flags["window"], flags["block"], flags["outlier_ratio"],
        flags["embedding"],
    )  # fmt: skip


def evaluation_options(command: F) -> F:
    """--text, --context, --tokens."""
    for option in (
        click.option("--tokens", default=4096, show_default=True, help="Tokens to predict."),
        click.option("--context", default=1024, show_default=True, help="Tokens of one window."),
        click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="Evaluation text [default: Python's language reference]."),
    ):  # fmt: skip
        command = option(command)
    return command


def read_text(path: Path | None) -> str | None:
    """The file's text; InputRefusedError when it is not UTF-8."""
    if path is None:
        return None
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputRefusedError(f"{path}: not UTF-8 at byte {error.start}") from error
