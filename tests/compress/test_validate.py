from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import TEXT, write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress import validate as module
from loop_singular_bit.compress.compressor import (
    EvaluationOptions,
    Target,
    artefact_size_bytes,
)
from loop_singular_bit.compress.validate import Validation, ValidationOptions, validate
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.memory_plan import Setting
from loop_singular_bit.engine.runtime import Model, open_model, plan_run
from loop_singular_bit.errors import BudgetError, InputRefusedError, ResourceError
from loop_singular_bit.measure.memory_bench import MemoryFigures
from loop_singular_bit.measure.quality import Perplexity, Quality

SHORT = EvaluationOptions(" ".join(TEXT) * 2, context=64, tokens=128)
GENEROUS = Budgets(storage_gb=1.0, ram_mb=400.0, loss_percent=400.0)
OPTIONS = ValidationOptions(None, GENEROUS, SHORT, threads=1)


@pytest.fixture(scope="module")
def found(tiny_artefact: Path, tiny_model: Path) -> Validation:
    return validate(tiny_artefact, replace(OPTIONS, against=str(tiny_model)))


def test_everything_is_in_one_report(found: Validation, tiny_artefact: Path) -> None:
    assert found.sound and found.passed
    assert isinstance(found.quality, Quality)
    assert isinstance(found.run, MemoryFigures)
    assert found.size["size_bytes"] == artefact_size_bytes(tiny_artefact)
    assert all(tensor.relative_error is not None for tensor in found.tensors)
    assert found.quality.tokens == 128
    json.dumps(found.values())


def test_targets_are_what_was_measured(found: Validation) -> None:
    assert isinstance(found.run, MemoryFigures) and isinstance(found.quality, Quality)
    measured = {name: target.measured for name, target in found.targets.items()}
    assert measured == {
        "storage": found.size["size_bytes"] / 1e9,
        "ram": found.run.use.peak_bytes / 1e6,
        "quality": found.quality.quality_loss,
    }


def test_the_whole_model_streams_where_the_target_asks_for_it(
    found: Validation, tiny_artefact: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed: list[int | None] = []
    needed = plan_run(tiny_artefact, Setting(SHORT.context, 1, "16", 1), None).ledger.total_bytes
    budgets = replace(GENEROUS, ram_mb=(needed - 1) / 1e6)

    def opened(*args: Any, **options: Any) -> AbstractContextManager[Model]:
        streamed.append(options["ram_bytes"])
        return open_model(*args, **options)

    monkeypatch.setattr(module, "open_model", opened)
    plan = plan_run(tiny_artefact, Setting(SHORT.context, 1, "16", 1), budgets.ram_bytes)
    assert plan.streamed
    again = validate(tiny_artefact, replace(OPTIONS, against=str(tiny_model), budgets=budgets))
    assert streamed == [budgets.ram_bytes]
    assert again.quality == found.quality


def test_alone_there_is_no_quality_target(tiny_artefact: Path) -> None:
    alone = validate(tiny_artefact, OPTIONS)
    assert isinstance(alone.quality, Perplexity)
    assert set(alone.targets) == {"storage", "ram"}
    assert alone.passed
    assert all(tensor.relative_error is None for tensor in alone.tensors)


@pytest.mark.parametrize(("loss", "met"), [(1.5, False), (1.0, True), (-0.1, True)])
def test_quality_is_held_against_its_limit(found: Validation, loss: float, met: bool) -> None:
    assert isinstance(found.quality, Quality)
    quality = replace(found.quality, quality_loss=loss)
    targets = module._targets(Budgets(loss_percent=1.0), 1, found.run, quality)
    assert targets == {"quality": Target(1.0, loss, met)}


def test_targets_that_cannot_be_met_are_missed(tiny_artefact: Path) -> None:
    budgets = Budgets(storage_gb=1e-6, ram_mb=30.0)
    found = validate(tiny_artefact, replace(OPTIONS, budgets=budgets))
    assert [target.met for target in found.targets.values()] == [False, False]
    assert isinstance(found.run, BudgetError)
    assert found.targets["ram"].measured is None
    assert "--ram-mb 30" in found.values()["run"]["refused"]
    assert found.sound and not found.passed


def test_a_value_that_is_not_finite_fails_whatever_the_targets(found: Validation) -> None:
    wrong = [replace(found.tensors[0], finite=False), *found.tensors[1:]]
    assert not replace(found, tensors=wrong).passed
    quality = replace(found.quality, perplexity=float("nan"))
    assert not replace(found, quality=quality).passed


def test_damage_is_found_before_anything_is_compared(tiny_artefact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_artefact, damaged)
    data = bytearray((damaged / WEIGHTS_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(ResourceError, match="damaged"):
        validate(damaged, OPTIONS)


@pytest.mark.parametrize(
    ("sizes", "word"), [({"layers": 3}, "layers.2."), ({"intermediate": 96}, "gate")]
)
def test_another_model_is_refused_by_its_first_tensor(
    sizes: dict[str, int], word: str, tiny_artefact: Path, tmp_path: Path
) -> None:
    other = write_tiny_model(tmp_path / "other", **sizes)
    with pytest.raises(InputRefusedError, match=rf"{word}.*name the model it was made from"):
        validate(tiny_artefact, replace(OPTIONS, against=str(other)))
