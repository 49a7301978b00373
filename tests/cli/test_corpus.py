"""`coe-native corpus`."""

from __future__ import annotations

import json
from pathlib import Path

from support.bad_files import write_reader
from support.command_line import (
    TWO_THREADS,
    by_line,
    check_options_refused,
    ok,
    report,
)

import coe_native as coe
from coe_native.recipes import demo


def test_corpora_are_counted_and_sampled(texts: Path, tmp_path: Path) -> None:
    texts = [texts / "python.test.txt", texts / "python.test.txt", texts / "prose.test.txt"]
    told = report("corpus", "stats", *texts, "--model", demo.MODEL)["sources"]
    assert sum(source["documents"] for source in told) == 3
    assert sum(source["duplicates"] for source in told) == 1
    with coe.Model(demo.MODEL, n_ctx=32, tokenizer_only=True) as model:
        n_tokens = [len(model.tokenize(path.read_text())) for path in texts]
    assert sum(source["tokens"] for source in told) == sum(n_tokens)
    assert "duplicates" in ok("corpus", "stats", *texts).out
    rows = [{"question": f"What is {i} and {i + 1} and {i * i}?", "category": f"c{i % 3}"} for i in range(30)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("corpus", "sample", tmp_path / "q.jsonl", "--by", "category", "--cap", 4, "-o", tmp_path / "s.jsonl")
    assert report(*line)["strata"] == {"c0": 4, "c1": 4, "c2": 4}
    first = (tmp_path / "s.jsonl").read_bytes()
    assert report(*line, "--force")["documents"] == 12
    assert (tmp_path / "s.jsonl").read_bytes() == first
    ok("profile", demo.MODEL, "-c", tmp_path / "s.jsonl", "-o", tmp_path / "p.gguf", *TWO_THREADS)


def test_a_sample_that_is_too_small_gives_the_reasons(tmp_path: Path) -> None:
    text = tmp_path / "same.jsonl"
    text.write_text('{"text": "the same words in every line of this file"}\n' * 6)
    line = ("corpus", "sample", text, "-o", tmp_path / "s.jsonl", "--size", 9, "--force")
    assert "duplicates" in ok(*line).err
    kept = ok(*line, "--keep-duplicates")
    assert "9" in kept.err
    assert "duplicates" not in kept.err
    assert "--cap" in ok(*line, "--cap", 2).err


BAD_LINES: list[tuple[str, str]] = [
    ("corpus sample python.test.txt --cap 1 -o out.txt", r"\.jsonl"),
    ("corpus stats missing.txt", r"missing\.txt"),
    ("corpus stats python.test.txt --model other.gguf", r"other\.gguf"),
    ("corpus sample python.test.txt -o out.jsonl", "--size.*--cap"),
    ("corpus sample mask.jsonl --cap 1 -o mask.jsonl --force", r"mask\.jsonl.*input"),
    ("corpus sample mask.jsonl --by subject --cap 1 -o out.jsonl", "subject"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)


def test_special_tokens_in_texts_are_named_and_parsed_on_demand(tmp_path: Path) -> None:
    rendered, plain = tmp_path / "rendered.jsonl", tmp_path / "plain.txt"
    plain.write_text("Hello")
    write_reader(tmp_path / "a.gguf")
    rendered.write_text(json.dumps({"text": "<s>Hello</s>"}) + "\n")
    line = ("corpus", "stats", rendered, plain, "--model", tmp_path / "a.gguf")
    found = ok(*line)
    assert "--parse-special" in found.err
    assert "plain.txt" not in found.err
    as_text, as_special = (report(*line, *more)["sources"][0] for more in ((), ("--parse-special",)))
    assert (as_text["with_special"], as_special["with_special"]) == (1, 0)
    assert as_special["tokens"] < as_text["tokens"]
