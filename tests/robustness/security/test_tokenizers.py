"""Long lines without a blank, which end the process where llama.cpp's tokenizer has an ordinary stack."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.random_models import write_random_model
from support.serving_client import Server

import coe_native as coe
from coe_native.llama import deep_stack
from coe_native.llama.deep_stack import longest_run, with_stack_for

LONG = 300_000


def byte_tokens() -> list[str]:
    """The 256 tokens of single bytes, as GPT-2's vocabulary writes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [shown[byte] for byte in range(256)]


@pytest.fixture(scope="module", params=["deepseek-v3", "gpt-4o", "tekken", "falcon"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / f"{request.param}.gguf"
    tokenizer = {
        "model": "gpt2",
        "pre": request.param,
        "tokens": byte_tokens(),
        "merges": ["a a"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    write_random_model(path, "llama", extra_metadata=metadata)
    return path


@pytest.mark.parametrize("text", ["a", " ", "!", "é", "aA", "!\n", "\u3000"])
def test_long_runs_are_tokenized(model: Path, text: str) -> None:
    with coe.Model(model, n_ctx=64) as loaded:
        whole = loaded.tokenize(text * LONG)
        # As a shorter one, again and again: no token of a byte can tell the difference.
        part = loaded.tokenize(text * 100)
    assert len(whole) > 0
    assert set(whole.tolist()) == set(part.tolist())


@pytest.mark.slow
def test_a_line_without_blanks_is_profiled(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab" * (LONG // 2))
    line = [sys.executable, "-m", "coe_native", "profile", str(model), "-c", "text.txt", "-o", "out.gguf"]
    ended = subprocess.run([*line, "--ctx", "64"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert coe.RoutingProfile.load(tmp_path / "out.gguf").n_tokens >= LONG


def test_a_prompt_without_blanks_does_not_end_the_server(model: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, model=model)
    try:
        for path, name in (
            ("/extras/tokenize", "input"),
            ("/v1/completions", "prompt"),
            ("/v1/completions", "suffix"),
        ):
            code, said = server.post(path, {name: "a" * 3_900_000})
            assert code in (200, 400), said
        messages = [{"role": "user", "content": "!" * LONG}]
        assert server.post("/v1/chat/completions", {"messages": messages})[0] in (200, 400)
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})[0] == 200
    finally:
        server.kill()


@given(st.text(st.sampled_from("aZ19 \n!?é中。🙂\u0301\u3000"), max_size=30), st.integers(1, 40))
def test_the_longest_run(text: str, times: int) -> None:
    """Against a walk over the characters."""

    def classes(character: str) -> set[str]:
        kind = unicodedata.category(character)[0]
        if character.isascii() and character.isspace():
            return {"blank"}
        known = {"L": {"letter"}, "M": {"letter", "sign"}, "N": {"digit"}, "Z": {"blank"}, "C": {"blank", "sign"}}
        return known.get(kind, {"sign"})

    whole = text * times * 20
    expected = 0
    for kind in ("letter", "digit", "blank", "sign"):
        run = 0
        for character in whole:
            run = run + 1 if kind in classes(character) else 0
            expected = max(expected, run)
    found = longest_run(whole.encode())
    assert found >= expected or (found == 0 and expected < 1000)
    assert found <= len(whole)


def test_counts_are_saved_where_a_stack_overflows(model: Path, tmp_path: Path) -> None:
    """In a thread of the server, whose handlers need a stack of their own then. The deeper one is taken away."""
    plain = (
        "import coe_native.live.llama_cpp_python.app as app; "
        "app.with_stack_for = lambda text, tokenize, **_: tokenize()"
    )
    server = Server(tmp_path, model=model, setup=plain)
    try:
        server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.post("/v1/completions", {"prompt": "a" * LONG + "!" * LONG})
        server.process.wait(30)
    finally:
        server.kill()
    log = (tmp_path / "log").read_text()
    assert "segmentation fault" in log, log
    assert coe.RoutingProfile.load(tmp_path / "live.gguf").n_tokens >= 3


def test_exceptions_of_the_thread_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with_stack_for(b"a" * 5000, fail)
    assert with_stack_for(b"a" * 5000, lambda: 5) == 5
    with pytest.raises(coe.InputError, match="in a row"):
        with_stack_for(b"a" * 5_000_000, fail)

    def refuse(n_bytes: int, _: Callable[[], object]) -> None:
        raise coe.InputError(f"needs {n_bytes}")

    monkeypatch.setattr(deep_stack, "_thread_with_stack", refuse)
    with pytest.raises(coe.InputError, match="needs"):
        with_stack_for(b"a" * 5000, fail)
