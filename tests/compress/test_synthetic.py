from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.compress.compressor import artefact_size_bytes
from loop_singular_bit.compress.shapes import SHAPES
from loop_singular_bit.compress.synthetic import SyntheticOptions, write_synthetic
from loop_singular_bit.compress.synthetic_tokenizer import VOCAB_MIN, synthetic_tokenizer
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.errors import BudgetError, InputRefusedError, UsageError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import parameter_count


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("synthetic") / "small"
    write_synthetic(SyntheticOptions("small", 3.0, seed=1), directory)
    return directory


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mistral-7b", 7_241_732_096), ("llama-2-7b", 6_738_415_616), ("llama-3-8b", 8_030_261_248),
        ("qwen2.5-1.5b", 1_543_714_304), ("smollm2-135m", 134_515_008),
    ],
)  # fmt: skip
def test_shapes_have_the_parameters_of_the_real_networks(name: str, parameters: int) -> None:
    assert parameter_count(spec_from_config(SHAPES[name].config())) == parameters


def test_config_keeps_what_tells_the_families_apart() -> None:
    mistral = spec_from_config(SHAPES["mistral-7b"].config())
    assert (mistral.sliding_window, mistral.context_max, mistral.kv_heads) == (4096, 32768, 8)
    assert spec_from_config(SHAPES["llama-3-8b"].config()).rope_theta == 5e5


@pytest.mark.parametrize("shape", SHAPES)
def test_no_stream_has_padded_columns_that_would_have_to_be_zero(shape: str) -> None:
    assert SHAPES[shape].hidden % 16 == 0
    assert SHAPES[shape].intermediate % 16 == 0


def test_size_is_just_below_what_was_asked(small: Path) -> None:
    report = json.loads((small / "report.json").read_text("utf-8"))
    size = artefact_size_bytes(small)
    assert report["size_bytes"] == size
    limit = 3.0 * parameter_count(spec_from_config(SHAPES["small"].config())) / 8
    largest_step = 1536 * 512 / 8  # one plane of the largest matrix
    assert limit - largest_step < size <= limit


def test_every_part_says_that_it_is_synthetic(small: Path) -> None:
    with ContainerReader.open(small / "model.lsb") as reader:
        assert reader.meta == {"seed": 1, "synthetic": "small"}
    assert json.loads((small / "report.json").read_text("utf-8"))["synthetic"] == "small"
    assert "Synthetic: random weights in the shape of small" in (small / "README.md").read_text()


def test_logits_are_finite_and_say_something(small: Path) -> None:
    with open_model(small, threads=1) as model, model.session() as session:
        logits = [session.advance([token]) for token in (5, 300, 1000, 7, 42, 9)]
    assert np.isfinite(logits).all()
    assert 1 < np.std(logits[-1]) < 4  # TOP_GAIN is 2
    assert len({int(each.argmax()) for each in logits}) > 3


def test_text_goes_in_and_out(small: Path) -> None:
    with open_model(small, threads=1) as model:
        ids = model.text.encode_prompt("the cat — sat, 42 times")
        assert ids[0] == 1
        assert model.text.decode(ids[1:]) == "the cat — sat, 42 times"
        assert len(ids) < len("the cat — sat, 42 times")


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    written = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_synthetic(SyntheticOptions("tiny", 4.5, seed), tmp_path / name)
        written.append((tmp_path / name / "model.lsb").read_bytes())
    assert written[0] == written[1] != written[2]


def test_fewer_bits_than_a_plane_are_refused_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"--bpw 1 is too little.* bits per weight"):
        write_synthetic(SyntheticOptions("small", 1.0), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputRefusedError, match="not an empty directory"):
        write_synthetic(SyntheticOptions("tiny", 4.5), tmp_path)


@pytest.mark.parametrize(
    ("shape", "bits", "seed", "word"),
    [("gpt-5", 3.0, 0, "mistral-7b"), ("tiny", 0.5, 0, "1 to 8"), ("tiny", 3.0, -1, "--seed")],
)
def test_bad_options_say_what_is_allowed(shape: str, bits: float, seed: int, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        SyntheticOptions(shape, bits, seed)


@pytest.mark.parametrize("vocab", [VOCAB_MIN, 300, 2000])
def test_tokenizer_has_exactly_the_tokens_asked_for(vocab: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(synthetic_tokenizer(vocab))
    assert tokenizer.get_vocab_size() == vocab
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab))
    with pytest.raises(UsageError, match=str(VOCAB_MIN)):
        synthetic_tokenizer(VOCAB_MIN - 1)
