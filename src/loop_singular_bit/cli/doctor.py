"""`lsb doctor`: what this machine offers, and what is in force."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import click

from loop_singular_bit.cli.options import json_flag
from loop_singular_bit.cli.show import print_json, print_table

_PROBE_BYTES = 1 << 26  # written, read and removed again


@click.command("doctor")
@json_flag
def doctor(as_json: bool) -> None:
    """Show versions, instruction sets, kernels, memory, and how fast files would be read here.

    \b
    lsb doctor
    """
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    print_table("this machine", ("", ""), [(name, str(value)) for name, value in facts.items()])


def _facts() -> dict[str, Any]:
    import loop_singular_bit
    from loop_singular_bit import _native
    from loop_singular_bit.engine.runtime import usable_cores
    from loop_singular_bit.memory import current_rss_bytes, total_memory_bytes

    tiers = _native.available_tiers()
    return {
        "version": loop_singular_bit.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": usable_cores(),
        "memory_bytes": total_memory_bytes(),
        "process_rss_bytes": current_rss_bytes(),
        "instruction_sets": ", ".join(tiers),
        "in_use": _native.active_tier(),
        "planes_weights_per_second": _kernel_rate(),
        **_reads(Path.cwd()),
    }


def _kernel_rate() -> float:
    """Weights a second of one token through three planes, all cores, measured for a moment."""
    from loop_singular_bit import _native
    from loop_singular_bit.engine.runtime import usable_cores
    from loop_singular_bit.measure.speed import kernel_rate

    _native.set_threads(usable_cores())
    return round(kernel_rate(planes=3, window=7))


def _reads(directory: Path) -> dict[str, Any]:
    """The reader's back end on the file system of `directory`, and how fast it brings bytes in."""
    import os
    import tempfile

    from loop_singular_bit.container.directio import PageFile
    from loop_singular_bit.measure.disk import probe_disk

    with tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(os.urandom(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        path = Path(file.name)
        opened = PageFile(path)
        opened.close()
        return {
            "reads_here": opened.backend.value,
            "disk_bytes_per_second": round(probe_disk(path)),
        }
