"""A running `coe-native serve` for tests, and clients for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from coe_native.recipes import demo

DEMO = demo.MODEL

GREEDY: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.1}
"""As the server samples, whose penalty is another than a Llama's, when it is asked for a temperature of 0."""

SECRET = "xylophone_quartet"
"""In prompts, and nowhere else."""


def line(*options: str, model: Path = DEMO, setup: str = "") -> list[str]:
    """The command that serves a model, on a free port if no other is given. `setup`: code that runs before."""
    code = f"{setup}\nfrom coe_native.__main__ import main; main()"
    return [sys.executable, "-c", code, "serve", str(model), "-o", "live.gguf", "--port", "0", *options]


def refused_with(directory: Path, *options: str) -> tuple[int, str]:
    """The status and the one line of a server that must not begin."""
    run = subprocess.run(line(*options), cwd=directory, capture_output=True, text=True, check=False, timeout=300)
    (why,) = run.stderr.splitlines()
    return run.returncode, why


class Server:
    """A server, and a client. Its time limits are short where `setup` sets them so."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        key: str = "",
        json_output: bool = False,
        model: Path = DEMO,
        setup: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.json_output = json_output
        keyed = ["--api-key", key] if key else []
        self.log = directory / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                line("--ctx", "512", "--threads", "2", *keyed, *options, model=model, setup=setup),
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | (environment or {}),
            )
        self.key = key
        self.url = self._wait_for_url()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0, timeout=300)

    def _wait_for_url(self) -> str:
        for _ in range(3000):
            if found := re.search(r"(http://\S+)/v1|Unix socket (\S+),", self.log.read_text()):
                return found[1] or "http://socket"
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def routing(self, path: str = "", data: bytes | None = None, key: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        request = urllib.request.Request(f"{self.url}/routing{path}", data, headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def refused(self, path: str, data: bytes | None, key: str | None = None) -> tuple[int, str]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.routing(path, data, key)
        with caught.value as error:
            return error.code, json.load(error)["error"]["message"]

    def post(self, path: str, body: object, timeout: float = 60.0) -> tuple[int, Any]:
        """The status and the answer; `body` may also be bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                said = answer.read()
                return answer.status, json.loads(said) if said.startswith(b"{") else said.decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.client.close()

    def complete(self, prompt: str, n_tokens: int = 12, **options: Any) -> str:
        answer = self.client.completions.create(
            model="demo", prompt=prompt, max_tokens=n_tokens, **{"temperature": 0.0, **options}
        )
        return str(answer.choices[0].text)

    def stream(self, prompt: str, n_tokens: int = 12) -> str:
        chunks = self.client.completions.create(
            model="demo", prompt=prompt, max_tokens=n_tokens, temperature=0.0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    def end(self, number: signal.Signals = signal.SIGINT) -> str:
        """Its last line on standard error, or what it has said on standard output."""
        self.process.send_signal(number)
        stdout, _ = self.process.communicate(timeout=300)
        self.client.close()
        log = self.log.read_text()
        assert self.process.returncode == 0, log
        assert "Traceback" not in log
        assert SECRET not in log
        if self.json_output:
            return stdout
        assert stdout == ""
        return log.splitlines()[-1]
