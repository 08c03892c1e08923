from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.pipeline import make_plan, write_artefacts
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.container import ContainerReader, RecordPlan
from loop_singular_bit.engine.artefact import (
    WEIGHTS_FILE,
    ResidentNetwork,
    StreamedNetwork,
    read_spec,
)
from loop_singular_bit.engine.memory_plan import Setting, as_plans, resident_plan, streamed_plan
from loop_singular_bit.engine.runtime import CONTEXT_DEFAULT, Engine, choose_context, open_model
from loop_singular_bit.errors import BudgetError, InputRefusedError, UsageError

IDS = [int(i) for i in np.random.default_rng(0).integers(4, 512, 40)]


def records(artefact: Path) -> list[RecordPlan]:
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        return as_plans(reader.records)


def plans(artefact: Path, context: int = 256) -> tuple[int, int]:
    """Bytes that the resident and the smallest streamed plan need."""
    spec, setting = read_spec(artefact), Setting(context)
    return (
        resident_plan(spec, records(artefact), setting).ledger.total_bytes,
        streamed_plan(spec, records(artefact), setting).ledger.total_bytes,
    )


def test_session_advances_in_one_call_or_in_many(tiny_artefact: Path) -> None:
    with open_model(tiny_artefact, threads=1) as model, model.session() as session:
        whole = session.advance(IDS).copy()
        assert session.position == len(IDS)
        assert whole.shape == (512,)
        session.rewind(0)
        for token in IDS:
            last = session.advance([token])
        assert np.array_equal(last, whole)


def test_prompt_longer_than_one_sweep_equals_token_by_token(tiny_artefact: Path) -> None:
    network = ResidentNetwork(tiny_artefact)
    short, long = Engine(network, 1, 64, 16), Engine(network, 1, 64, 64)
    assert np.array_equal(short.hidden(IDS, 0, 0), long.hidden(IDS, 0, 0))
    network.close()


@pytest.mark.parametrize("back_to", [0, 1, 16, 39])
def test_rewind_and_advance_again_gives_the_same_bits(tiny_artefact: Path, back_to: int) -> None:
    with open_model(tiny_artefact, threads=1) as model, model.session() as session:
        first = session.advance(IDS).copy()
        session.rewind(back_to)
        assert session.position == back_to
        other = session.advance([5] * (len(IDS) - back_to)).copy()
        session.rewind(back_to)
        assert np.array_equal(session.advance(IDS[back_to:]), first)
        assert not np.array_equal(other, first)


def test_rewind_outside_the_sequence_is_refused(tiny_artefact: Path) -> None:
    with open_model(tiny_artefact, threads=1) as model, model.session() as session:
        session.advance(IDS[:3])
        for position in (-1, 4):
            with pytest.raises(InputRefusedError, match=f"rewind to {position}: position is 3"):
                session.rewind(position)


def test_looking_ahead_gives_the_bits_of_advancing_and_accepts_a_part(tiny_artefact: Path) -> None:
    with open_model(tiny_artefact, threads=1) as model, model.session() as session:
        session.advance(IDS[:9])
        one_by_one = [session.advance([token]) for token in IDS[9:25]]
        session.rewind(9)
        ahead = session.look_ahead(IDS[9:25])
        assert session.position == 9
        assert np.array_equal(ahead, one_by_one)
        session.look_ahead([*IDS[9:12], 5, 6, 7])
        session.accept(1)
        session.accept(2)
        assert session.position == 12
        assert np.array_equal(session.advance(IDS[12:25]), one_by_one[-1])


@pytest.mark.parametrize("forget", ["nothing", "advance", "rewind"])
def test_only_what_was_looked_at_is_accepted(tiny_artefact: Path, forget: str) -> None:
    with open_model(tiny_artefact, threads=1) as model, model.session() as session:
        session.look_ahead([1, 2])
        if forget == "advance":
            session.advance([5])
        elif forget == "rewind":
            session.rewind(0)
        left = 2 if forget == "nothing" else 0
        for count in (-1, left + 1):
            with pytest.raises(InputRefusedError, match=f"accept {count} tokens: {left} looked at"):
                session.accept(count)


def test_looking_too_far_ahead_is_refused(tiny_artefact: Path) -> None:
    with open_model(tiny_artefact, threads=1, context=32) as model, model.session() as session:
        with pytest.raises(InputRefusedError, match="look at 17 tokens: at most 16"):
            session.look_ahead([1] * 17)
        session.advance(IDS[:20])
        with pytest.raises(InputRefusedError, match=r"20 \+ 13 tokens do not fit a context of 32"):
            session.look_ahead([1] * 13)
        assert session.look_ahead([1] * 12).shape == (12, 512)


def test_sequences_beside_each_other_do_not_mix(tiny_artefact: Path) -> None:
    with open_model(tiny_artefact, threads=1, sequences=2) as model:
        with model.session() as alone:
            expected = [alone.advance([token]).copy() for token in IDS[:10]]
        with model.session() as one, model.session() as two:
            for token, wanted in zip(IDS[:10], expected, strict=True):
                two.advance([7, 8])
                assert np.array_equal(one.advance([token]), wanted)
            with (
                pytest.raises(InputRefusedError, match="every sequence slot is taken"),
                model.session(),
            ):
                pass
        with model.session() as again:
            assert np.array_equal(again.advance(IDS[:10]), expected[-1])


