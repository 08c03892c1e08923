"""What a person allows: gigabytes on disk, megabytes of memory, percent of quality."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from loop_singular_bit.errors import BudgetError, UsageError

GIGABYTE = 1_000_000_000
MEGABYTE = 1_000_000


def _checked(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{name} is {value!r}: must be a finite number")
    if value <= 0:
        raise UsageError(f"{name} is {value}: must be greater than 0")
    return float(value)


@dataclass(frozen=True)
class Budgets:
    """Limits, None where nothing is asked. Raises UsageError on values that are no limits.

    storage_gb    10^9 bytes of the artefact
    ram_mb        10^6 bytes of a process that runs it
    loss_percent  quality loss: 100 (PPL/PPL0 - 1)
    """

    storage_gb: float | None = None
    ram_mb: float | None = None
    loss_percent: float | None = None

    def __post_init__(self) -> None:
        _checked("--storage-gb", self.storage_gb)
        _checked("--ram-mb", self.ram_mb)
        _checked("--max-loss", self.loss_percent)

    @property
    def storage_bytes(self) -> int | None:
        return None if self.storage_gb is None else int(self.storage_gb * GIGABYTE)

    @property
    def ram_bytes(self) -> int | None:
        return None if self.ram_mb is None else int(self.ram_mb * MEGABYTE)


@dataclass
class Ledger:
    """Every holder of memory by name, added up before anything is reserved."""

    entries: dict[str, int] = field(default_factory=dict)

    def reserve(self, name: str, size_bytes: int) -> None:
        """Counts `size_bytes` more for holder `name`."""
        self.entries[name] = self.entries.get(name, 0) + size_bytes

    @property
    def total_bytes(self) -> int:
        return sum(self.entries.values())

    def require(self, limit_bytes: int, hint: str) -> None:
        """Raises BudgetError with the table and `hint` when the limit cannot hold the plan."""
        if self.total_bytes > limit_bytes:
            needed_mb = math.ceil(self.total_bytes / MEGABYTE * 10) / 10  # a budget that would do
            raise BudgetError(
                f"--ram-mb {limit_bytes / MEGABYTE:g}: the plan needs {needed_mb:.1f} MB "
                f"({self}); {hint}"
            )

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / MEGABYTE:.1f}" for name, size in self.entries.items())
