from __future__ import annotations

import math

import pytest

from loop_singular_bit.budget import Budgets, Ledger
from loop_singular_bit.errors import BudgetError, UsageError

FLAGS = {"storage_gb": "--storage-gb", "ram_mb": "--ram-mb", "loss_percent": "--max-loss"}


def test_nothing_asked_is_no_limit() -> None:
    budgets = Budgets()
    assert (budgets.storage_bytes, budgets.ram_bytes, budgets.loss_percent) == (None, None, None)


def test_units_are_decimal() -> None:
    budgets = Budgets(storage_gb=3.53, ram_mb=192)
    assert (budgets.storage_bytes, budgets.ram_bytes) == (3_530_000_000, 192_000_000)


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf, True, "4"])
def test_what_is_no_limit_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=FLAGS[field]) as refused:
        Budgets(**{field: value})  # type: ignore[arg-type]
    assert str(value) in str(refused.value)


def test_a_ledger_adds_up_by_holder() -> None:
    ledger = Ledger()
    ledger.reserve("kv", 1_500_000)
    ledger.reserve("layers", 2_000_000)
    ledger.reserve("kv", 1_000_000)
    assert ledger.entries == {"kv": 2_500_000, "layers": 2_000_000}
    assert ledger.total_bytes == 4_500_000
    assert str(ledger) == "kv 2.5, layers 2.0"


def test_a_limit_that_holds_the_plan_exactly_is_enough() -> None:
    ledger = Ledger()
    ledger.reserve("kv", 1_234_567)
    ledger.require(1_234_567, "")
    with pytest.raises(BudgetError) as refused:
        ledger.require(1_234_566, "lower --context 8")
    assert str(refused.value) == (
        "--ram-mb 1.23457: the plan needs 1.3 MB (kv 1.2); lower --context 8"
    )
    ledger.require(1_300_000, "")  # what the message says would do
