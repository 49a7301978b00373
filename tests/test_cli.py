"""The command line as a user has it: whole processes, judged by exit status, stdout, stderr and what they
leave on the disk. What the numbers should be is taken from the library or from how the input was made."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import itertools
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from random_models import split_model, write_random_model

import coe_native as coe
from coe_native.cli import COMMANDS

_BESIDE = Path(sys.executable).with_name("coe-native")
COMMAND = str(_BESIDE) if _BESIDE.exists() else shutil.which("coe-native") or "coe-native"

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in {"FORCE_COLOR", "TTY_COMPATIBLE"}},
    "GGML_NO_BACKTRACE": "1",  # a crash must not wait for a debugger
}
RUN = ("--threads", "1", "--ctx", "64", "--batch", "64")
"""One thread, and batches of one window."""

SMALL: dict[str, Any] = {"n_layers": 2, "n_experts": 8, "top_k": 2, "n_embd": 64, "n_ff_expert": 32}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
"""A vocabulary by the byte, so that a text has as many tokens as bytes, and one for BOS."""


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object, cwd: Path | None = None, stdin: bytes = b"", **options: Any) -> Done:
    """Runs ``coe-native`` where nothing is a terminal: then it must not draw bars nor use colours, and
    whatever happens it must not show a traceback."""
    line = [COMMAND, *map(str, arguments)]
    process = subprocess.run(
        line, cwd=cwd, input=stdin, env=ENVIRONMENT, capture_output=True, timeout=300, check=False, **options
    )
    done = Done(process.returncode, process.stdout.decode(), process.stderr.decode())
    for text in (done.out, done.err):
        assert "Traceback" not in text, text
        assert not re.search(r"[\r\x1b━]", text), text
    return done


def ok(*arguments: object, **options: Any) -> Done:
    done = run(*arguments, **options)
    assert done.status == 0, done.err
    return done


def report(*arguments: object, **options: Any) -> Any:
    """The object that a command prints with ``--json``, and nothing else on stdout."""
    return ok(*arguments, "--json", **options).json


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


@dataclass(frozen=True)
class Made:
    """A family's files in three quantisations; a profile of the smallest and its mask, made by commands."""

    files: dict[str, Path]
    corpus: Path
    profile: Path
    mask: Path
    profile_report: dict[str, Any]
    mask_report: dict[str, Any]


@pytest.fixture(scope="module", params=["qwen3moe", "gemma4"])
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_file: Callable[[str, str], Path],
    documents: list[list[int]],
) -> Made:
    directory = tmp_path_factory.mktemp("made")
    files = {name: model_file(request.param, name) for name in ("F32", "Q8_0", "Q4_K_M")}
    corpus, profile, mask = (directory / name for name in ("corpus.jsonl", "profile.gguf", "mask.json"))
    corpus.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in documents))
    profiled = report("profile", files["Q4_K_M"], "-c", corpus, "--stats", "contribution", "-o", profile, *RUN)
    masked = report("mask", profile, "--keep", 8, "--no-structural", "-o", mask)
    return Made(files, corpus, profile, mask, profiled, masked)


one_family = pytest.mark.parametrize("made", ["qwen3moe"], indirect=True)
"""For what does not depend on the architecture."""


# --- What each command is for


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    done = ok(command, "--help")
    assert f"coe-native {command}" in done.out
    assert not done.err


