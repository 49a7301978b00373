"""`coe-native profile`."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from support.bad_files import BAD_TEXTS, write_reader
from support.command_line import (
    RUN,
    TWO_THREADS,
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    one_family,
    one_line,
    refuse,
    report,
    run,
)

import coe_native as coe
from coe_native.recipes import demo


def test_profile_counts_every_choice_of_every_token(made: Made, documents: list[list[int]]) -> None:
    n_tokens = sum(map(len, documents))
    profile = coe.RoutingProfile.load(made.profile)
    expected = {"tokens": n_tokens, "documents": len(documents), "moe_layers": 3, "experts": 16, "top_k": 4}
    assert expected.items() <= made.profile_report.items()
    assert profile.n_tokens == n_tokens
    assert (profile.histograms.sum(axis=(1, 2)) == n_tokens * 4).all()
    assert profile.fingerprint == made.profile_report["fingerprint"]
    again = coe.profile(made.files["Q4_K_M"], documents, n_ctx=64, n_batch=64, n_threads=1)
    assert (profile.histograms == again.histograms).all()


@one_family
def test_profile_counts_expert_outputs_on_request(made: Made, tmp_path: Path) -> None:
    with_outputs, without = coe.RoutingProfile.load(made.profile), tmp_path / "without.gguf"
    shown = report("profile", made.files["Q4_K_M"], "-c", made.corpus, "--stats", "routing", "-o", without, *RUN)
    assert (made.profile_report["stats"], shown["stats"]) == ("contribution", "routing")
    routing = coe.RoutingProfile.load(without)
    assert routing.outputs is None
    assert (routing.histograms == with_outputs.histograms).all()
    assert with_outputs.outputs is not None
    assert ((with_outputs.outputs.norm_sum > 0) == (with_outputs.counts > 0)).all()
    done = run("merge", made.profile, without, "-o", tmp_path / "both.gguf")
    assert "without.gguf" in done.err
    assert "--stats routing" in done.err
    both = report("merge", made.profile, without, "--stats", "routing", "-o", tmp_path / "both.gguf")
    assert both["tokens"] == 2 * routing.n_tokens
    assert coe.RoutingProfile.load(tmp_path / "both.gguf").outputs is None
    for method in ("contribution", "reap", "ean"):
        mask = report("mask", made.profile, "--keep", 8, "--method", method, "-o", tmp_path / f"{method}.json")
        assert mask["digest"] == coe.build_mask(with_outputs, 8, method=method).digest
        done = run("mask", without, "--keep", 8, "--method", method, "-o", tmp_path / "no.json")
        assert done.status == 2
        assert re.search(rf"without\.gguf.*{method}", done.err)


@one_family
def test_profile_prints_its_result_on_stderr(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "profile.gguf"
    done = ok("profile", made.files["Q8_0"], "-c", made.corpus, "-o", out, *RUN)
    assert not done.out
    assert done.err.startswith(f"{out}: {made.profile_report['tokens']} tokens")
    assert list(tmp_path.iterdir()) == [out]


@one_family
def test_a_corpus_has_the_same_profile_in_every_format(made: Made, tmp_path: Path) -> None:
    """Token ids as rows of an array, as records, and both in one directory that is read twice as much."""
    tokens = np.random.default_rng(1).integers(0, 256, (3, 32), dtype=np.int32)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    np.save(corpus / "tokens.npy", tokens)
    lines = "\n".join(json.dumps({"tokens": row}) for row in tokens.tolist())
    (corpus / "tokens.jsonl").write_text(lines)
    profiles = []
    for path in (corpus / "tokens.npy", corpus / "tokens.jsonl", corpus):
        ok("profile", made.files["F32"], "-c", path, "-o", tmp_path / "out.gguf", "--force", *RUN)
        profiles.append(coe.RoutingProfile.load(tmp_path / "out.gguf"))
    array, records, directory = profiles
    assert (array.histograms == records.histograms).all()
    assert array.corpora[0].sha256 == records.corpora[0].sha256
    assert (directory.histograms == 2 * array.histograms).all()
    assert directory.corpora[0].documents == 6


@one_family
@pytest.mark.parametrize("batch", [1, 15])
def test_a_batch_may_be_smaller_than_a_window(made: Made, tmp_path: Path, batch: int) -> None:
    """And smaller than the number of windows that could share it."""
    arguments = ("-c", made.corpus, "-o", tmp_path / "out.gguf", *RUN, "--batch", batch)
    assert report("profile", made.files["Q8_0"], *arguments)["tokens"] == made.profile_report["tokens"]


@one_family
def test_bad_documents_stop_a_run_or_are_skipped(made: Made, tmp_path: Path) -> None:
    """Of each kind that can be wrong: the others count as if it was not there."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for directory in (good, bad):
        directory.mkdir()
        (directory / "a.jsonl").write_text('{"tokens": [1, 2, 3]}\n{"tokens": [4, 5]}\n')
        np.save(directory / "c.npy", np.arange(30, dtype=np.int32).reshape(3, 10))
    with (bad / "a.jsonl").open("a") as file:
        file.write('{"tokens": [1, 256]}\n{"tokens": "text"}\nnonsense\n[1]\n{"tokens": [1.5]}\n')
    (bad / "b.npy").write_bytes(b"\x93NUMPY rubbish")
    np.save(bad / "d.npy", np.zeros((2, 2, 2), np.int32))
    (bad / "e.parquet").write_bytes(b"PAR1")
    model = made.files["F32"]
    expected, out = tmp_path / "expected.gguf", tmp_path / "out.gguf"
    ok("profile", model, "-c", good, "-o", expected, *RUN)
    stopped = run("profile", model, "-c", bad, "-o", out, *RUN)
    assert stopped.status == 2
    assert not out.exists()
    done = ok("profile", model, "-c", bad, "-o", out, "--skip-bad", "--json", *RUN)
    assert (done.json["left_out"], done.json["documents"], done.json["tokens"]) == (8, 5, 35)
    for place in (*(f"a.jsonl:{line}" for line in range(3, 8)), "b.npy", "d.npy", "e.parquet"):
        assert str(bad / place) in done.err
    ours, theirs = coe.RoutingProfile.load(out), coe.RoutingProfile.load(expected)
    assert (ours.histograms == theirs.histograms).all()
    assert (ours.weight_sum == theirs.weight_sum).all()
    nothing = run("profile", model, "-c", bad / "b.npy", "-o", out, "--skip-bad", "--force", *RUN)
    assert "b.npy: " in nothing.err
    assert nothing.status == 2


