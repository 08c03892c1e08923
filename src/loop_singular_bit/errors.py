"""The exception tree. Every error a user can cause or meet has a class and an exit code here.

    LoopError                  1   never raised itself
    ├── UsageError             2   a flag or argument is wrong
    ├── TargetMissedError      3   finished, but a budget was not met (the artefact is kept)
    ├── InputRefusedError      4   the input cannot be used as given
    │   ├── BudgetError            a budget that no plan can meet
    │   ├── ConfigError            config.json or GGUF metadata
    │   ├── TensorError            a weight: missing, truncated, wrong shape, NaN
    │   ├── TokenizerError         the tokenizer: missing, unreadable, of another model
    │   ├── FormatError            an artefact of ours that breaks docs/format.md
    │   ├── ContextLengthError     a prompt longer than the context (engine/generate.py)
    │   └── RequestError           an HTTP request (serve/schema.py)
    ├── ResourceError          5   disk, memory, I/O, checksum mismatch while reading
    │   ├── QueueFullError         too many requests wait (serve/scheduler.py)
    │   └── ShutdownError          the server is stopping (serve/scheduler.py)
    └── InterruptedRunError    6   stopped by the user; run the same command again

A message says what is wrong, both numbers (found and expected), and the next command.
"""

from __future__ import annotations


class LoopError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 1


class UsageError(LoopError):
    exit_code = 2


class TargetMissedError(LoopError):
    exit_code = 3


class InputRefusedError(LoopError):
    exit_code = 4


class ConfigError(InputRefusedError):
    pass


class TensorError(InputRefusedError):
    pass


class TokenizerError(InputRefusedError):
    pass


class FormatError(InputRefusedError):
    pass


class BudgetError(InputRefusedError):
    pass


class ResourceError(LoopError):
    exit_code = 5


class InterruptedRunError(LoopError):
    exit_code = 6
