"""The `lsb` command: parses, calls, prints. Sub-commands are imported when they are used."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module
from typing import Any

import click

from loop_singular_bit.errors import InterruptedRunError, LoopError, ResourceError, UsageError

_COMMANDS = (
    "estimate", "compress", "eval", "run", "chat", "serve", "info", "verify", "doctor", "demo",
    "bench", "validate",
)  # fmt: skip
_INSTRUCTION_SETS = (
    ("scalar", "neon")
    if platform.machine().lower() in ("aarch64", "arm64")
    else ("scalar", "avx2", "avx512", "avx512vnni")
)
_MODULES = {"eval": "evaluate"}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = _MODULES.get(cmd_name, cmd_name)
        module = import_module(f"loop_singular_bit.cli.{name}")
        command: click.Command = getattr(module, name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of a pipe left (`lsb ... | head`): nothing is wrong, and nothing can be
            # said. Caught here because click would end with code 1.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt as error:
            # Caught here because click would print an empty line first.
            raise InterruptedRunError("stopped") from error
        return result


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="loop-singular-bit", prog_name="lsb")
def cli() -> None:
    """Compress a language model into one-bit trellis planes and run it inside the memory you have.

    Exit codes: 0 done, 2 usage, 3 a target was missed, 4 input refused, 5 I/O or resources,
    6 interrupted.
    """
    cap = os.environ.get("LSB_ISA")
    if cap and cap not in _INSTRUCTION_SETS:
        raise UsageError(f"LSB_ISA is {cap!r}: expected one of {', '.join(_INSTRUCTION_SETS)}")


def main() -> None:
    """Entry point: errors of this package become one line and their exit code."""
    try:
        status = cli.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        _fail(InterruptedRunError("stopped"))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except click.ClickException as error:
        _fail(UsageError(error.format_message()))
    except LoopError as error:
        _fail(error)
    except (OSError, MemoryError) as error:
        _fail(ResourceError(f"{type(error).__name__}: {error}"))


def _fail(error: LoopError) -> None:
    click.echo(f"lsb: {' '.join(str(error).split())}", err=True)
    sys.exit(error.exit_code)
