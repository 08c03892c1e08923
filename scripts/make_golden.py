"""Reference log-probabilities from torch and transformers, which the package itself never imports.

python scripts/make_golden.py tiny
    tests/golden/parity.npz: the tiny models of tests/golden/cases.py
python scripts/make_golden.py smollm2 HF_DIR TEXT OUT.npy
    float32 log-probabilities [1024, vocab] of the first 1025 tokens of a text
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from golden.cases import CASES, GOLDEN_FILE, case_tokens, write_case  # noqa: E402

TEXT_TOKENS = 1024


def log_probabilities(directory: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32 [N, vocab] of N ids through transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0]
    # float64: the rounding of the reference should not be part of the comparison.
    found: npt.NDArray[np.float32] = torch.log_softmax(logits.double(), -1).float().numpy()
    return found


def make_tiny() -> None:
    """Every case of tests/golden/cases.py in one compressed file."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for case in CASES:
        with TemporaryDirectory() as folder:
            directory = write_case(case, Path(folder) / "model")
            arrays[case.name] = log_probabilities(directory, case_tokens(case))
        entropy = -(np.exp(arrays[case.name]) * arrays[case.name]).sum(axis=1)
        print(
            f"{case.name}: entropy {entropy.min():.2f} to {entropy.max():.2f} nats, "
            f"mean {entropy.mean():.2f}"
        )
    np.savez_compressed(GOLDEN_FILE, **arrays)
    print(f"{GOLDEN_FILE.relative_to(ROOT)}: {GOLDEN_FILE.stat().st_size} bytes")


def make_text(directory: Path, text: Path, out: Path) -> None:
    """Log-probabilities after each of the first TEXT_TOKENS tokens of a text."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(text.read_text("utf-8"), add_special_tokens=False)["input_ids"]
    np.save(out, log_probabilities(directory, np.asarray(ids[:TEXT_TOKENS], np.int64)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tiny")
    smollm2 = commands.add_parser("smollm2")
    for name in ("hf_dir", "text", "out"):
        smollm2.add_argument(name, type=Path)
    arguments = parser.parse_args()
    if arguments.command == "tiny":
        make_tiny()
    else:
        make_text(arguments.hf_dir, arguments.text, arguments.out)


if __name__ == "__main__":
    main()
