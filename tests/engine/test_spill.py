from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_model

from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.pipeline import make_plan, write_artefacts
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.container import ContainerReader
from loop_singular_bit.engine import spill
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, ResidentNetwork, read_spec
from loop_singular_bit.engine.generate import GenerateOptions, generate
from loop_singular_bit.engine.kv import KV_BITS
from loop_singular_bit.engine.memory_plan import Setting, as_plans, streamed_plan
from loop_singular_bit.engine.runtime import Engine, open_model
from loop_singular_bit.engine.spill import SpilledCache, file_bytes, spill_bytes
from loop_singular_bit.engine.sweep import Batch
from loop_singular_bit.errors import BudgetError, ResourceError

IDS = [int(i) for i in np.random.default_rng(0).integers(4, 512, 60)]
CONTEXT = 96


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers as stored, with a sliding window."""
    folder = tmp_path_factory.mktemp("spill")
    source = open_source(
        str(write_tiny_model(folder / "m", "mistral", layers=8, sliding_window=40))
    )
    plan = make_plan(source, CodecOptions(codec="int8", embedding="raw"), Budgets())
    (folder / "artefact").mkdir()
    write_artefacts(source, [(plan, folder / "artefact")], None, 0)
    return folder / "artefact"


def engine_of(network: ResidentNetwork, bits: str, spilled: int, folder: Path) -> Engine:
    cache = None
    if spilled:
        cache = SpilledCache(network.spec, 2, CONTEXT, bits=bits, spilled=spilled, folders=[folder])
    return Engine(network, 2, CONTEXT, 16, bits, cache)


def hidden_states(engine: Engine) -> np.ndarray:
    """A prompt in several sweeps, single tokens, a rewind into a tile, another sequence."""
    parts = [engine.hidden(IDS[:45], 0, 0), engine.hidden(IDS[:3], 1, 0)]
    parts += [engine.hidden([token], 0, 45 + at) for at, token in enumerate(IDS[45:50])]
    parts += [engine.hidden(IDS[:20], 0, 37), engine.hidden(IDS[20:30], 1, 3)]
    both = Batch(
        np.array([7, 8, 9], np.int64),
        np.array([0, 0, 1], np.int32),
        np.array([57, 58, 13], np.int32),
    )
    return np.concatenate([*parts, engine._sweep.hidden(both)])


@pytest.mark.parametrize("bits", KV_BITS)
@pytest.mark.parametrize("spilled", [1, 5, 8])
@pytest.mark.parametrize("pass_bytes", [1, spill.PASS_BYTES])
def test_layers_on_disk_give_the_bits_of_layers_in_memory(
    artefact: Path, tmp_path: Path, bits: str, spilled: int, pass_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(spill, "PASS_BYTES", pass_bytes)
    network = ResidentNetwork(artefact)
    expected, found = (
        hidden_states(engine_of(network, bits, count, tmp_path)) for count in (0, spilled)
    )
    assert found.tobytes() == expected.tobytes()
    network.close()


@pytest.mark.parametrize("bits", KV_BITS)
def test_bytes_are_those_of_a_cache(artefact: Path, tmp_path: Path, bits: str) -> None:
    spec = read_spec(artefact)
    cache = SpilledCache(spec, 2, CONTEXT, bits=bits, spilled=3, folders=[tmp_path])
    assert cache.on_disk_bytes == file_bytes(spec, 2, CONTEXT, bits, 3)
    layer: spill.SpilledLayer = cache.layers[-1]  # type: ignore[assignment]
    taken = cache.nbytes + layer.blocks._buffer.size_bytes + 3 * layer.checksums.nbytes
    kept = 5 * cache.nbytes // 6  # one layer's memory is shared
    assert taken == kept + spill_bytes(spec, 2, CONTEXT, bits, 3)
    cache.close()


def failing(artefact: Path, folder: Path) -> tuple[Engine, int]:
    """An engine with 40 tokens on disk, and the descriptor of its file."""
    engine = engine_of(ResidentNetwork(artefact), "8", 8, folder)
    engine.hidden(IDS[:40], 0, 0)
    return engine, engine.cache._file._fd  # type: ignore[attr-defined]


def test_a_flipped_bit_is_noticed(artefact: Path, tmp_path: Path) -> None:
    engine, fd = failing(artefact, tmp_path)
    layer: spill.SpilledLayer = engine.cache.layers[2]  # type: ignore[assignment]
    buffer = layer.blocks._buffer
    layer.file.read(layer._offset(0, 1), buffer.view[: layer.blocks.size_bytes])
    buffer.array[77] ^= 4
    os.pwritev(fd, [buffer.view[: layer.blocks.size_bytes]], layer._offset(0, 1))
    with pytest.raises(ResourceError, match=r"tokens 16\.\. came back with checksum [0-9a-f]{8}, "):
        engine.hidden(IDS[:1], 0, 40)


def test_blocks_that_changed_places_are_noticed(artefact: Path, tmp_path: Path) -> None:
    engine, fd = failing(artefact, tmp_path)
    layer: spill.SpilledLayer = engine.cache.layers[0]  # type: ignore[assignment]
    page = layer.blocks._buffer.view[: layer.blocks.size_bytes]
    layer.file.read(layer._offset(0, 0), page)
    os.pwritev(fd, [page], layer._offset(0, 1))
    with pytest.raises(ResourceError, match=r"tokens 16\.\. came back"):
        engine.hidden(IDS[:1], 0, 40)


def test_a_file_cut_short_is_noticed(artefact: Path, tmp_path: Path) -> None:
    engine, fd = failing(artefact, tmp_path)
    os.ftruncate(fd, 4096)
    with pytest.raises(ResourceError, match="keys and values on disk end at byte"):
        engine.hidden(IDS[:1], 0, 40)


def plan_bytes(artefact: Path, setting: Setting) -> tuple[int, int]:
    """What the least streamed plan takes with keys and values in memory, and with none there."""
    spec = read_spec(artefact)
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        records = as_plans(reader.records)
    memory = streamed_plan(spec, records, setting)
    least = streamed_plan(spec, records, setting, 1)
    assert (memory.spilled, least.spilled) == (0, spec.layers)
    return memory.ledger.total_bytes, least.ledger.total_bytes


def part_spilled(artefact: Path, setting: Setting, least: int, memory: int) -> int:
    """A budget that holds keys and values of some layers."""
    spec = read_spec(artefact)
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        records = as_plans(reader.records)
    for ram_bytes in range(least, memory, 512):
        if 0 < streamed_plan(spec, records, setting, ram_bytes).spilled < spec.layers:
            return ram_bytes
    raise AssertionError("every budget keeps all of the cache in memory, or none")


def test_a_budget_below_the_cache_keeps_what_fits_in_memory(artefact: Path) -> None:
    setting = Setting(256, threads=1, kv_bits="16")
    memory, least = plan_bytes(artefact, setting)
    answers, spilled = [], []
    between = part_spilled(artefact, setting, least, memory)
    for ram_bytes in (None, memory, between, least):
        with open_model(
            artefact, ram_bytes=ram_bytes, context=256, threads=1, kv_bits="16"
        ) as model, model.session() as session:  # fmt: skip
            if ram_bytes is not None:
                assert model.ledger.total_bytes <= ram_bytes
            spilled.append(model.plan.spilled)
            events = generate(model, session, IDS[:30], GenerateOptions(12))
            answers.append("".join(event.text for event in events))
    assert spilled[:2] == [0, 0]
    assert 0 < spilled[2] < spilled[3] == 8
    assert len(set(answers)) == 1
    with (
        pytest.raises(BudgetError, match="kv on disk: buffers"),
        open_model(artefact, ram_bytes=least - 1, context=256, threads=1, kv_bits="16"),
    ):
        pass


def test_rows_of_a_sweep_come_before_layers_in_memory(artefact: Path) -> None:
    spec, setting = read_spec(artefact), Setting(256, threads=1, kv_bits="16")
    with ContainerReader.open(artefact / WEIGHTS_FILE) as reader:
        records = as_plans(reader.records)
    deep = replace(spec, context_max=1 << 20)
    long = replace(setting, context=1 << 18)
    memory = streamed_plan(deep, records, long).ledger.total_bytes
    plan = streamed_plan(deep, records, long, memory - 1)
    assert (plan.rows, plan.spilled > 0) == (256, True)
