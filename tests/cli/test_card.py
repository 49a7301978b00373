"""`coe-native card`, and `coe-native verify --behaviour`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.command_line import TWO_THREADS, ok, run

import coe_native as coe
from coe_native.evaluation.attempts import Attempt, Results
from coe_native.recipes import demo


@pytest.fixture(scope="module")
def specialist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist of the demo's model, with its profile, mask, sweep and answers beside it."""
    directory = tmp_path_factory.mktemp("card")
    text = directory / "text.txt"
    text.write_text("def last(values):\n    return values[-1]\n" * 40)
    with coe.Model(demo.MODEL, n_threads=1) as model:
        profile = coe.profile(model, ["def first(values):\n    return values[0]\n" * 40])
        mask = coe.build_mask(profile, keep=16)
        sweep = coe.sweep(model, profile, {"own": coe.read_corpus(text)}, keeps=[8, 16])
    profile.save(directory / "profile.gguf")
    mask.save(directory / "mask.json")
    sweep.save(directory / "sweep.json")
    coe.prune(demo.MODEL, mask, directory / "specialist.gguf")
    with Results(directory / "code.jsonl", "run") as results:
        for number in range(20):
            difficulty = "easy" if number < 12 else "hard"
            results.add(Attempt(str(number), "", category=difficulty, passed=number < 9, result="", isolated=True))
    with Results(directory / "loops.jsonl", "run") as results:
        results.add(Attempt("1", "a" * 99, looping=True, period=1))
        results.add(Attempt("2", "b", looping=False))
    return directory / "specialist.gguf"


def test_a_card_has_what_is_known_and_lists_what_is_not(specialist: Path, tmp_path: Path) -> None:
    bare = ok("card", specialist).out
    assert "Not measured:" in bare
    for missing in ("humaneval", "loops", "sweep"):
        assert f"`coe-native {missing}" in bare
    beside = specialist.parent
    results = ("--runs", beside / "code.jsonl", "--runs", beside / "loops.jsonl", "--sweep", beside / "sweep.json")
    out = tmp_path / "README.md"
    ok("card", specialist, *results, "--profile", beside / "profile.gguf", "--base-model", "a/b", "-o", out)
    text = out.read_text()
    assert "Not measured" not in text
    assert "| code, all | 9 of 20 | 25.8% to 65.8% |" in text
    assert "| code, easy | 9 of 12 |" in text
    assert "| code, hard | 0 of 8 | 0.0% to 32.4% |" in text
    assert "| loops, all | 1 of 2 |" in text
    assert text.count("(this model)") == 1
    mask = coe.ExpertMask.load(beside / "mask.json")
    profile = coe.RoutingProfile.load(beside / "profile.gguf")
    for known in (mask.digest, profile.corpora[0].sha256, profile.fingerprint, "16384", "65536", "Safety"):
        assert known in text
    assert run("card", specialist, "-o", out).status == 2


def test_hugging_face_reads_the_front_matter(specialist: Path) -> None:
    card = ModelCard(ok("card", specialist, "--base-model", "owner/na-me_1.5").out)
    data = card.data.to_dict()
    assert data["base_model"] == ["owner/na-me_1.5"]
    assert data["library_name"] == "llama.cpp"
    assert data["quantization"] == "Q8_0"
    assert {"gguf", "moe", "expert-pruning", "coe-native"} <= set(data["tags"])
    assert card.text.lstrip().startswith("# ")
    parent = ModelCard(ok("card", demo.MODEL).out)
    assert "expert-pruning" not in parent.data.to_dict()["tags"]
    assert "Safety" not in parent.text


def test_results_that_do_not_belong_are_refused(specialist: Path, tmp_path: Path) -> None:
    (tmp_path / "unjudged.jsonl").write_text('{"task_id": "1", "completion": ""}\n')
    refused = run("card", specialist, "--runs", tmp_path / "unjudged.jsonl")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "judged" in refused.err
    other = json.loads((specialist.parent / "sweep.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(other | {"fingerprint": "0" * 64}))
    refused = run("card", specialist, "--sweep", tmp_path / "other.json")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "other.json" in refused.err


def test_verification_fails_if_too_many_answers_loop(specialist: Path) -> None:
    prompts = specialist.with_name("prompts.txt")
    prompts.write_text("def first(values):\nclass A:\n")
    line = ("verify", specialist, "--parent", demo.MODEL, "--mask", specialist.with_name("mask.json"), "--json")
    asked = ("--behaviour", prompts, "--raw", "--max-tokens", 150, "--ctx", 512, *TWO_THREADS)
    failed = run(*line, *asked, "--max-loops", 0)
    assert failed.status == 1
    told = json.loads(failed.out)
    assert [check["name"] for check in told["checks"] if not check["passed"]] == ["few answers loop"]
    passed = json.loads(ok(*line, *asked, "--max-loops", 100).out)
    assert passed["checks"][-1]["name"] == "few answers loop"
