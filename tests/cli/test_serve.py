from __future__ import annotations

import builtins
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_model import write_tokenizer

from loop_singular_bit.cli.serve import serve
from loop_singular_bit.errors import UsageError

# The command with a fake engine behind it that takes 10 ms for each token.
SCRIPT = """
import sys, time
from contextlib import contextmanager
from types import ModuleType

from fake_model import FakeModel
from loop_singular_bit.cli.serve import serve
from loop_singular_bit.engine.text import Text

@contextmanager
def open_model(directory, **options):
    model = FakeModel(Text.open(directory))
    model.before_advance = lambda session: time.sleep(0.01)
    yield model
    print("closed", options, flush=True)

runtime = ModuleType("runtime")
runtime.open_model = open_model
sys.modules["loop_singular_bit.engine.runtime"] = runtime
serve()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    write_tokenizer(tmp_path)
    server = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "--port", "0", "--threads", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        announced = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", announced)
        assert found is not None
        body = {"model": "fake", "prompt": "Once", "max_tokens": 20, "stream": True}
        client = HTTPConnection("127.0.0.1", int(found.group(1)), timeout=10)
        headers = {"Content-Type": "application/json"}
        with closing(client):
            client.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = client.getresponse()
            first = answer.readline()
            server.send_signal(number)
            rest = answer.read().decode()
        assert first.startswith(b"data: ")
        assert '"finish_reason":"length"' in rest
        assert rest.endswith("data: [DONE]\n\n")
        out, errors = server.communicate(timeout=10)
    finally:
        server.kill()
        server.communicate()
    assert server.returncode == 0
    assert errors == ""
    asked = {"ram_bytes": None, "context": None, "threads": 1, "kv_bits": "8", "unpack": False}
    assert out == f"stopped\nclosed {asked}\n"


def test_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_uvicorn(name: str, *rest: Any, **named: Any) -> Any:
        if name == "loop_singular_bit.serve.app":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    with pytest.raises(UsageError, match=r"pip install 'loop-singular-bit\[serve\]'"):
        CliRunner().invoke(serve, [str(tmp_path)], catch_exceptions=False)


def test_help_needs_no_engine() -> None:
    code = (
        "import sys; from loop_singular_bit.cli.serve import serve;"
        "from loop_singular_bit.cli.chat import chat;"
        "print([m for m in ('numpy', 'tokenizers', 'starlette', 'jinja2') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