def test_context_is_a_hard_limit(tiny_artefact: Path) -> None:
    with open_model(tiny_artefact, threads=1, context=20) as model, model.session() as session:
        assert (model.context, session.context) == (20, 20)
        with pytest.raises(InputRefusedError, match="0 \\+ 21 tokens do not fit a context of 20"):
            session.advance(IDS[:21])
        assert session.position == 0
        last = session.advance(IDS[:20]).copy()
        with pytest.raises(InputRefusedError, match="20 \\+ 1 tokens do not fit"):
            session.advance([5])
    with open_model(tiny_artefact, threads=1) as model, model.session() as session:
        assert np.array_equal(session.advance(IDS[:20]), last)


@pytest.mark.parametrize("ids", [[], [-1], [512], [3, 512]])
def test_ids_outside_the_vocabulary_are_refused(tiny_artefact: Path, ids: list[int]) -> None:
    with (
        open_model(tiny_artefact, threads=1) as model,
        model.session() as session,
        pytest.raises(InputRefusedError, match=r"each in 0\.\.511"),
    ):
        session.advance(ids)


def test_context_beyond_the_model_is_refused(tiny_artefact: Path) -> None:
    spec = read_spec(tiny_artefact)
    assert choose_context(spec, None) == 256
    assert choose_context(replace(spec, context_max=10**6), None) == CONTEXT_DEFAULT
    for context in (0, 257):
        with pytest.raises(UsageError, match=rf"--context {context}: must be 1\.\.256"):
            choose_context(spec, context)


def test_budget_chooses_between_memory_and_disk(tmp_path: Path) -> None:
    artefact = deep_artefact(tmp_path)
    resident, streamed = plans(artefact)
    assert streamed < resident
    for ram_bytes, kind in ((resident, ResidentNetwork), (resident - 1, StreamedNetwork)):
        with open_model(artefact, threads=1, ram_bytes=ram_bytes) as model:
            assert isinstance(model.engine.network, kind)
            assert model.ledger.total_bytes <= ram_bytes
    with (
        pytest.raises(BudgetError, match="lower --context 256 or raise --ram-mb"),
        open_model(artefact, threads=1, ram_bytes=streamed // 2),
    ):
        pass


def test_a_budget_that_cannot_hold_unpacked_weights_is_refused(tiny_artefact: Path) -> None:
    spec = read_spec(tiny_artefact)
    setting = Setting(256, unpack=True, threads=1)
    needed = resident_plan(spec, records(tiny_artefact), setting).ledger.total_bytes
    with open_model(tiny_artefact, threads=1, ram_bytes=needed, unpack=True) as model:
        assert model.ledger.total_bytes == needed
    with (
        pytest.raises(BudgetError, match="leave out --unpack or raise --ram-mb"),
        open_model(tiny_artefact, threads=1, ram_bytes=needed - 1, unpack=True),
    ):
        pass


def test_budget_too_small_names_every_holder_and_both_numbers(tiny_artefact: Path) -> None:
    with (
        pytest.raises(BudgetError) as caught,
        open_model(tiny_artefact, threads=1, ram_bytes=9_000_000),
    ):
        pass
    message = str(caught.value)
    needed = math.ceil(plans(tiny_artefact)[1] / 1e5) / 10  # a budget that would do
    assert message.startswith(f"--ram-mb 9: the plan needs {needed:.1f} MB (process 54")
    for holder in ("small weights", "slots", "kv", "activations", "opening", "drafts", "rotary"):
        assert f"{holder} " in message
    assert message.endswith("; lower --context 256 or raise --ram-mb")
    assert "\n" not in message


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_any_budget_gives_the_same_bits(tmp_path: Path, share: float) -> None:
    artefact = deep_artefact(tmp_path)
    resident, streamed = plans(artefact)
    found = []
    for ram_bytes in (None, streamed + int(share * (resident - streamed))):
        with open_model(artefact, threads=1, ram_bytes=ram_bytes) as model:
            assert model.streamed == (ram_bytes is not None)
            with model.session() as session:
                found.append([session.advance(IDS[:9]), session.advance(IDS[9:10])])
    assert np.array_equal(*found)


def deep_artefact(folder: Path) -> Path:
    """Eight layers as stored, without calibration."""
    source = open_source(str(write_tiny_model(folder / "model", layers=8)))
    plan = make_plan(source, CodecOptions(codec="int8", embedding="raw"), Budgets())
    (folder / "artefact").mkdir()
    write_artefacts(source, [(plan, folder / "artefact")], None, 0)
    return folder / "artefact"


def test_a_run_imports_only_what_it_needs(tiny_artefact: Path) -> None:
    """`lsb run` from the first line to the last, in a process of its own."""
    program = (
        "import sys\nfrom loop_singular_bit.cli import main\n"
        f"sys.argv = ['lsb', 'run', {str(tiny_artefact)!r}, 'Hello', '--max-tokens', '2']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print()\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"numpy", "tokenizers", "loop_singular_bit.engine.runtime"} <= loaded
    never = {"torch", "transformers", "gguf", "huggingface_hub", "safetensors", "httpx"}
    assert not loaded & never
