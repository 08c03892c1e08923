"""The models that benches/memory_peers.py writes and the rows it makes of a run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from loop_singular_bit.codec.numbers import from_pattern
from loop_singular_bit.compress.shapes import SHAPES
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.errors import UsageError
from loop_singular_bit.measure.capped_run import Ended, MemoryUse
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import all_tensors, parameter_count

BENCHES = Path(__file__).parent.parent / "benches"
BENCH = BENCHES / "memory_peers.py"
MB = 1_000_000

pytestmark = pytest.mark.skipif(not BENCH.is_file(), reason="only in a checkout")


def module_of(name: str) -> ModuleType:
    """A module of benches/, which is no package."""
    sys.path.insert(0, str(BENCHES))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look themselves up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHES))


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return module_of("memory_peers")


@pytest.fixture(scope="module")
def models() -> ModuleType:
    return module_of("peer_models")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peers")
    command = [sys.executable, str(BENCH), "small", str(directory), "--only-write"]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def test_both_models_have_the_shape(written: Path) -> None:
    spec = spec_from_config(SHAPES["small"].config())
    source = open_source(str(written / "small-shape.gguf"))
    shapes = [{t.name: t.shape for t in all_tensors(each)} for each in (spec, source.spec)]
    assert shapes[0] == shapes[1]
    report = json.loads((written / "small-shape" / "report.json").read_text("utf-8"))
    assert (report["synthetic"], report["parameters"]) == ("small", parameter_count(spec))


def test_random_blocks_decode_to_weights_of_unit_gain(written: Path, models: ModuleType) -> None:
    """What was random bytes is finite, and as large as weights are, in both types of block."""
    source = open_source(str(written / "small-shape.gguf"))
    for tensor in (t for t in all_tensors(source.spec) if len(t.shape) == 2):
        stored = source.read(tensor)
        W = from_pattern(stored.data, stored.dtype)
        assert 0.8 < np.std(W) * np.sqrt(tensor.shape[1]) < 1.25
    weights = (written / "small-shape" / "model.lsb").stat().st_size
    assert {t.kind for t in models.gguf_tensors(SHAPES["small"], weights)} == {
        models.F32, models.Q3_K, models.IQ3_XXS,
    }  # fmt: skip


@pytest.mark.parametrize("target", [3_030_686_232, 2_900_000_000])
def test_the_gguf_file_is_as_large_as_ours(models: ModuleType, target: int) -> None:
    shape = SHAPES["mistral-7b"]
    tensors = models.gguf_tensors(shape, target)
    one_matrix = shape.hidden * shape.intermediate // 256 * (110 - 98)
    size = sum(each.nbytes for each in tensors)
    assert target - one_matrix < size <= target
    expected = parameter_count(spec_from_config(shape.config()))
    assert sum(int(np.prod(each.dims)) for each in tensors) == expected


def test_rows_of_no_whole_blocks_are_refused(models: ModuleType) -> None:
    with pytest.raises(UsageError, match="rows of 128 weights are no whole blocks of 256"):
        models.gguf_tensors(SHAPES["tiny"], 10**6)


def test_the_bfloat16_model_has_the_shape_and_a_file_a_module(
    models: ModuleType, tmp_path: Path
) -> None:
    shape, directory = SHAPES["tiny"], tmp_path / "hf"
    models.write_bf16(shape, {"config.json": json.dumps(shape.config()).encode()}, directory)
    assert len(list(directory.glob("*.safetensors"))) == shape.layers + 3
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    expected = 2 * parameter_count(spec_from_config(shape.config()))
    assert expected < size < expected + 20_000  # headers
    names = [name for shard in models.bf16_shards(shape) for name in shard]
    index = json.loads((directory / "model.safetensors.index.json").read_text("utf-8"))
    assert list(index["weight_map"]) == names
    patterns = models._patterns(np.random.Generator(np.random.SFC64(0)), (64, 1024))
    assert 0.7 < np.std(from_pattern(patterns, "bf16")) * 32 < 1.4


USE = MemoryUse("cgroup v1", 390 * MB, 300 * MB, 80 * MB, 5, 0, 10**9)
SAID = '{"step": "opened", "seconds": 2.0}\nlibrary talk\n{"step": "first", "seconds": 9.0}\n'
TOKENS = "".join(f'{{"step": "token", "seconds": {each}}}\n' for each in (4.0, 0.5, 2.0))


def test_what_a_run_said_is_read_up_to_the_line_that_it_was_killed_in(peers: ModuleType) -> None:
    done = peers.progress(SAID + TOKENS + '{"step": "tok')
    assert done == peers.Progress(2.0, 9.0, (4.0, 0.5, 2.0))
    assert peers.progress("") == peers.Progress(None, None, ())


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        (Ended(0, SAID + TOKENS, "", USE), "finished"),
        (Ended(-9, SAID, "", USE, timed_out=True), "stopped after 60 s, after 0 tokens"),
        (Ended(-9, "", "", replace(USE, oom_kills=1)), "killed while opening: out of memory"),
        (Ended(-11, SAID[:35], "", USE), "killed by signal 11 in the prompt"),
        (Ended(1, SAID, "x\nValueError: no", USE), "failed after 0 tokens: ValueError: no"),
    ],
)
def test_an_outcome_says_how_a_run_ended_and_where(
    peers: ModuleType, ended: Ended, outcome: str
) -> None:
    assert peers.outcome_of(ended, peers.progress(ended.stdout), 60.2) == outcome


def test_a_row_has_the_figures_of_what_was_done(peers: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(bytes(3000))
    contender = peers.Contender("llama-mmap", "python", file, (file,))
    lost = Ended(1, SAID + TOKENS, f"Error: {file} is gone", USE)
    row = peers.row_of(contender, 400 * MB, lost, 20.0)
    assert (row.disk_bytes, row.tokens, row.tokens_per_second) == (3000, 3, 0.5)
    assert (row.first_token_seconds, row.inside, row.finished) == (9.0, True, False)
    assert row.outcome == "failed after 3 tokens: Error: x.gguf is gone"
    none = peers.row_of(contender, 100 * MB, Ended(-9, "", "", USE), 1.0)
    wide = replace(row, cap_bytes=None)
    line = peers.table([none]).splitlines()[-1]
    assert line.startswith(
        "| 100 MB | llama.cpp, mapped | 0.000 GB | 390 MB | 1.00 GB | - | - | NO"
    )
    assert peers.least_caps([wide, none, row]) == {"llama-mmap": 400 * MB}
    assert peers.least_caps([none]) == {}


def test_an_interpreter_without_the_packages_is_named(peers: ModuleType) -> None:
    contender = peers.Contender("airllm", sys.executable, Path("hf"), ())
    with pytest.raises(UsageError, match="cannot run AirLLM: ModuleNotFoundError"):
        peers.load_code(contender)


def test_caps_are_megabytes_or_none(peers: ModuleType) -> None:
    assert peers.caps_from("400,1000.5,all,0") == [400 * MB, 1_000_500_000, None, None]
    for wrong in ("400,", "x", "-1"):
        with pytest.raises(ArgumentTypeError):
            peers.caps_from(wrong)


def test_without_a_peer_only_ours_runs(written: Path, tmp_path: Path) -> None:
    """From a copy of the benches, so that no result of theirs is written over."""
    for name in ("memory_peers.py", "peer_models.py", "peer_child.py", "machine.py"):
        (tmp_path / name).write_bytes((BENCHES / name).read_bytes())
    flags = ["--caps", "400", "--prompt-tokens", "8", "--tokens", "4", "--threads", "1"]
    command = [sys.executable, str(tmp_path / "memory_peers.py"), "small", str(written), *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = printed.splitlines()[2].split(" | ")
    assert (row[1], row[-1]) == ("Loop Singular Bit", "finished |")
    result = json.loads((tmp_path / "results" / "memory_peers.json").read_text("utf-8"))
    assert result["limited_by"].startswith("RLIMIT_DATA")
    assert result["least_cap_bytes"] == {"ours": 400 * MB}
    assert 20e6 < result["rows"][0]["peak_bytes"] < 400e6
