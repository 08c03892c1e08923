"""`lsb doctor`: what this machine offers, and what is in force."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import click

from loop_singular_bit.cli.options import json_flag
from loop_singular_bit.cli.show import print_json, print_table


@click.command("doctor")
@json_flag
def doctor(as_json: bool) -> None:
    """Show versions, instruction sets, kernels, memory, and how files would be read here.

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
        "reads_here": _reads(Path.cwd()),
    }


def _kernel_rate() -> float:
    """Weights a second of one token through three planes, all cores, measured for a moment."""
    import numpy as np

    from loop_singular_bit import _native
    from loop_singular_bit.codec.tables import native_tables
    from loop_singular_bit.engine.runtime import usable_cores

    _native.set_threads(usable_cores())
    rows, cols, planes = 2048, 2048, 3
    streams = [np.zeros(_native.stream_bytes(rows, cols, 256), np.uint8) for _ in range(planes)]
    packed = _native.PackedRows(1, cols, 256)
    packed.pack(np.ones((1, cols), np.float32))
    scale, out = np.ones(rows, np.float32), np.empty((1, rows), np.float32)
    tables = native_tables(7, planes)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.2:
        _native.planes_matmul(streams, rows, cols, 256, tables, scale, packed, out)
        count += 1
    return round(count * rows * cols / (time.perf_counter() - start))


def _reads(directory: Path) -> str:
    """The reader's back end on the file system of `directory`."""
    import tempfile

    from loop_singular_bit.container.directio import PageFile

    with tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
        file.flush()
        opened = PageFile(Path(file.name), None)
        try:
            return opened.backend.value
        finally:
            opened.close()
