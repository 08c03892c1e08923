from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import loop_singular_bit

ROOT = Path(__file__).parent.parent
HEAVY = ("numpy", "tokenizers", "click", "rich", "jinja2", "gguf", "huggingface_hub", "starlette",
         "uvicorn", "safetensors")  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a fresh Python has imported after `code`."""
    report = f"import sys; print('loaded:', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


def test_the_names_that_are_public() -> None:
    assert loop_singular_bit.__all__ == [
        "CompressionResult", "LoopCompressor", "LoopError", "__version__", "open_model",
    ]  # fmt: skip
    for name in loop_singular_bit.__all__:
        assert getattr(loop_singular_bit, name) is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compress_model'"):
        loop_singular_bit.compress_model  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded_by("import loop_singular_bit, loop_singular_bit.errors") == set()


@pytest.mark.parametrize("flags", ['"--help"', '"--version"', '"compress", "--help"'])
def test_help_imports_click_alone(flags: str) -> None:
    code = f"""
import sys
from loop_singular_bit.cli import main
sys.argv = ["lsb", {flags}]
try:
    main()
except SystemExit:
    pass
"""
    assert loaded_by(code) == {"click"}


def test_running_a_model_does_not_import_what_compresses() -> None:
    code = "from loop_singular_bit import open_model"
    assert loaded_by(code).isdisjoint({"gguf", "huggingface_hub", "starlette", "rich", "click"})


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert loop_singular_bit.__version__ == project["version"] == version("loop-singular-bit")


def test_the_changelog_knows_the_version_or_has_not_released_it() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert headings
    assert not released or released[0] == loop_singular_bit.__version__
