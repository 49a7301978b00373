"""Files that tests of several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bad_files import write_files
from support.command_line import RUN, TWO_THREADS, Made, ok, report
from support.problems import ADD, as_lines
from support.profiles import make_profile

from coe_native.recipes import demo


@pytest.fixture(scope="session", params=["qwen3moe", "gemma4"])
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_file: Callable[[str, str], Path],
    documents: list[list[int]],
) -> Made:
    """Make a profile and a mask by commands."""
    directory = tmp_path_factory.mktemp("made")
    files = {name: model_file(request.param, name) for name in ("F32", "Q8_0", "Q4_K_M")}
    corpus, profile, mask = (directory / name for name in ("corpus.jsonl", "profile.gguf", "mask.json"))
    corpus.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in documents))
    profiled = report("profile", files["Q4_K_M"], "-c", corpus, "--stats", "contribution", "-o", profile, *RUN)
    masked = report("mask", profile, "--keep", 8, "--method", "utility", "--no-structural", "-o", mask)
    return Made(files, corpus, profile, mask, profiled, masked)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of good and bad files. Tests must leave it as it is."""
    directory = tmp_path_factory.mktemp("files")
    write_files(directory)
    return directory


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of short texts of two kinds, and of profiles of them by the demo's model."""
    directory = tmp_path_factory.mktemp("texts")
    for kind in ("python", "prose"):
        for part in ("profile", "test"):
            documents = demo.corpus(kind, part).documents[:2]
            text = "\n".join(str(document.content)[:6000] for document in documents)
            (directory / f"{kind}.{part}.txt").write_text(text)
        profile = directory / f"{kind}.gguf"
        ok("profile", demo.MODEL, "-c", directory / f"{kind}.profile.txt", "-o", profile, *TWO_THREADS)
    ok("mask", directory / "python.gguf", "--keep", 16, "-o", directory / "mask.json")
    make_profile(1).save(directory / "other.gguf")
    (directory / "mask.jsonl").write_text('{"text": "one", "topic": "a"}\n')
    (directory / "p.jsonl").write_text(as_lines([ADD]))
    return directory
