"""The Hub, with the download replaced: no test here touches a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from loop_singular_bit.compress.hub import PATTERNS, fetch, is_hub_id
from loop_singular_bit.errors import InputRefusedError, LoopError, ResourceError


def failing(error: Exception) -> Callable[..., str]:
    def snapshot_download(*args: object, **options: object) -> str:
        raise error

    return snapshot_download


def http_error(kind: type[Exception]) -> Exception:
    """The hub's HTTP errors want the response they came from; the text is enough here."""
    error = kind.__new__(kind)
    Exception.__init__(error, "404 Client Error\nwith more lines")
    return error


@pytest.mark.parametrize("text", ["org/name", "org/na-me_1.5@main", "o/n@refs/pr/1", "0-hero/x.y"])
def test_hub_ids(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text", ["name", "/org/name", "./org", "../name", "a/b/c", "org/name@", "a b/c", "~/x", ""]
)
def test_other_texts(text: str) -> None:
    assert not is_hub_id(text)
    with pytest.raises(InputRefusedError, match="is not a hub id"):
        fetch(text)


@pytest.mark.parametrize(
    ("model", "revision"),
    [("org/name", None), ("org/name@v1.0", "v1.0"), ("o/n@refs/pr/1", "refs/pr/1")],
)
def test_asks_for_just_the_files_needed(
    monkeypatch: pytest.MonkeyPatch, model: str, revision: str | None
) -> None:
    calls = []

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((repo, revision, allow_patterns))
        return "/cache/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch(model) == Path("/cache/snapshot")
    assert calls == [(model.split("@")[0], revision, list(PATTERNS))]


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (
            http_error(RepositoryNotFoundError),
            InputRefusedError,
            "neither a local path nor a model",
        ),
        (http_error(RevisionNotFoundError), InputRefusedError, "org/name has no revision v9"),
        (LocalEntryNotFoundError("no connection\nx"), ResourceError, "(no connection); connect"),
        (
            OfflineModeIsEnabled("offline"),
            ResourceError,
            "cannot be fetched from the Hub (offline)",
        ),
        (http_error(HTTPError), ResourceError, "(404 Client Error); connect"),
        (OSError("disk full"), ResourceError, "(disk full)"),
    ],
)
def test_failures(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[LoopError], expected: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(kind) as caught:
        fetch("org/name@v9")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
