"""Models on the Hugging Face Hub: fetch just the files that HfSource reads."""

from __future__ import annotations

import re
from pathlib import Path

from loop_singular_bit.errors import InputRefusedError, ResourceError

# The three spellings of weights that HfSource knows, and its companion files; nothing else, so
# that no second copy of the weights in another format is fetched.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)


def is_hub_id(model: str) -> bool:
    """Whether a text reads "org/name" or "org/name@revision"."""
    return _HUB_ID.fullmatch(model) is not None


def fetch(model: str) -> Path:
    """The local directory of a Hub model "org/name[@revision]", downloaded if not yet cached.

    Raises InputRefusedError when there is no such model or revision or no access to it, and
    ResourceError when the Hub cannot be reached and the cache does not hold the model.
    """
    match = _HUB_ID.fullmatch(model)
    if match is None:
        raise InputRefusedError(
            f"{model!r} is not a hub id, expected org/name or org/name@revision"
        )
    # Slow to import and not needed for models on this machine.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,  # of the HTTP client, which differs between versions of the hub package
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, revision = match["repo"], match["revision"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(PATTERNS)))
    except RevisionNotFoundError as error:
        raise InputRefusedError(f"{repo} has no revision {revision} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise InputRefusedError(
            f"{repo} is neither a local path nor a model on the Hub that you can read; for a "
            "private or gated one run `hf auth login`"
        ) from error
    except (OSError, HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ResourceError(
            f"{repo} is no local path and cannot be fetched from the Hub ({reason}); connect, or "
            "give the directory of a downloaded model"
        ) from error
