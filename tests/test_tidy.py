"""Rules of the house that a machine can hold. They only ever get tighter."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "loop_singular_bit"
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
# The tokenizers library raises Exception itself, and nothing narrower.
BROAD_EXCEPT = {"engine/text.py": 1}
ENTRY_POINTS = {"__main__.py"}
ORACLES = {"codec/reference.py"}  # imported by tests
# A path inside the image is not one of the machine that it was written on.
CONTAINER_PATHS = {("Dockerfile", "/ho" + "me/")}
TEXT_SUFFIXES = {
    ".py", ".pyi", ".md", ".toml", ".txt", ".json", ".cpp", ".h", ".inl", ".yml", ".yaml", ".cfg",
    ".html", ".jinja", "",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="only in a checkout")


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def repository_texts() -> dict[str, str]:
    """Tracked text files by path; without git, what a source archive holds is not known."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for path in paths
        if path.suffix in TEXT_SUFFIXES and path.is_file()
    }


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}:{node.name}": length
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_files_are_short() -> None:
    lengths = {name_of(p): len(p.read_text("utf-8").splitlines()) for p in modules()}
    assert {name: n for name, n in lengths.items() if n >= FILE_LINES_MAX} == {}


def test_only_the_command_prints() -> None:
    printing = [
        name_of(path)
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not name_of(path).startswith("cli/")
    ]
    assert printing == []


def test_no_except_hides_what_it_does_not_know() -> None:
    broad: dict[str, int] = {}
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            assert "BaseException" not in caught, f"{name_of(path)}:{node.lineno}"
            if re.search(r"\bException\b", caught):
                broad[name_of(path)] = broad.get(name_of(path), 0) + 1
    assert broad == BROAD_EXCEPT


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names below the package that a module imports, or names in text (lazy imports)."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_module_is_imported() -> None:
    from loop_singular_bit.cli import _COMMANDS, _MODULES

    used = {name for path in modules() for name in imported_names(path)}
    used |= {f"loop_singular_bit.cli.{_MODULES.get(name, name)}" for name in _COMMANDS}
    unused = [
        name_of(path)
        for path in modules()
        if path.name != "__init__.py"
        and name_of(path) not in ENTRY_POINTS | ORACLES
        and "loop_singular_bit." + name_of(path)[:-3].replace("/", ".") not in used
    ]
    assert unused == []


def test_every_oracle_is_asked() -> None:
    tests = [tree_of(path) for path in sorted((ROOT / "tests").rglob("*.py"))]
    used = {
        name
        for tree in tests
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    }
    for oracle in ORACLES:
        assert "loop_singular_bit." + oracle[:-3].replace("/", ".") in used


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
    assert [name for name, text in repository_texts().items() if marks.search(text)] == []


def test_no_path_of_one_machine() -> None:
    places = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/", "/tm" + "p/pytest")
    found = {
        (name, place)
        for name, text in repository_texts().items()
        for place in places
        if place in text
    }
    assert found - CONTAINER_PATHS == set()


def test_every_result_that_a_document_names_is_there() -> None:
    named = {
        (name, match)
        for name, text in repository_texts().items()
        if name.endswith(".md")
        for match in re.findall(r"benches/results/[\w./-]+\.json", text)
    }
    missing = [(name, path) for name, path in sorted(named) if not (ROOT / path).is_file()]
    assert missing == []


def test_test_files_have_unique_names() -> None:
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