def test_help_is_quick() -> None:
    """Imports are what takes time; a stopwatch would fail on a busy machine."""
    process = subprocess.run(
        [COMMAND, "--help"],
        env={**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"llama_cpp", "numpy", "gguf", "rich.console", "coe_native._core"}
    assert set(re.findall(r"^  (\w+)  ", process.stdout, re.MULTILINE)) >= set(COMMANDS)
    assert coe.__version__ in ok("--version").out


@one_family
def test_inspect_tells_what_the_file_holds(made: Made) -> None:
    reports = {name: report("inspect", path, "--ctx", 1024) for name, path in made.files.items()}
    for name, path in made.files.items():
        shown = reports[name]
        assert shown["bytes"] == path.stat().st_size
        assert (shown["experts"], shown["top_k"], shown["moe_layers"]) == (16, 4, [0, 1, 2])
        tensors = GGUFReader(path).tensors
        expected = sum(t.n_bytes for t in tensors if re.search(r"_exps\.|ffn_gate_inp\.weight", t.name))
        assert shown["expert_bytes"] == sum(kind["bytes"] for kind in shown["expert_tensors"]) == expected
    assert len({shown["fingerprint"] for shown in reports.values()}) == 1, "of one model, however quantised"
    layers, heads, size, keys_and_values, f16 = 3, 2, 64, 2, 2
    assert shown["memory"]["context"] == 1024 * layers * heads * size * keys_and_values * f16
    assert shown["memory"]["weights"] == pytest.approx(shown["bytes"], rel=0.1)
    text = ok("inspect", made.files["F32"]).out
    assert shown["architecture"] in text
    assert "experts in a layer  16" in text


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
def test_profile_counts_what_experts_put_out_if_asked_to(made: Made, tmp_path: Path) -> None:
    with_outputs, without = coe.RoutingProfile.load(made.profile), tmp_path / "without.gguf"
    shown = report("profile", made.files["Q4_K_M"], "-c", made.corpus, "-o", without, *RUN)
    assert (made.profile_report["stats"], shown["stats"]) == ("contribution", "routing")
    routing = coe.RoutingProfile.load(without)
    assert routing.outputs is None
    assert (routing.histograms == with_outputs.histograms).all()
    assert with_outputs.outputs is not None
    assert ((with_outputs.outputs.norm_sum > 0) == (with_outputs.counts > 0)).all()
    done = run("merge", made.profile, without, "-o", tmp_path / "both.gguf")
    assert "without.gguf: does not know what experts put out" in done.err
    assert done.err.endswith("leave that out (merge --stats routing)\n")
    both = report("merge", made.profile, without, "--stats", "routing", "-o", tmp_path / "both.gguf")
    assert both["tokens"] == 2 * routing.n_tokens
    assert coe.RoutingProfile.load(tmp_path / "both.gguf").outputs is None
    for method in ("contribution", "reap", "ean"):
        mask = report("mask", made.profile, "--keep", 8, "--method", method, "-o", tmp_path / f"{method}.json")
        assert mask["digest"] == coe.build_mask(with_outputs, 8, method=method).digest
        done = run("mask", without, "--keep", 8, "--method", method, "-o", tmp_path / "no.json")
        assert done.status == 2
        assert f"without.gguf: does not know what the experts put out, which {method} needs" in done.err


@one_family
def test_profile_says_what_it_did_on_stderr(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "profile.gguf"
    done = ok("profile", made.files["Q8_0"], "-c", made.corpus, "-o", out, *RUN)
    assert not done.out
    assert done.err.startswith(f"{out}: {made.profile_report['tokens']} tokens")
    assert list(tmp_path.iterdir()) == [out]


@one_family
def test_profile_of_one_corpus_is_the_same_from_any_format(made: Made, tmp_path: Path) -> None:
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
def test_merge_adds_up(made: Made, tmp_path: Path) -> None:
    """As many tokens in each document as in a batch, so that the sums are of the same numbers, and exact."""
    tokens = np.random.default_rng(2).integers(0, 256, (3, 64), dtype=np.int32)
    parts = [tmp_path / "a.npy", tmp_path / "b.npy"]
    np.save(parts[0], tokens[:1])
    np.save(parts[1], tokens[1:])
    a, b, both, merged = (tmp_path / f"{name}.gguf" for name in ("a", "b", "both", "merged"))
    model = made.files["F32"]
    ok("profile", model, "-c", parts[0], "-o", a, *RUN)
    ok("profile", model, "-c", parts[1], "-o", b, *RUN)
    ok("profile", model, "-c", parts[0], "-c", parts[1], "-o", both, *RUN)
    shown = report("merge", a, b, "-o", merged)
    assert (shown["profiles"], shown["tokens"]) == (2, 192)
    at_once, added = coe.RoutingProfile.load(both), coe.RoutingProfile.load(merged)
    assert (added.histograms == at_once.histograms).all()
    assert (added.weight_sum == at_once.weight_sum).all()
    assert added.corpora == at_once.corpora
    assert merged.read_bytes() == both.read_bytes()


@one_family
def test_shards_merge_to_the_whole(made: Made, tmp_path: Path) -> None:
    """Three bundles' worth of short documents in two corpora, and five shards: two of them are empty."""
    random = np.random.default_rng(4)
    corpora = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, n_documents in zip(corpora, (700, 500), strict=True):
        documents = (random.integers(0, 256, random.integers(30, 120)).tolist() for _ in range(n_documents))
        path.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in documents))
    text = ("-c", corpora[0], "-c", corpora[1], "--threads", "1", "--ctx", "128")
    model = made.files["Q4_K_M"]
    whole, merged = tmp_path / "whole.gguf", tmp_path / "merged.gguf"
    at_once = report("profile", model, *text, "-o", whole)
    shards = [tmp_path / f"{index}.gguf" for index in range(1, 6)]
    said = [
        report("profile", model, *text, "-o", path, "--shard", f"{index}/5")
        for index, path in enumerate(shards, 1)
    ]
    assert [shard["shard"] for shard in said] == [[index, 5] for index in range(1, 6)]
    assert [shard["tokens"] > 0 for shard in said] == [True, True, True, False, False]
    assert sum(shard["tokens"] for shard in said) == at_once["tokens"]
    assert sum(shard["documents"] for shard in said) == at_once["documents"] == 1200
    shards = [shards[index] for index in (3, 1, 4, 0, 2)]
    assert report("merge", *shards, "-o", merged)["missing_shards"] == {}
    assert merged.read_bytes() == whole.read_bytes()
    # Some of them, and one too many.
    some = report("merge", *shards[1:4], "-o", merged, "--force")
    assert some["missing_shards"] == {str(path): [3, 4] for path in corpora}
    assert "without shard 3, 4" in ok("merge", *shards[1:4], "-o", merged, "--force").err
    for parts in ([*shards[1:], shards[1]], [*shards, shards[1]]):
        twice = run("merge", *parts, "-o", merged, "--force")
        assert twice.status == 2
        assert f"both have documents of {corpora[0]}" in twice.err
    # A part of the same corpora in another order is of another run.
    other = tmp_path / "other.gguf"
    ok("profile", model, "-c", corpora[1], "-c", corpora[0], *text[4:], "-o", other, "--shard", "5/5")
    assert run("merge", *shards[:2], other, "-o", merged, "--force").status == 2


@one_family
def test_bad_documents_stop_a_run_or_are_left_out(made: Made, tmp_path: Path) -> None:
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
        assert f"left out: {bad / place}" in done.err
    ours, theirs = coe.RoutingProfile.load(out), coe.RoutingProfile.load(expected)
    assert (ours.histograms == theirs.histograms).all()
    assert (ours.weight_sum == theirs.weight_sum).all()
    nothing = run("profile", model, "-c", bad / "b.npy", "-o", out, "--skip-bad", "--force", *RUN)
    assert "b.npy: " in nothing.err
    assert nothing.status == 2


@one_family
@pytest.mark.parametrize("method", coe.METHODS)
def test_score_prints_the_library_s_scores(made: Made, method: str) -> None:
    profile = coe.RoutingProfile.load(made.profile)
    scores = coe.score(profile, method)
    rows = list(csv.DictReader(io.StringIO(ok("score", made.profile, "--csv", "--method", method).out)))
    assert [(int(row["layer"]), int(row["expert"])) for row in rows] == list(
        itertools.product(range(3), range(16))
    )
    assert [float(row["score"]) for row in rows] == scores.ravel().tolist()
    assert [int(row["chosen"]) for row in rows] == profile.counts.ravel().tolist()
    assert [float(row["mean_rank"]) for row in rows] == profile.mean_rank.ravel().tolist()
    shown = report("score", made.profile, "--method", method)
    assert shown["layers"] == {str(block): scores[i].tolist() for i, block in enumerate(profile.layers)}


@one_family
@pytest.mark.parametrize("top", [3, 16])
def test_score_table_is_whole(made: Made, top: int) -> None:
    """A table goes to a file as often as to a terminal: nothing in it may be cut off."""
    lines = ok("score", made.profile, "--top", top).out.splitlines()
    best = np.argsort(-coe.score(coe.RoutingProfile.load(made.profile)), axis=1, kind="stable")[:, :top]
    rows = [line for line in lines if re.match(r"\s*\d+ +\d+: ", line)]
    assert [int(row.split()[0]) for row in rows] == [0, 1, 2]
    for row, experts in zip(rows, best.tolist(), strict=True):
        assert [int(expert) for expert in re.findall(r"(\d+): ", row)] == experts
        assert "…" not in row


MASK_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--no-structural", {"structural": False}),
    ("--method frequency --structural-rank 1.4", {"method": "frequency", "structural_rank": 1.4}),
    ("--method rank-weighted --structural-min 30", {"method": "rank-weighted", "structural_min": 30}),
]


