"""Typed reading of a config.json mapping: every bad field is a ConfigError naming it."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from loop_singular_bit.errors import ConfigError


@dataclass(frozen=True)
class ConfigFields:
    """A model configuration as read from JSON. A field that is null counts as absent, as in the
    Hugging Face configuration classes.

    values  the mapping
    inside  name of the field the mapping sits in ("" at the top); only used in messages
    """

    values: Mapping[str, object]
    inside: str = ""

    def label(self, name: str) -> str:
        return f"{self.inside}.{name}" if self.inside else name

    def bad(self, name: str, expected: str) -> ConfigError:
        """The error for a field: its name, what was found and what was expected."""
        value = self.values.get(name)
        found = "null" if value is None else reprlib.repr(value)
        if name not in self.values:
            found = "missing"
        return ConfigError(f"model config: {self.label(name)} is {found}, expected {expected}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def positive_int(self, name: str) -> int:
        """A required integer >= 1. A bool is not an integer. Raises ConfigError."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.bad(name, "a positive integer")
        return value

    def optional_positive_int(self, name: str) -> int | None:
        return self.positive_int(name) if self.has(name) else None

    def positive_float(self, name: str) -> float:
        """A required finite number > 0; an integer counts, a bool does not. Raises ConfigError."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, "a positive number")
        if not 0 < value <= sys.float_info.max:
            raise self.bad(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        if not self.has(name):
            return default
        value = self.values[name]
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        if not self.has(name):
            return default
        value = self.values[name]
        if not isinstance(value, str):
            raise self.bad(name, "a string")
        return value

    def section(self, name: str) -> ConfigFields | None:
        """A nested mapping, or None when absent. Raises ConfigError when it is something else."""
        if not self.has(name):
            return None
        value = self.values[name]
        if not isinstance(value, Mapping):
            raise self.bad(name, "an object")
        return ConfigFields(value, self.label(name))
