"""A tiny model and its artefact, made once for each worker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny import TEXT, write_tiny_model

from loop_singular_bit import LoopCompressor
from loop_singular_bit.compress.compressor import EvaluationOptions
from loop_singular_bit.compress.pipeline import CalibrationOptions
from loop_singular_bit.container import scratch_file

# A shell's background jobs ignore SIGINT, and programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on how fast a busy machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def folders_of_tests_are_disk() -> Iterator[None]:
    """Also where temporary files are kept in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch_file, "MOUNTS", Path("unknown"))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: llama, float32, 512 tokens of vocabulary, 256 positions."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_artefact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` compressed with four planes."""
    directory = tmp_path_factory.mktemp("tiny") / "artefact"
    LoopCompressor(
        planes=4,
        target_ram_mb=None,
        target_storage_gb=None,
        quality_threshold=None,
        calibration=CalibrationOptions(tokens=512),
        evaluation=EvaluationOptions(" ".join(TEXT) * 2, context=64, tokens=128),
        threads=1,
    ).compress_model(tiny_model, directory)
    return directory