@one_family
@pytest.mark.parametrize(("options", "arguments"), MASK_OPTIONS, ids=[o or "none" for o, _ in MASK_OPTIONS])
def test_mask_is_the_library_s(made: Made, tmp_path: Path, options: str, arguments: dict[str, Any]) -> None:
    out = tmp_path / "mask.json"
    shown = report("mask", made.profile, "--keep", 5, *shlex.split(options), "-o", out)
    mask = coe.ExpertMask.load(out)
    expected = coe.build_mask(coe.RoutingProfile.load(made.profile), 5, **arguments)
    assert mask == expected
    assert (shown["keep"], shown["experts"], shown["digest"]) == (5, 16, expected.digest)
    assert all(len(set(kept)) == 5 for kept in mask.kept.values())


@one_family
def test_mask_makes_room_for_reasoning(made: Made, tmp_path: Path) -> None:
    reasoning, out = tmp_path / "reasoning.gguf", tmp_path / "mask.json"
    np.save(tmp_path / "reasoning.npy", np.arange(64, dtype=np.int32))
    ok("profile", made.files["Q4_K_M"], "-c", tmp_path / "reasoning.npy", "-o", reasoning, *RUN)
    options = ("--no-structural", "--reasoning", reasoning, "--reasoning-swaps", 2)
    shown = report("mask", made.profile, "--keep", 8, *options, "-o", out)
    mask = coe.ExpertMask.load(out)
    assert 0 < shown["reasoning_swaps"] == len(mask.swaps) <= 2 * 3
    came_in = {(swap.layer, swap.incoming) for swap in mask.swaps}
    assert all(expert in mask.kept[layer] for layer, expert in came_in)


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_a_mask_serves_every_quantisation(made: Made, tmp_path: Path, quantization: str) -> None:
    """The mask comes from the Q4_K_M file's profile."""
    parent, out = made.files[quantization], tmp_path / "out.gguf"
    shown = report("prune", parent, "--mask", made.mask, "-o", out)
    size = out.stat().st_size
    assert (shown["bytes"], shown["keep"]) == (size, 8)
    assert "safety" in shown["notice"]
    predicted = report("inspect", parent, "--keep", 8)["specialist"]["bytes"]
    assert abs(predicted - size) <= 0.01 * size
    written = report("inspect", out)
    assert (written["experts"], written["top_k"]) == (8, 4)
    assert written["mask"]["digest"] == made.mask_report["digest"]
    checked = report("verify", out, "--parent", parent, "--mask", made.mask)
    assert checked["passed"]
    kinds = {"metadata", "layout", "bytes", "norms", "loads", "graph"}
    assert {check["name"] for check in checked["checks"]} == kinds
    assert list(tmp_path.iterdir()) == [out]


def test_eval_of_the_masked_parent_is_eval_of_the_file(made: Made, tmp_path: Path) -> None:
    parent, out = made.files["F32"], tmp_path / "out.gguf"
    done = ok("prune", parent, "--mask", made.mask, "-o", out)
    assert not done.out
    assert "8 of 16 experts" in done.err
    plain, masked, pruned = (
        report("eval", *model, "--text", made.corpus, *RUN)["texts"][0]
        for model in ([parent], [parent, "--mask", made.mask], [out])
    )
    n_tokens = made.profile_report["tokens"]
    assert plain["n_scored"] == masked["n_scored"] == pruned["n_scored"] == n_tokens // 64 * 31
    assert masked["perplexity"] == pytest.approx(pruned["perplexity"], rel=1e-4)
    assert abs(math.log(plain["perplexity"] / masked["perplexity"])) > 1e-2, "or equality says nothing"
    assert plain["kl_divergence"] is None


@one_family
def test_eval_against_a_reference(made: Made) -> None:
    """Against itself nothing differs; against the quantised file a little does."""
    f32, q4 = made.files["F32"], made.files["Q4_K_M"]
    arguments = ("--text", made.corpus, "--reference", f32, *RUN)
    same = report("eval", f32, *arguments)["texts"][0]
    assert same["kl_divergence"] == pytest.approx(0, abs=1e-12)
    assert same["top1_agreement"] == 1
    table = ok("eval", q4, *arguments).out.splitlines()
    assert "KL divergence" in table[0]
    *_, divergence, agreement = table[1].split()
    assert float(divergence) > 1e-3
    assert 0 < float(agreement.rstrip("%")) < 100


@one_family
def test_compare_with_itself_and_with_the_rest(made: Made, tmp_path: Path) -> None:
    document = json.loads(made.mask.read_text())
    document["layers"] = {b: sorted(set(range(16)) - set(kept)) for b, kept in document["layers"].items()}
    rest = tmp_path / "rest.json"
    rest.write_text(json.dumps(document))
    same, other = report("compare", made.mask, made.mask), report("compare", made.mask, rest)
    assert (same["shared"], same["mean_jaccard"], same["by_chance"]) == (3 * 8, 1, 3 * 8 * 8 / 16)
    assert (other["shared"], other["mean_jaccard"]) == (0, 0)
    assert [layer["layer"] for layer in same["layers"]] == [0, 1, 2]
    assert "1.00" in ok("compare", made.mask, made.mask).out
    profiles = report("compare", made.profile, made.profile, "--keep", 5)
    assert profiles["shared"] == 3 * 5


@pytest.mark.parametrize("made", ["gemma4"], indirect=True)
def test_zero_in_a_copy_and_in_place(made: Made, tmp_path: Path) -> None:
    parent, copy, out = made.files["Q8_0"], tmp_path / "copy.gguf", tmp_path / "out.gguf"
    shutil.copy(parent, copy)
    ok("zero", parent, "--mask", made.mask, "-o", out)
    shown = report("zero", copy, "--mask", made.mask, "--in-place", "--yes")
    assert tensor_bytes(out) == tensor_bytes(copy) != tensor_bytes(parent)
    weights = [t for t in GGUFReader(parent).tensors if re.search(r"_exps\.(weight|bias)", t.name)]
    assert shown["zeroed_bytes"] == sum(tensor.n_bytes for tensor in weights) // 2
    for written in (copy, out):
        checked = ok("verify", written, "--parent", parent, "--mask", made.mask)
        assert re.findall(r"^(ok|FAILED)", checked.out, re.MULTILINE) == ["ok"] * 6
    assert sorted(tmp_path.iterdir()) == [copy, out]


