"""The evaluation text when none is given: Python's own language reference.

It comes with every Python, needs no download and no copy here, is English with code in it, and is
never used for calibration (which samples text from the model, or takes the user's).
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache
def default_text() -> str:
    """All topics of `help()`, in alphabetical order: about half a million characters."""
    from pydoc_data.topics import topics  # type: ignore[import-untyped,unused-ignore]

    return "\n\n".join(topics[name] for name in sorted(topics))
