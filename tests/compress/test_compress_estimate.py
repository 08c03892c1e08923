from __future__ import annotations

from pathlib import Path

import pytest

from loop_singular_bit.budget import Budgets, Ledger
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.estimate import compress_ram, run_ram
from loop_singular_bit.compress.pipeline import make_plan, write_artefacts
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.errors import BudgetError

OPTIONS = CodecOptions("int8")


@pytest.fixture(scope="module")
def artefact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without outliers: its size is known exactly."""
    source = open_source(str(tiny_model))
    folder = tmp_path_factory.mktemp("int8")
    write_artefacts(source, [(make_plan(source, OPTIONS, Budgets()), folder)], None, 0)
    return folder


def test_the_memory_of_a_run_is_what_opening_reserves(tiny_model: Path, artefact: Path) -> None:
    source = open_source(str(tiny_model))
    plan = make_plan(source, OPTIONS, Budgets())
    resident, least = run_ram(source, plan, 64)
    with open_model(artefact, context=64) as model:
        assert model.ledger.entries == resident.entries
    limit = resident.total_bytes - 1
    assert least.total_bytes <= limit
    with open_model(artefact, context=64, ram_bytes=limit) as model:
        assert model.ledger.entries == run_ram(source, plan, 64, limit)[1].entries


def test_a_run_that_the_estimate_refuses_is_refused(tiny_model: Path, artefact: Path) -> None:
    source = open_source(str(tiny_model))
    plan = make_plan(source, OPTIONS, Budgets())
    least = min(ledger.total_bytes for ledger in run_ram(source, plan, 64))
    with open_model(artefact, context=64, ram_bytes=least):
        pass
    with pytest.raises(BudgetError, match="plan needs"):
        open_model(artefact, context=64, ram_bytes=least - 1).__enter__()


def test_memory_to_compress_grows_with_tokens_by_their_hidden_states(tiny_model: Path) -> None:
    source = open_source(str(tiny_model))
    small, large = compress_ram(source, 1000), compress_ram(source, 2000)
    assert isinstance(small, Ledger)
    assert large.total_bytes - small.total_bytes == 2 * 4 * 1000 * source.spec.hidden
    assert all(size > 0 for size in small.entries.values())