@one_family
def test_specialise_does_it_all(made: Made, tmp_path: Path) -> None:
    parent, out = made.files["F32"], tmp_path / "out.gguf"
    arguments = ("-c", made.corpus, "--keep", 8, "--no-structural", "-o", out, *RUN)
    shown = report("specialise", parent, *arguments)
    beside = {kind: tmp_path / f"out.{kind}" for kind in ("profile.gguf", "mask.json", "report.json")}
    assert set(tmp_path.iterdir()) == {out, *beside.values()}
    assert shown == json.loads(beside["report.json"].read_text())
    assert shown["specialist_bytes"] == out.stat().st_size < shown["parent_bytes"] == parent.stat().st_size
    assert shown["mask"] == coe.ExpertMask.load(beside["mask.json"]).digest
    assert coe.RoutingProfile.load(beside["profile.gguf"]).n_tokens == made.profile_report["tokens"]
    assert all(check["passed"] for check in shown["checks"])
    parents, masked, pruned = (shown["evaluation"][kind][0] for kind in ("parent", "live_masked", "pruned"))
    assert masked["perplexity"] == pytest.approx(pruned["perplexity"], rel=1e-4)
    by_contribution = shown["evaluation"]["other_methods"]["contribution"][0]
    assert set(shown["evaluation"]["other_methods"]) == {"contribution"}
    profile = coe.RoutingProfile.load(beside["profile.gguf"])
    mask = coe.build_mask(profile, 8, structural=False, method="contribution")
    mask.save(tmp_path / "contribution.json")
    judged = report("eval", parent, "--text", made.corpus, "--mask", tmp_path / "contribution.json", *RUN)
    assert by_contribution["perplexity"] == pytest.approx(judged["texts"][0]["perplexity"], rel=1e-9)
    done = ok("specialise", parent, *arguments, "--force", "--method", "contribution")
    assert re.search("parent +live, contribution +live, utility +pruned", done.out)
    assert f"{parents['perplexity']:.3f}" in done.out
    assert f"{by_contribution['perplexity']:.3f}" in done.out
    assert coe.ExpertMask.load(beside["mask.json"]).kept == mask.kept
    assert "verified" in done.err


@one_family
def test_specialise_shows_the_methods_that_its_profiles_know(made: Made, tmp_path: Path) -> None:
    """A reasoning profile may know no weights, or nothing of what experts put out."""
    reasoning = replace(coe.RoutingProfile.load(made.profile), outputs=None)
    zeros = np.zeros_like(reasoning.weight_sum)
    replace(reasoning, has_weights=False, weight_sum=zeros, weight_sum_rest=zeros).save(tmp_path / "counts.gguf")
    reasoning.save(tmp_path / "routing.gguf")
    arguments = ("-c", made.corpus, "--keep", 8, "-o", tmp_path / "out.gguf", "--force", *RUN)
    for name, method, others in (("counts", "frequency", set()), ("routing", "rank-weighted", {"utility"})):
        options = ("--method", method, "--reasoning", tmp_path / f"{name}.gguf")
        shown = report("specialise", made.files["F32"], *arguments, *options)
        assert set(shown["evaluation"]["other_methods"]) == others
    options = ("--method", "contribution", "--reasoning", tmp_path / "routing.gguf")
    done = run("specialise", made.files["F32"], *arguments, *options)
    assert "routing.gguf: does not know what the experts put out, which contribution needs" in done.err


CHAT = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"


def write_reader(path: Path, template: str = CHAT) -> None:
    """A model with a tokenizer and a chat template."""
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [0.0] * len(PIECES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": template,
    }
    write_random_model(path, "qwen3moe", n_vocab=len(PIECES), extra_metadata=metadata, **SMALL)


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
def test_profile_reads_text(shop: Path, tmp_path: Path, name: str, content: str, options: str, text: str) -> None:
    if name != "-":
        (tmp_path / name).write_text(content, encoding="utf-8")
    arguments = ("-c", name, "-o", "out.gguf", *RUN, *shlex.split(options))
    shown = report("profile", shop / "reader.gguf", *arguments, cwd=tmp_path, stdin=content.encode())
    assert shown["tokens"] == 1 + len(text.encode())


# --- Bad input. All lines run in one directory, `shop`, and must leave it as it was.

BAD_MASKS: dict[str, tuple[dict[str, Any], str]] = {
    "newer": ({"version": 2}, "version 2"),
    "foreign": ({"format": "something else"}, "not a mask"),
    "keyless": ({"layers": None}, "layers"),
    "twice": ({"layers": {"0": [1, 1, 2, 3], "1": [0, 1, 2, 3]}}, "block 0"),
    "beyond": ({"layers": {"0": [0, 1, 2, 3], "1": [0, 1, 2, 8]}}, "block 1"),
    "starved": ({"keep": 1, "layers": {"0": [0], "1": [0]}}, "needs 2"),
    "wide": ({"expert_count": 2**31}, "cannot keep 4 of 2147483648"),
    "terminal": ({"architecture": "\x1b[2J\r"}, r"\\x1b\[2J\\r"),
}
"""What each differs in from a good mask (None: lacks it), and what must be said about it."""

BAD_TEXTS: dict[str, tuple[str, str]] = {
    "empty.txt": ("", "empty.txt.*no text"),
    "broken.jsonl": ('{"tokens": [1, 2]}\n{"tokens": [1,\n', r"broken\.jsonl:2\b"),
    "columnless.jsonl": ('{"body": "text"}\n', r"columnless\.jsonl:1\b.*--field.*body"),
    "outside.jsonl": ('{"tokens": [1]}\n{"tokens": [256]}\n', r"outside\.jsonl:2\b.*256"),
    "huge.jsonl": (json.dumps({"tokens": [1 + 2**31]}), r"huge\.jsonl:1\b"),
    "counted.jsonl": ('{"tokens": 5}\n', r"counted\.jsonl:1: .*whole numbers"),
}
"""Corpora that are wrong for any model, and what must be said about them."""


