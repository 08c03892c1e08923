from __future__ import annotations

import re
from importlib import import_module
from pkgutil import walk_packages

import loop_singular_bit
from loop_singular_bit import errors
from loop_singular_bit.errors import LoopError

# "│   ├── ConfigError            config.json ..." with the exit code where the class sets one.
_LINE = re.compile(r"^ {4}(?P<tree>[│├└─ ]*)(?P<name>\w+Error) +(?P<code>\d )?", re.MULTILINE)


def every_class() -> set[type[LoopError]]:
    """LoopError and all that derive from it, in every module of the package."""
    for module in walk_packages(loop_singular_bit.__path__, "loop_singular_bit."):
        if not module.name.endswith(("__main__", "._native")):
            import_module(module.name)
    found, more = {LoopError}, [LoopError]
    while more:
        children = more.pop().__subclasses__()
        found.update(children)
        more.extend(children)
    return {kind for kind in found if kind.__module__.startswith("loop_singular_bit")}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    parents: list[str] = []
    drawn: dict[str, tuple[str, int | None]] = {}
    for line in _LINE.finditer(errors.__doc__ or ""):
        depth = len(line["tree"]) // 4
        del parents[depth:]
        drawn[line["name"]] = (parents[-1] if parents else "Exception",
                               int(line["code"]) if line["code"] else None)  # fmt: skip
        parents.append(line["name"])
    real = {kind.__name__: kind for kind in every_class()}
    assert drawn.keys() == real.keys()
    for name, (parent, code) in drawn.items():
        assert real[name].__base__.__name__ == parent, name
        inherited = real[name].exit_code
        assert inherited == (code if code is not None else real[parent].exit_code), name


def test_exit_codes_are_those_of_the_help() -> None:
    assert {kind.exit_code for kind in every_class()} == {1, 2, 3, 4, 5, 6}
