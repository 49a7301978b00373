"""`coe-native merge`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from support.command_line import (
    RUN,
    Made,
    by_line,
    check_input_refused,
    ok,
    one_family,
    report,
    run,
)

import coe_native as coe


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
    assert "3, 4" in ok("merge", *shards[1:4], "-o", merged, "--force").err
    for parts in ([*shards[1:], shards[1]], [*shards, shards[1]]):
        twice = run("merge", *parts, "-o", merged, "--force")
        assert twice.status == 2
        assert str(corpora[0]) in twice.err
    # A part of the same corpora in another order is of another run.
    other = tmp_path / "other.gguf"
    ok("profile", model, "-c", corpora[1], "-c", corpora[0], *text[4:], "-o", other, "--shard", "5/5")
    assert run("merge", *shards[:2], other, "-o", merged, "--force").status == 2


BAD_INPUT: list[tuple[str, str]] = [
    ("merge profile.gguf gemma-profile.gguf -o out.gguf", r"gemma-profile\.gguf"),
    ("merge profile.gguf other-profile.gguf -o out.gguf", r"other-profile\.gguf"),
    ("merge profile.gguf profile1.gguf -o profile1.gguf --force", r"profile1\.gguf.*input"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)
