"""Conversations as text, by the chat template that a model carries.

A template is a program of whoever made the file, and may loop for ever or ask for all memory: it runs in a process
of its own, with little of both. They talk in lines of JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from typing import Any

from coe_native.errors import InputError
from coe_native.helper_process import python_line

SECONDS = 5
"""For one conversation; templates take milliseconds."""

_MOST_MEMORY = 1 << 29
_LONGEST_ERROR = 500


_NO_THINKING = {"enable_thinking": False, "thinking": False}
"""What templates call it: the first Qwen, Gemma, GLM and others, the second DeepSeek."""

_OPEN = re.compile(r"<(think\b[^<>]*)>\s*\Z")


def close_thinking(prompt: str) -> str:
    """A prompt at whose end a template has opened a thinking block whatever it was told, with the block closed."""
    opened = _OPEN.search(prompt)
    return prompt if opened is None else f"{prompt.rstrip()}\n</{opened[1]}>\n\n"


class ChatTemplate:
    """A template with its own texts for BOS and EOS. `close` ends its process."""

    def __init__(self, template: str, bos: str, eos: str) -> None:
        self._made_of = {"template": template, "bos_token": bos, "eos_token": eos}
        self._process: subprocess.Popen[str] | None = None
        self._given_up = ""

    def render(self, messages: list[dict[str, str]], *, reply: bool = False) -> str:
        """A conversation as text; with `reply`, up to where the answer to it begins, behind a closed thinking
        block where the template has one. Raises InputError where the template refuses it, or does not come to an
        end, and from then on."""
        if self._given_up:
            raise InputError(self._given_up)
        if self._process is None:
            self._process = _start()
            self._ask(self._made_of, 60.0)  # everything is imported first
        return str(self._ask({"messages": messages, "reply": reply}, SECONDS))

    def _ask(self, question: dict[str, Any], seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        too_late = threading.Timer(seconds, process.kill)
        too_late.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it has ended
            answer = ""
        finally:
            too_late.cancel()
        if not answer.endswith("\n"):
            self.close()
            self._given_up = f"it took more than {seconds:g} seconds or {_MOST_MEMORY >> 20} MB"
            raise InputError(self._given_up)
        said = json.loads(answer)
        if "error" in said:
            raise InputError(said["error"])
        return said["text"]

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        python_line("from coe_native.chat import serve; serve()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for us
    )


def serve() -> None:
    """What the template's process does: it answers until nobody asks any more."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            _limit()
            if formatter is None:
                formatter = Jinja2ChatFormatter(**question, add_generation_prompt=False)
                said = {"text": ""}
            else:
                formatter.add_generation_prompt = question["reply"]
                text = formatter(messages=question["messages"], **_NO_THINKING).prompt
                if question["reply"]:
                    text = close_thinking(text)
                if len(text) > (1 << 20) + 4 * len(line):
                    raise ValueError(f"it made {len(text)} characters of {len(line)}")
                said = {"text": text}
        except MemoryError:
            said = {"error": f"it took more than {_MOST_MEMORY >> 20} MB"}
        except Exception as error:  # anything may come out of somebody's program
            said = {"error": str(error)[:_LONGEST_ERROR] or type(error).__name__}
        print(json.dumps(said), flush=True)


def _limit() -> None:
    """Of this process: memory, and time for one answer, for whoever asks may have been killed meanwhile. Windows
    has no such limits."""
    try:
        import resource
    except ImportError:
        return
    import psutil

    process = psutil.Process()
    most = process.memory_info().vms + _MOST_MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
    used = process.cpu_times()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = int(used.user + used.system) + 2 * SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))
