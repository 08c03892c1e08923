"""Memory of this process as the operating system counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def _status_bytes(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text("ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def peak_rss_bytes() -> int:
    """Largest resident set so far."""
    found = _status_bytes("VmHWM")
    if found is not None:
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_rss_bytes() -> int:
    """Resident set now; its peak where the system does not tell."""
    found = _status_bytes("VmRSS")
    return peak_rss_bytes() if found is None else found


def total_memory_bytes() -> int | None:
    """Memory of this machine; None where the system does not tell."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text("ascii").splitlines())
    return int(fields["MemTotal"].split()[0]) * 1024