class _Trap:
    """Unpickling it makes a directory, which the listing of `shop` would show."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def _write_arrays(shop: Path) -> None:
    """Corpora of token ids, of which only tokens.npy and short.npy are any good."""
    tokens = np.random.default_rng(3).integers(0, 256, (2, 64), dtype=np.int32)
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "short": tokens[0, :2],
        "floats": np.ones(4, np.float32),
        "pickled": np.array([_Trap()], dtype=object),
    }
    for name, array in arrays.items():
        np.save(shop / f"{name}.npy", array, allow_pickle=True)
    good = (shop / "tokens.npy").read_bytes()
    damaged = {
        "cut": good[:-4],
        "header": good.replace(b"(2, 64)", b"((((((("),
        "shape": good.replace(b"(2, 64)", b"(2,-64)"),
        "zip": b"PK\x03\x04 and no more",
        # More rows, and more tokens, than any memory has.
        "rows": good.replace(b"(2, 64), }" + 10 * b" ", b"(999999999999, 0), }"),
        "claim": good.replace(b"(2, 64), }" + 10 * b" ", b"(999999999999, 9), }"),
    }
    assert len({len(good), len(damaged["rows"]), len(damaged["claim"])}) == 1
    assert good not in damaged.values()
    for name, data in damaged.items():
        (shop / f"{name}.npy").write_bytes(data)


def _write_models(shop: Path) -> None:
    """Models, of which parent, other, gemma and few are good, and damaged ones."""
    write_random_model(shop / "parent.gguf", "qwen3moe", **SMALL)
    write_random_model(shop / "other.gguf", "qwen3moe", seed=1, **SMALL)
    write_random_model(shop / "gemma.gguf", "gemma4", **SMALL)
    write_random_model(shop / "few.gguf", "qwen3moe", n_vocab=128, **SMALL)
    odd: dict[str, dict[str, Any]] = {
        "uneven": {"qwen3moe.expert_count": 4},
        "greedy": {"qwen3moe.expert_used_count": 9},
        "gating": {"qwen3moe.expert_gating_func": [1, 2]},
        "heads": {"qwen3moe.attention.head_count": [4]},
        "typed": {"general.name": 7},
        "blocks": {"qwen3moe.block_count": 2**32 - 1},
        "blockless": {"qwen3moe.block_count": 0},
    }
    for name, metadata in odd.items():
        write_random_model(shop / f"{name}.gguf", "qwen3moe", extra_metadata=metadata, **SMALL)
    write_reader(shop / "reader.gguf")
    write_reader(shop / "template.gguf", "{% if")
    key = b"tokenizer.ggml.model" + struct.pack("<IQ", 8, 5)
    reader = (shop / "reader.gguf").read_bytes()
    assert key + b"llama" in reader
    (shop / "garbled.gguf").write_bytes(reader.replace(key + b"llama", key + b"\xff\x1b[2J"))
    split_model(shop / "parent.gguf", shop, 2)
    split_model(shop / "other.gguf", shop, 2)[1].unlink()
    writer = GGUFWriter(shop / "dense.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    good = (shop / "parent.gguf").read_bytes()
    for name, length in {"magic": 3, "entries": 300, "tensors": 1500, "data": len(good) // 2}.items():
        (shop / f"cut-{name}.gguf").write_bytes(good[:length])
    (shop / "cut-end.gguf").write_bytes(good[:-1])
    _spoil(shop / "parent.gguf", "blk.1.ffn_up_exps.weight", shop / "nan.gguf", nan=True)


def _offset(path: Path, tensor: str) -> int:
    return next(int(t.data_offset) for t in GGUFReader(path).tensors if t.name == tensor)


def _spoil(path: Path, tensor: str, out: Path, *, nan: bool = False) -> None:
    """A copy with one wrong bit in the first number of a tensor, or with NaN in all experts of a block."""
    data = bytearray(path.read_bytes())
    at = _offset(path, tensor)
    if nan:
        n_bytes = next(t.n_bytes for t in GGUFReader(path).tensors if t.name == tensor)
        data[at : at + n_bytes] = np.full(n_bytes // 4, np.nan, np.float32).tobytes()
    else:
        data[at] ^= 1
    out.write_bytes(data)


def _write_profiles_and_masks(shop: Path) -> None:
    tokens = np.load(shop / "tokens.npy").tolist()
    for name, prefix in (("parent", ""), ("other", "other-"), ("gemma", "gemma-")):
        profile = coe.profile(shop / f"{name}.gguf", tokens, n_ctx=64, n_batch=64, n_threads=1)
        profile.save(shop / f"{prefix}profile.gguf")
        coe.build_mask(profile, 4).save(shop / f"{prefix}mask.json")
    good = (shop / "profile.gguf").read_bytes()
    version = b"coe.profile.version" + struct.pack("<I", 4)
    counted = b"coe.profile.tokens" + struct.pack("<I", 10)
    (shop / "newer.gguf").write_bytes(good.replace(version + struct.pack("<I", 1), version + struct.pack("<I", 4)))
    (shop / "miscounted.gguf").write_bytes(
        good.replace(counted + struct.pack("<Q", 128), counted + struct.pack("<Q", 129))
    )
    (shop / "cut-profile.gguf").write_bytes(good[:-1])
    document = json.loads((shop / "mask.json").read_text())
    for name, (changes, _) in BAD_MASKS.items():
        changed = {key: value for key, value in {**document, **changes}.items() if value is not None}
        (shop / f"{name}.json").write_text(json.dumps(changed))
    document["layers"] = {b: sorted(set(range(8)) - set(kept)) for b, kept in document["layers"].items()}
    (shop / "rest.json").write_text(json.dumps(document))
    (shop / "cut.json").write_text(json.dumps(document)[:200])


def _write_specialists(shop: Path) -> None:
    mask = coe.ExpertMask.load(shop / "mask.json")
    pruned = coe.prune(shop / "parent.gguf", mask, shop / "pruned.gguf")
    for name, tensor in (("expert", "ffn_up_exps"), ("attention", "attn_q"), ("router", "ffn_gate_inp")):
        _spoil(pruned, f"blk.1.{tensor}.weight", shop / f"flipped-{name}.gguf")
    _spoil(pruned, "blk.1.ffn_up_exps.weight", shop / "flipped-nan.gguf", nan=True)
    data = pruned.read_bytes()
    (shop / "cut-pruned.gguf").write_bytes(data[: len(data) // 2])
    coe.zero(shop / "parent.gguf", mask, shop / "zeroed.gguf")
    digest = mask.digest.encode()
    (shop / "flipped-digest.gguf").write_bytes(data.replace(digest, digest[::-1]))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of good and bad files of every kind. The numbered copies are for lines that would destroy
    them if they were let."""
    shop = tmp_path_factory.mktemp("shop")
    _write_models(shop)
    _write_arrays(shop)
    _write_profiles_and_masks(shop)
    _write_specialists(shop)
    for name, (content, _) in BAD_TEXTS.items():
        (shop / name).write_text(content)
    (shop / "words.txt").write_text("Not a model, and not for one without a tokenizer.")
    (shop / "latin1.txt").write_bytes("déjà vu".encode("latin-1"))
    (shop / "surrogate.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud800"}\n')
    (shop / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    (shop / "empty.gguf").write_bytes(b"")
    (shop / "precious.gguf").write_text("not to be overwritten")
    (shop / "link.gguf").symlink_to("parent.gguf")
    (shop / "folder").mkdir()
    (shop / "corpus").mkdir()
    for i in (1, 2):
        shutil.copy(shop / "mask.json", shop / f"mask{i}.json")
        shutil.copy(shop / "profile.gguf", shop / f"profile{i}.gguf")
        shutil.copy(shop / "tokens.npy", shop / f"tokens{i}.npy")
    shutil.copy(shop / "tokens.npy", shop / "corpus" / "tokens.npy")
    return shop


def _listing(directory: Path) -> dict[Path, tuple[int, int]]:
    found = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return {path: (info.st_mode, info.st_mtime_ns if path.is_file() else 0) for path, info in found}


def refuse(directory: Path, *arguments: object, **options: Any) -> Done:
    """Runs a line that must fail: nothing on stdout, and the directory as it was."""
    before = _listing(directory)
    try:
        done = run(*arguments, cwd=directory, **options)
        assert _listing(directory) == before
    finally:
        for left in _listing(directory).keys() - before.keys():  # or the next test would stumble over it
            left.unlink() if left.is_file() else left.rmdir()
    assert not done.out
    return done


def _one_line(done: Done) -> str:
    assert done.err.startswith("coe-native: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    return done.err


PROFILE = "profile parent.gguf -o out.gguf --threads 1 -c"
WRITERS = (
    "profile parent.gguf -c tokens.npy --threads 1",
    "merge profile.gguf profile1.gguf",
    "mask profile.gguf --keep 4",
    "prune parent.gguf --mask mask.json",
    "zero parent.gguf --mask mask.json",
    "specialise parent.gguf -c tokens.npy --keep 4 --threads 1",
)
CUTS = ("magic", "entries", "tensors", "end")
ARRAYS = ("floats", "pickled", "cut", "header", "shape", "zip", "rows", "claim")

BAD_INPUT: list[tuple[str, str]] = [
    # Models
    *((f"inspect cut-{name}.gguf", f"cut-{name}.gguf") for name in CUTS),
    ("inspect missing.gguf", "missing.gguf.*[Nn]o such file"),
    ("inspect empty.gguf", "empty.gguf.*empty"),
    ("inspect words.txt", "words.txt.*not a GGUF"),
    ("inspect folder", "folder.*directory"),
    ("inspect dense.gguf", "dense.gguf.*no experts"),
    ("inspect profile.gguf", "profile.gguf.*no experts"),
    ("inspect uneven.gguf", "uneven.gguf.*blk.0"),
    ("inspect greedy.gguf", "greedy.gguf.*9 of 8"),
    ("inspect gating.gguf", "gating.gguf.*expert_gating_func"),
    ("inspect heads.gguf --ctx 64", "heads.gguf.*head_count"),
    ("inspect blocks.gguf", "blocks.gguf.*counts 4294967295 blocks"),
    ("inspect blockless.gguf", "blockless.gguf.*counts 0 blocks"),
    ("inspect parent-00002-of-00002.gguf", "parent-00001-of-00002.gguf"),
    ("inspect other-00001-of-00002.gguf", "other-00002-of-00002.gguf"),
    ("profile missing.gguf -c tokens.npy -o out.gguf", "missing.gguf"),
    ("profile cut-data.gguf -c tokens.npy -o out.gguf", "cut-data.gguf.*truncated"),
    ("profile garbled.gguf -c tokens.npy -o out.gguf", r"garbled\.gguf: llama\.cpp cannot load it: .*'\?\?\[2J'"),
    ("profile typed.gguf -c tokens.npy -o out.gguf", "typed.gguf.*general.name"),
    ("eval parent.gguf --text tokens.npy --reference few.gguf", "few.gguf.*vocabulary"),
    # Corpora
    *((f"{PROFILE} {name}", told) for name, (_, told) in BAD_TEXTS.items()),
    *((f"{PROFILE} {name}.npy", rf"{name}\.npy") for name in ARRAYS),
    (f"{PROFILE} missing.txt", "missing.txt"),
    (f"{PROFILE} folder", "folder.*no text"),
    (f"{PROFILE} latin1.txt", "latin1.txt.*UTF-8"),
    (f"{PROFILE} words.txt", "parent.gguf.*no tokenizer"),
    (f"{PROFILE} columnless.jsonl --field head", r"columnless\.jsonl:1\b.*head"),
    (f"{PROFILE} chat.jsonl", "parent.gguf.*chat template"),
    (f"{PROFILE} -", "-: |standard input"),
    ("profile template.gguf -c chat.jsonl -o out.gguf", "template.gguf.*chat template"),
    ("profile reader.gguf -c surrogate.jsonl -o out.gguf", r"surrogate\.jsonl:2\b"),
    ("eval parent.gguf --text short.npy", "short.npy.*2 tokens"),
    ("specialise parent.gguf -c words.txt --keep 4 -o out.gguf", "parent.gguf.*no tokenizer"),
    ("specialise parent.gguf -c tokens.npy --text short.npy --keep 4 -o out.gguf", "short.npy"),
    # Masks
    *(
        (f"prune parent.gguf --mask {n}.json -o out.gguf", rf"{n}\.json.*{told}")
        for n, (_, told) in BAD_MASKS.items()
    ),
    ("prune parent.gguf --mask missing.json -o out.gguf", "missing.json"),
    ("prune parent.gguf --mask cut.json -o out.gguf", "cut.json"),
    ("prune parent.gguf --mask profile.gguf -o out.gguf", "profile.gguf.*not a mask"),
    ("prune parent.gguf --mask gemma-mask.json -o out.gguf", "gemma-mask.json.*gemma4"),
    ("prune parent.gguf --mask other-mask.json -o out.gguf", "other-mask.json.*another model"),
    ("prune pruned.gguf --mask mask.json -o out.gguf", "mask.json.*another model"),
    ("zero parent.gguf --mask other-mask.json --in-place --yes", "other-mask.json.*another model"),
    ("eval parent.gguf --text tokens.npy --mask gemma-mask.json", "gemma-mask.json.*gemma4"),
    ("compare mask.json gemma-mask.json", "gemma-mask.json.*another model than mask.json"),
    # Profiles
    ("score parent.gguf", "parent.gguf.*not a routing profile"),
    ("score newer.gguf", "newer.gguf.*version 4"),
    ("score miscounted.gguf", "miscounted.gguf.*129 tokens"),
    ("score cut-profile.gguf", "cut-profile.gguf.*truncated"),
    ("specialise zeroed.gguf -c tokens.npy --keep 4 -o out.gguf", "zeroed.gguf: has zeroed experts"),
    (f"{PROFILE} tokens.npy --ctx 2000000000", r"parent\.gguf: a context of .* --ctx \d+ would fit"),
    ("mask profile.gguf --keep 4 -o out.json --reasoning other-profile.gguf", "other-profile.gguf.*another model"),
    ("merge profile.gguf gemma-profile.gguf -o out.gguf", "gemma-profile.gguf"),
    ("merge profile.gguf other-profile.gguf -o out.gguf", "other-profile.gguf"),
    ("mask profile.gguf --keep 1 -o out.json", "keep.* 2 .*not 1"),
    ("mask profile.gguf --keep 9 -o out.json", "keep.* 8.*not 9"),
    ("specialise parent.gguf -c tokens.npy --keep 9 -o out.gguf", "keep.* 8.*not 9"),
    # Outputs
    *((f"{writer} -o precious.gguf", "precious.gguf.*--force") for writer in WRITERS),
    *((f"{writer} -o folder --force", "folder.*directory") for writer in WRITERS[::3]),
    *((f"{writer} -o nowhere/out.gguf", "nowhere") for writer in WRITERS[2::3]),
    ("profile parent.gguf -c tokens1.npy -o tokens1.npy --force", "tokens1.npy.*input"),
    ("profile parent.gguf -c corpus -o corpus/tokens.npy --force", "corpus/tokens.npy.*input"),
    ("profile parent-00001-of-00002.gguf -c tokens.npy -o parent-00002-of-00002.gguf --force", "00002.*input"),
    ("merge profile.gguf profile1.gguf -o profile1.gguf --force", "profile1.gguf.*input"),
    ("mask profile.gguf --keep 4 -o profile2.gguf --reasoning profile2.gguf --force", "profile2.gguf.*input"),
    ("prune parent.gguf --mask mask.json -o link.gguf --force", "link.gguf.*input"),
    ("prune parent.gguf --mask mask1.json -o mask1.json --force", "mask1.json.*input"),
    ("zero parent.gguf --mask mask2.json -o mask2.json --force", "mask2.json.*input"),
    ("specialise parent.gguf -c tokens2.npy --keep 4 -o tokens2.npy --force", "tokens2.npy.*input"),
    ("zero parent.gguf --mask mask.json", "-o.*--in-place"),
    ("zero parent.gguf --mask mask.json --in-place -o out.gguf --yes", "-o.*--in-place"),
    ("zero parent.gguf --mask mask.json --in-place", "parent.gguf.*--yes"),
]
"""Lines that end with status 2, and what the one line on stderr must say."""


@pytest.mark.parametrize(("line", "told"), BAD_INPUT, ids=[line for line, _ in BAD_INPUT])
def test_bad_input(shop: Path, line: str, told: str) -> None:
    done = refuse(shop, *shlex.split(line))
    assert re.search(told, _one_line(done)), done.err
    assert done.status == 2


FAILURES = [
    ("prune nan.gguf --mask mask.json -o out.gguf", "nan.gguf.*blk.1.ffn_up_exps.weight.*expert"),
    ("zero nan.gguf --mask mask.json -o out.gguf", "nan.gguf.*blk.1.ffn_up_exps.weight.*expert"),
]


@pytest.mark.parametrize(("line", "told"), FAILURES, ids=[line for line, _ in FAILURES])
def test_failure(shop: Path, line: str, told: str) -> None:
    """What was asked for makes sense, but cannot be done: status 1."""
    done = refuse(shop, *shlex.split(line))
    assert re.search(told, _one_line(done)), done.err
    assert done.status == 1


BAD_OPTIONS: list[tuple[str, str]] = [
    ("", "COMMAND"),
    ("nonsense", "nonsense"),
    ("--nonsense", "--nonsense"),
    ("inspect", "MODEL"),
    ("inspect parent.gguf --keep some", "--keep"),
    ("inspect parent.gguf --keep -1", "keep must be from 2"),
    ("mask profile.gguf --keep 4 --structural-rank nan -o o.json", "structural rank must be a number"),
    ("mask profile.gguf --keep 4 -o nowhere/", "nowhere/: is a directory's name"),
    ("prune parent.gguf --mask mask.json --split-max-size 4 -o o.gguf", "size of at least 1M"),
    ("zero parent.gguf --mask mask.json --in-place -o o.gguf", "not both"),
    ("inspect parent.gguf --ctx -1", "--?ctx"),
    ("profile parent.gguf -o out.gguf", "--corpus"),
    ("profile parent.gguf -c tokens.npy", "--output"),
    (f"{PROFILE} tokens.npy --ctx -1", "ctx|context"),
    (f"{PROFILE} tokens.npy --ctx 99999999999", "ctx|context"),
    (f"{PROFILE} tokens.npy --batch -1", "batch"),
    (f"{PROFILE} tokens.npy --threads -1", "thread"),
    (f"{PROFILE} tokens.npy --threads 99999999999", "thread"),
    (f"{PROFILE} tokens.npy --n-cpu-moe -2", "n-cpu-moe"),
    (f"{PROFILE} tokens.npy --device NONE", "NONE"),
    *((f"{PROFILE} tokens.npy --shard {shard}", "write it like 2/8") for shard in ("2", "a/b", "-1/2", "1/2/3")),
    *(
        (f"{PROFILE} tokens.npy --shard {shard}", f"no shard {shard}")
        for shard in ("0/2", "3/2", "1/0", "1/999999")
    ),
    (f"{PROFILE} tokens.npy --rpc localhost", "write it like 192.168.1.2:50052"),
    ("eval parent.gguf", "--text"),
    ("eval parent.gguf --text tokens.npy --ctx 2", "ctx|context"),
    ("eval parent.gguf --text tokens.npy --batch 0", "batch"),
    ("score profile.gguf --method magic", "utility.*rank-weighted.*frequency"),
    ("profile parent.gguf -c tokens.npy -o out.gguf --stats everything", "routing.*contribution"),
    (f"{PROFILE} tokens.npy --until-stable 0.9 --method reap", "reap scores by what .*--stats contribution"),
    ("serve parent.gguf -o out.gguf --method contribution", "'contribution' is not one of 'utility'"),
    ("score profile.gguf --top -1", "--?top"),
    ("mask profile.gguf -o out.json", "--keep"),
    ("mask profile.gguf --keep -1 -o out.json", "keep"),
    ("mask profile.gguf --keep 4 -o out.json --method magic", "utility.*rank-weighted.*frequency"),
    ("mask profile.gguf --keep 4 -o out.json --reasoning profile.gguf --reasoning-swaps -1", "reasoning.swaps"),
    ("zero parent.gguf -o out.gguf", "--mask"),
    ("verify pruned.gguf --mask mask.json", "--parent"),
    ("compare mask.json", "SECOND"),
]
"""Lines whose options make no sense. The parser may say so, in its own way, or the command."""


@pytest.mark.parametrize(("line", "told"), BAD_OPTIONS, ids=[line or "nothing" for line, _ in BAD_OPTIONS])
def test_bad_options(shop: Path, line: str, told: str) -> None:
    done = refuse(shop, *shlex.split(line))
    if done.err.startswith("Usage: coe-native"):
        assert not line or done.err.splitlines()[-1].startswith("Error: ")
    else:
        _one_line(done)
    assert re.search(told, done.err), done.err
    assert done.status == 2


UNLIKE: list[tuple[str, str, set[str], str]] = [
    ("flipped-expert.gguf", "mask.json", {"bytes"}, "blk.1.ffn_up_exps.weight"),
    ("flipped-attention.gguf", "mask.json", {"bytes"}, "blk.1.attn_q.weight"),
    ("flipped-router.gguf", "mask.json", {"bytes"}, "blk.1.ffn_gate_inp.weight"),
    ("flipped-nan.gguf", "mask.json", {"bytes", "norms"}, "blk.1.ffn_up_exps.weight"),
    ("flipped-digest.gguf", "mask.json", {"metadata"}, "another mask"),
    ("pruned.gguf", "rest.json", {"metadata", "bytes"}, "another mask"),
    ("parent.gguf", "mask.json", {"metadata", "bytes", "norms"}, "no record of a mask"),
    ("cut-pruned.gguf", "mask.json", {"header"}, "truncated"),
]


@pytest.mark.parametrize(("written", "mask", "failed", "told"), UNLIKE, ids=[f"{w}-{m}" for w, m, _, _ in UNLIKE])
def test_verify_finds(shop: Path, written: str, mask: str, failed: set[str], told: str) -> None:
    """A check that does not hold is a result, on stdout, and the exit status."""
    done = run("verify", written, "--parent", "parent.gguf", "--mask", mask, "--json", cwd=shop)
    assert done.status == 1
    assert not done.json["passed"]
    checks = [check for check in done.json["checks"] if not check["passed"] and check["name"] != "loads"]
    assert {check["name"] for check in checks} == failed
    assert told in checks[0]["detail"]


def test_verify_says_what_failed(shop: Path) -> None:
    done = run("verify", "flipped-expert.gguf", "--parent", "parent.gguf", "--mask", "mask.json", cwd=shop)
    assert (done.status, done.err) == (1, "")
    assert re.findall(r"^FAILED +(\w+)", done.out, re.MULTILINE) == ["bytes"]


# --- The world around a command


def test_debug_shows_a_traceback() -> None:
    process = subprocess.run(
        [COMMAND, "--debug", "score", "missing.gguf"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert "Traceback" in process.stderr
    assert "missing.gguf" in process.stderr
    assert process.returncode == 2


@pytest.mark.parametrize("line", ["score profile.gguf --csv", "inspect parent.gguf --json"])
def test_a_reader_that_goes_away_is_no_error(shop: Path, line: str) -> None:
    """As ``| head`` does."""
    receiver, sender = os.pipe()
    os.close(receiver)
    try:
        process = subprocess.run(
            [COMMAND, *shlex.split(line)],
            cwd=shop,
            env=ENVIRONMENT,
            stdout=sender,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(sender)
    assert (process.returncode, process.stderr) == (0, b"")


def _full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))


@pytest.mark.parametrize("writer", [*WRITERS[:1], *WRITERS[2:4], *WRITERS[5:]])
def test_a_full_disk_leaves_nothing(shop: Path, writer: str) -> None:
    done = refuse(shop, *shlex.split(writer), "-o", "out.gguf", preexec_fn=_full_disk)
    assert re.search(r"out\S*\.(gguf|json).*written", _one_line(done))
    assert done.status == 1


def _wait_until_read(process: subprocess.Popen[str]) -> None:
    """Wait until `process` has read what was written to its standard input, and waits for more."""
    assert process.stdin is not None
    for _ in range(6000):
        assert process.poll() is None
        if not any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):  # bytes that are not read yet
            return
        time.sleep(0.01)
    raise TimeoutError


def test_an_interrupt_leaves_nothing(tmp_path: Path, shop: Path) -> None:
    """The corpus is standard input, which does not end: when its beginning was read, the command is at work."""
    line = ["profile", shop / "reader.gguf", "-c", "-", "-o", tmp_path / "out.gguf"]
    with subprocess.Popen(
        [COMMAND, *map(str, line)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have been started with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdin is not None
        try:
            process.stdin.write("some text")
            process.stdin.flush()
            _wait_until_read(process)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            if process.poll() is None:
                # The signal came in the instant between Python's last look for one and the read that blocks:
                # whoever sits at the keyboard presses again.
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert (process.returncode, err.strip()) == (1, "coe-native: interrupted")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_before_anything_has_begun(tmp_path: Path) -> None:
    """While the command line itself is still being loaded, Ctrl-C ends it without a traceback."""
    (tmp_path / "click.py").write_text("import time; print('loading', flush=True); time.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "coe_native", "inspect", "x"],
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def test_an_output_that_is_no_file_is_left_alone(tmp_path: Path, shop: Path) -> None:
    """A device, a pipe: renaming over ``/dev/null`` would break the machine for everyone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run("prune", shop / "parent.gguf", "--mask", shop / "mask.json", "-o", pipe, "--force")
    assert pipe.is_fifo()
    assert "pipe" in _one_line(done)
    assert done.status == 2


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
def test_a_chat_template_gets_nowhere(tmp_path: Path, shop: Path, template: str) -> None:
    """It is a program of whoever made the file."""
    write_reader(tmp_path / "hostile.gguf", template)
    (tmp_path / "json.py").write_text("raise SystemExit('was imported')")  # nor does what lies about
    started = time.monotonic()
    arguments = ("hostile.gguf", "-c", shop / "chat.jsonl", "-o", "out.gguf", *RUN)
    done = refuse(tmp_path, "profile", *arguments)
    assert time.monotonic() - started < 10
    assert "hostile.gguf: its chat template refused a conversation (" in _one_line(done)
    assert done.status == 2


def test_a_template_without_end_is_asked_but_once(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["a[b].npy", "[/b].npy"])
def test_a_name_may_look_like_markup(tmp_path: Path, shop: Path, name: str) -> None:
    """Which the tables' library would swallow, or stumble over where it closes what was never opened."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(shop / "tokens.npy", tmp_path / name)
    assert name in ok("eval", shop / "parent.gguf", "--text", name, *RUN, cwd=tmp_path).out


def test_a_name_may_be_no_utf_8(tmp_path: Path, shop: Path) -> None:
    model = tmp_path / os.fsdecode(b"mod\xe9l.gguf")
    shutil.copy(shop / "parent.gguf", model)
    assert report("inspect", model)["bytes"] == model.stat().st_size
    assert report("profile", model, "-c", shop / "tokens.npy", "-o", tmp_path / "out.gguf", *RUN)["tokens"] == 128


def test_an_error_is_one_line_whatever_the_name(tmp_path: Path) -> None:
    assert "file" in _one_line(refuse(tmp_path, "score", "two lines of a\nfile"))


def test_a_pipe_of_bytes_that_are_no_text(shop: Path) -> None:
    done = refuse(shop, *shlex.split("profile reader.gguf -o out.gguf -c -"), stdin="déjà".encode("latin-1"))
    assert "UTF-8" in _one_line(done)
    assert done.status == 2
