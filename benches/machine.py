"""What a result was measured on, and where results go."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from loop_singular_bit import __version__, _native
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.memory import total_memory_bytes

RESULTS = Path(__file__).parent / "results"


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, instruction set in use, versions."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": usable_cores(),
        "memory_bytes": total_memory_bytes(),
        "instruction_set": _native.active_tier(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "version": __version__,
    }


def write_result(name: str, values: dict[str, Any]) -> None:
    """Writes benches/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
