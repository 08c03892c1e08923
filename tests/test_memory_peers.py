"""The models that benches/memory_peers.py writes and the rows it makes of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.codec.numbers import from_pattern
from loop_singular_bit.compress.shapes import SHAPES
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import all_tensors, parameter_count

BENCH = Path(__file__).parent.parent / "benches" / "memory_peers.py"

pytestmark = pytest.mark.skipif(not BENCH.is_file(), reason="only in a checkout")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("peers")
    command = [sys.executable, str(BENCH), "small", str(directory), "--only-write"]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def test_both_models_have_the_shape(written: Path) -> None:
    spec = spec_from_config(SHAPES["small"].config())
    source = open_source(str(written / "small.gguf"))
    shapes = [{t.name: t.shape for t in all_tensors(each)} for each in (spec, source.spec)]
    assert shapes[0] == shapes[1]
    report = json.loads((written / "small-lsb" / "report.json").read_text("utf-8"))
    assert (report["synthetic"], report["parameters"]) == ("small", parameter_count(spec))


def test_random_blocks_decode_to_weights_of_unit_gain(written: Path) -> None:
    """What was random bytes is finite, and as large as weights are."""
    source = open_source(str(written / "small.gguf"))
    matrices = [t for t in all_tensors(source.spec) if len(t.shape) == 2]
    for tensor in (matrices[0], matrices[7], matrices[-1]):
        stored = source.read(tensor)
        W = from_pattern(stored.data, stored.dtype)
        assert 0.8 < np.std(W) * np.sqrt(tensor.shape[1]) < 1.25


def test_the_file_has_the_bits_of_its_blocks(written: Path) -> None:
    spec = spec_from_config(SHAPES["small"].config())
    head = spec.vocab * spec.hidden
    blocks = (parameter_count(spec) - head) / 256 * 110 + head / 256 * 210
    assert blocks < (written / "small.gguf").stat().st_size < 1.03 * blocks


def test_without_a_peer_only_ours_runs(written: Path, tmp_path: Path) -> None:
    """From a copy of the benches, so that no result of theirs is written over."""
    for name in ("memory_peers.py", "machine.py"):
        (tmp_path / name).write_bytes(BENCH.with_name(name).read_bytes())
    flags = ["--context", "64", "--prompt", "8", "--generate", "4", "--threads", "1"]
    command = [sys.executable, str(tmp_path / "memory_peers.py"), "small", str(written), *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = printed.splitlines()[2].split(" | ")
    assert (row[0], row[2], row[-1]) == ("| ours", "finished", "yes |")
    result = json.loads((tmp_path / "results" / "memory_peers.json").read_text("utf-8"))
    assert result["limited_by"].startswith("RLIMIT_DATA")
    assert 20e6 < result["rows"][0]["peak_bytes"] < 400e6
