"""The internals of llama-cpp-python on which coe_native.live depends are those of the release that was checked."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import llama_cpp
import pytest
from llama_cpp import Llama
from llama_cpp._internals import LlamaContext

import coe_native
from coe_native.live.llama_cpp_python import CHECKED_VERSION

PACKAGE = Path(coe_native.__file__).parent

REPLACED = {
    "llama_cpp.llama_cpp": ("llama_model_default_params", "llama_log_set"),
    "llama_cpp.llama_chat_format": ("Jinja2ChatFormatter", "ChatFormatterResponse"),
    "llama_cpp.llama_grammar": ("json_schema_to_gbnf",),
    "llama_cpp.server.app": (
        "_llama_proxy",
        "create_app",
        "get_event_publisher",
        "get_llama_proxy",
        "prepare_request_resources",
        "router",
    ),
}
"""Functions and objects that the server replaces or uses, by module."""


def test_internals_were_checked_against_the_installed_release() -> None:
    assert llama_cpp.__version__ == CHECKED_VERSION, (
        "check everything in coe_native/live/llama_cpp_python against this release, then change CHECKED_VERSION"
    )


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in REPLACED.items() for n in names])
def test_replaced_names_exist(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "name", ["generate", "eval", "embed", "reset", "sample", "save_state", "load_state", "n_ctx", "pooling_type"]
)
def test_watched_methods_exist(name: str) -> None:
    assert callable(getattr(Llama, name))


@pytest.mark.parametrize(
    "name", ["_ctx", "_model", "_lora_adapter", "_requires_eval", "context_params", "n_tokens"]
)
def test_attributes_of_a_llama_exist(name: str) -> None:
    assert re.search(rf"self\.{name}\b", inspect.getsource(Llama))


@pytest.mark.parametrize("name", ["decode", "close", "kv_cache_clear", "kv_cache_seq_rm", "get_state_size"])
def test_methods_of_a_context_exist(name: str) -> None:
    assert callable(getattr(LlamaContext, name))


def test_nothing_else_uses_internals() -> None:
    """Private attributes of llama-cpp-python's objects and its private modules appear in one folder only."""
    internal = re.compile(
        r"llama_cpp\._|llama_cpp\.server|\bllama\._\w|_llama\._\w|llama\.(__class__|context_params)\b|\._ctx\b"
    )
    found = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "llama_cpp_python" and internal.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
