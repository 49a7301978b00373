"""`coe-native demo`: the shipped model and its specialists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import ok, report, run

import coe_native as coe
from coe_native.recipes import demo


def test_inputs_only_copies_the_model_and_the_texts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = [Path(path) for path in report("demo", "--inputs-only", "-o", out)["files"]]
    assert {path.name for path in files} == {path.name for path in out.iterdir()}
    assert out / "demo-Q8_0.gguf" in files
    assert all(path.read_bytes() == (demo.DATA / path.name).read_bytes() for path in files)
    assert run("demo", "--inputs-only", "-o", out).status == 2
    ok("demo", "--inputs-only", "-o", out, "--force")
    file = out / "cpp.test.jsonl"
    refused = run("demo", "--inputs-only", "-o", file)
    assert refused.status == 2
    assert str(file) in refused.err


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The demo, run once through its command line."""
    directory = tmp_path_factory.mktemp("demo")
    command = [Path(sys.executable).with_name("coe-native"), "demo", "-o", directory / "out", "--json"]
    run = subprocess.run(list(map(str, command)), cwd=directory, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return directory / "out", json.loads(run.stdout)


@pytest.mark.slow
def test_each_specialist_is_best_at_its_own_kind(demo_run: tuple[Path, dict[str, object]]) -> None:
    """The point of it all: far less is lost on the text that chose the experts than on the others."""
    _, result = demo_run
    parent = {e["text"]: e["perplexity"] for e in result["parent"]["evaluation"]}
    for kind, specialist in result["specialists"].items():
        losses = {e["text"]: e["perplexity"] / parent[e["text"]] - 1 for e in specialist["pruned"]}
        others = [loss for text, loss in losses.items() if text != kind]
        assert losses[kind] < 0.5 * min(others), (kind, losses)
        assert specialist["bytes"] < 0.7 * result["parent"]["bytes"]
        assert all(check["passed"] for check in specialist["checks"])


@pytest.mark.slow
def test_experts_that_contribute_are_worth_more(demo_run: tuple[Path, dict[str, object]]) -> None:
    """Kept by how much they add to the layer's output, experts lose less than by how much they were asked."""
    _, result = demo_run
    for kind, specialist in result["specialists"].items():
        assert specialist["method"] == "contribution"
        perplexity = {
            method: next(e["perplexity"] for e in evaluations if e["text"] == kind)
            for method, evaluations in (
                (specialist["method"], specialist["live_masked"]),
                *specialist["other_methods"].items(),
            )
        }
        assert set(perplexity) == {"utility", "contribution"}
        assert perplexity["contribution"] < perplexity["utility"], (kind, perplexity)


@pytest.mark.slow
def test_pruned_equals_live_masked(demo_run: tuple[Path, dict[str, object]]) -> None:
    """Quantised weights let a last bit grow, hence a tolerance; what the masks change is far more."""
    for specialist in demo_run[1]["specialists"].values():
        for live, pruned in zip(specialist["live_masked"], specialist["pruned"], strict=True):
            assert pruned["perplexity"] == pytest.approx(live["perplexity"], rel=2e-3)


@pytest.mark.slow
def test_the_demo_leaves_what_it_says(demo_run: tuple[Path, dict[str, object]]) -> None:
    directory, _ = demo_run
    for kind in demo.KINDS:
        stem = f"{kind}-specialist"
        mask = coe.ExpertMask.load(directory / f"{stem}.mask.json")
        profile = coe.RoutingProfile.load(directory / f"{stem}.profile.gguf")
        assert coe.build_mask(profile, 16).kept == mask.kept
        assert profile.corpora[0].sha256 == demo.corpus(kind, "profile").sha256
        report = json.loads((directory / f"{stem}.report.json").read_text())
        assert report["mask"] == mask.digest
        assert all(check.passed for check in coe.verify(directory / f"{stem}.gguf", demo.MODEL, mask))
    assert len(list(directory.iterdir())) == 12


@pytest.mark.slow
def test_the_demo_asks_before_it_overwrites(demo_run: tuple[Path, dict[str, object]]) -> None:
    with pytest.raises(coe.InputError, match=r"python-specialist\.gguf"):
        demo.run(demo_run[0])