TEXTS: list[tuple[str, str, str, str]] = [
    ("a.txt", "so many bytes", "", "so many bytes"),
    ("a.md", "größer\n", "", "größer\n"),
    ("-", "from a pipe", "", "from a pipe"),
    ("a.jsonl", '{"text": "one"}', "", "one"),
    ("a.jsonl", '{"prompt": "one", "answer": " and two"}', "", "one and two"),
    ("a.jsonl", '{"text": "one", "body": "another"}', "--field body", "another"),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "hello"}]}', "", "userhello"),
]


@pytest.mark.parametrize(("name", "content", "options", "text"), TEXTS)
def test_profile_reads_text(files: Path, tmp_path: Path, name: str, content: str, options: str, text: str) -> None:
    if name != "-":
        (tmp_path / name).write_text(content, encoding="utf-8")
    arguments = ("-c", name, "-o", "out.gguf", *RUN, *shlex.split(options))
    shown = report("profile", files / "reader.gguf", *arguments, cwd=tmp_path, stdin=content.encode())
    assert shown["tokens"] == 1 + len(text.encode())


@pytest.mark.slow
def test_a_profile_can_end_when_its_mask_is_stable(texts: Path, tmp_path: Path) -> None:
    short = ok(
        "profile",
        demo.MODEL,
        "-c",
        texts / "prose.profile.txt",
        "--until-stable",
        "0.9",
        "-o",
        tmp_path / "s.gguf",
    )
    assert "short" in short.err
    texts = [
        str(document.content)[:3000] for kind in demo.KINDS for document in demo.corpus(kind, "profile").documents
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::6]))
    line = ("profile", demo.MODEL, "-c", tmp_path / "texts.jsonl", *TWO_THREADS)
    told = report(*line, "--until-stable", "0.01", "-o", tmp_path / "a.gguf")
    assert told["stable"]
    assert told["tokens"] == told["agreement"][-1]["tokens"] < 16_000
    assert "0.01" in ok(*line, "--until-stable", "0.01", "-o", tmp_path / "a2.gguf").err
    done = ok(*line, "--until-stable", "1", "--keep", "30", "-o", tmp_path / "b.gguf")
    assert "agreement" in done.err
    whole = report(*line, "-o", tmp_path / "c.gguf")
    assert whole["stable"] is None
    assert "stable" in done.err


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ 'a' * 100000000 }}",
        "{{ 'ab cd ' * 10000000 }}",
        "{{ raise_exception('x' * 60000000) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_hostile_chat_templates_are_refused(tmp_path: Path, files: Path, template: str) -> None:
    """It is a program of whoever made the file."""
    write_reader(tmp_path / "hostile.gguf", template)
    (tmp_path / "json.py").write_text("raise SystemExit('was imported')")  # nor does what lies about
    started = time.monotonic()
    arguments = ("hostile.gguf", "-c", files / "chat.jsonl", "-o", "out.gguf", *RUN)
    done = refuse(tmp_path, "profile", *arguments)
    assert time.monotonic() - started < 10
    assert re.search(r"hostile\.gguf.*template", one_line(done))
    assert done.status == 2


def test_an_endless_template_is_tried_once(tmp_path: Path) -> None:
    """Or ten thousand conversations would be waited for, one after the other, to be left out."""
    write_reader(
        tmp_path / "hostile.gguf", "{% for i in range(99999) %}{% for j in range(99999) %}" + 2 * "{% endfor %}"
    )
    chat = '{"messages": [{"role": "user", "content": "hello"}]}\n'
    (tmp_path / "many.jsonl").write_text('{"text": "good"}\n' + 20 * chat)
    started = time.monotonic()
    shown = report("profile", "hostile.gguf", "-c", "many.jsonl", "-o", "p.gguf", "--skip-bad", *RUN, cwd=tmp_path)
    assert time.monotonic() - started < 10
    assert (shown["documents"], shown["tokens"]) == (1, 5)


