from __future__ import annotations

import json

import pytest
from cli_runs import Command

import loop_singular_bit
from loop_singular_bit import _native
from loop_singular_bit.cli import doctor
from loop_singular_bit.measure import disk


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.05)


def test_json_says_what_is_in_force(lsb: Command) -> None:
    outcome = lsb("doctor", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["version"] == loop_singular_bit.__version__
    assert found["in_use"] == _native.active_tier()
    assert found["in_use"] in found["instruction_sets"].split(", ")
    assert found["cores"] >= 1
    assert found["planes_weights_per_second"] > 0
    assert found["reads_here"]
    assert found["disk_bytes_per_second"] > 0


def test_people_get_a_table(lsb: Command) -> None:
    outcome = lsb("doctor")
    assert outcome.code == 0
    assert f"\nversion\t{loop_singular_bit.__version__}\n" in outcome.out