def test_bytes_from_a_pipe_must_be_utf_8(files: Path) -> None:
    done = refuse(files, *shlex.split("profile reader.gguf -o out.gguf -c -"), stdin="déjà".encode("latin-1"))
    assert "UTF-8" in one_line(done)
    assert done.status == 2


PROFILE = "profile parent.gguf -o out.gguf --threads 1 -c"
ARRAYS = ("floats", "pickled", "cut", "header", "shape", "zip", "rows", "claim")
BAD_INPUT: list[tuple[str, str]] = [
    ("profile missing.gguf -c tokens.npy -o out.gguf", r"missing\.gguf"),
    ("profile cut-data.gguf -c tokens.npy -o out.gguf", r"cut-data\.gguf.*truncated"),
    ("profile garbled.gguf -c tokens.npy -o out.gguf", r"garbled\.gguf.*'\?\?\[2J'"),
    ("profile typed.gguf -c tokens.npy -o out.gguf", r"typed\.gguf.*general\.name"),
    *((f"{PROFILE} {name}", pattern) for name, (_, pattern) in BAD_TEXTS.items()),
    *((f"{PROFILE} {name}.npy", rf"{name}\.npy") for name in ARRAYS),
    (f"{PROFILE} missing.txt", r"missing\.txt"),
    (f"{PROFILE} folder", "folder.*text"),
    (f"{PROFILE} latin1.txt", r"latin1\.txt.*UTF-8"),
    (f"{PROFILE} words.txt", r"parent\.gguf.*tokenizer"),
    (f"{PROFILE} columnless.jsonl --field head", r"columnless\.jsonl:1\b.*head"),
    (f"{PROFILE} chat.jsonl", r"parent\.gguf.*template"),
    (f"{PROFILE} -", "-: |standard input"),
    (f"{PROFILE} tokens.npy --ctx 2000000000", r"parent\.gguf.*--ctx \d+"),
    ("profile template.gguf -c chat.jsonl -o out.gguf", r"template\.gguf.*chat template"),
    ("profile reader.gguf -c surrogate.jsonl -o out.gguf", r"surrogate\.jsonl:2\b"),
    ("profile parent.gguf -c tokens1.npy -o tokens1.npy --force", r"tokens1\.npy.*input"),
    ("profile parent.gguf -c corpus -o corpus/tokens.npy --force", r"corpus/tokens\.npy.*input"),
    ("profile parent-00001-of-00002.gguf -c tokens.npy -o parent-00002-of-00002.gguf --force", "00002.*input"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("profile parent.gguf -o out.gguf", "--corpus"),
    ("profile parent.gguf -c tokens.npy", "--output"),
    ("profile parent.gguf -c tokens.npy -o out.gguf --stats everything", "routing.*contribution"),
    (f"{PROFILE} tokens.npy --ctx -1", "ctx|context"),
    (f"{PROFILE} tokens.npy --ctx 99999999999", "ctx|context"),
    (f"{PROFILE} tokens.npy --batch -1", "batch"),
    (f"{PROFILE} tokens.npy --threads -1", "thread"),
    (f"{PROFILE} tokens.npy --threads 99999999999", "thread"),
    (f"{PROFILE} tokens.npy --n-cpu-moe -2", "n-cpu-moe"),
    (f"{PROFILE} tokens.npy --device NONE", "NONE"),
    *((f"{PROFILE} tokens.npy --shard {shard}", "2/8") for shard in ("2", "a/b", "-1/2", "1/2/3")),
    *((f"{PROFILE} tokens.npy --shard {shard}", shard) for shard in ("0/2", "3/2", "1/0", "1/999999")),
    (f"{PROFILE} tokens.npy --rpc localhost", "localhost"),
    (f"{PROFILE} tokens.npy --until-stable 0.9 --method reap --stats routing", "reap.*--stats"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)


BAD_LINES: list[tuple[str, str]] = [
    ("profile DEMO -c python.test.txt --keep 4 -o out.gguf", "--keep.*--until-stable"),
    ("profile DEMO -c python.test.txt --until-stable 2 -o out.gguf", "until-stable"),
    ("profile DEMO -c python.test.txt --until-stable 0.9 --keep 2 -o out.gguf", r"keep.*\b4\b"),
    ("profile DEMO -c python.test.txt --until-stable 0.9 --shard 1/2 -o out.gguf", "shard"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)


def test_the_columns_that_were_read_are_recorded(texts: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"instruction": "Add.", "output": "x = 1 + 2", "id": 7}) + "\n")
    report("profile", demo.MODEL, "-c", lines, "-c", texts / "python.profile.txt", "-o", tmp_path / "p.gguf", *RUN)
    profile = coe.RoutingProfile.load(tmp_path / "p.gguf")
    assert [corpus.columns for corpus in profile.corpora] == [("instruction", "output"), ()]
