"""`coe-native demo`: the shipped model and its specialists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.command_line import ok, report, run
from support.first_command import FirstRun

import coe_native as coe
from coe_native.cli import group
from coe_native.evaluation.perplexity import Evaluation
from coe_native.recipes import demo
from coe_native.recipes.specialise import Specialist


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


together = pytest.mark.xdist_group("demo")
"""One process runs the demo for all of these tests."""


@together
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_specialist_is_best_at_its_own_kind(first_run: FirstRun) -> None:
    """The point of it all: far less is lost on the text that chose the experts than on the others."""
    assert set(first_run.reports) == set(demo.KINDS)
    for kind, beside in first_run.reports.items():
        evaluation = beside["evaluation"]
        parent = {e["text"]: e["perplexity"] for e in evaluation["parent"]}
        losses = {e["text"]: e["perplexity"] / parent[e["text"]] - 1 for e in evaluation["pruned"]}
        others = [loss for text, loss in losses.items() if text != kind]
        assert losses[kind] < 0.5 * min(others), (kind, losses)
        assert beside["specialist_bytes"] < 0.7 * beside["parent_bytes"]
        assert all(check["passed"] for check in beside["checks"])


@together
@pytest.mark.slow
def test_experts_that_contribute_are_worth_more(first_run: FirstRun) -> None:
    """Kept by how much they add to the layer's output, experts lose less than by how much they were asked."""
    for kind, beside in first_run.reports.items():
        evaluation = beside["evaluation"]
        assert beside["provenance"]["method"] == "contribution"
        perplexity = {
            method: next(e["perplexity"] for e in evaluations if e["text"] == kind)
            for method, evaluations in (
                ("contribution", evaluation["live_masked"]),
                *evaluation["other_methods"].items(),
            )
        }
        assert set(perplexity) == {"utility", "contribution"}
        assert perplexity["contribution"] < perplexity["utility"], (kind, perplexity)


@together
@pytest.mark.slow
def test_pruned_equals_live_masked(first_run: FirstRun) -> None:
    """Quantised weights let a last bit grow, hence a tolerance; what the masks change is far more."""
    for beside in first_run.reports.values():
        evaluation = beside["evaluation"]
        for live, pruned in zip(evaluation["live_masked"], evaluation["pruned"], strict=True):
            assert pruned["perplexity"] == pytest.approx(live["perplexity"], rel=2e-3)


@together
@pytest.mark.slow
def test_the_demo_leaves_what_it_says(first_run: FirstRun) -> None:
    directory = first_run.directory
    for kind in demo.KINDS:
        stem = f"{kind}-specialist"
        mask = coe.ExpertMask.load(directory / f"{stem}.mask.json")
        profile = coe.RoutingProfile.load(directory / f"{stem}.profile.gguf")
        assert coe.build_mask(profile, 16).kept == mask.kept
        assert profile.corpora[0].sha256 == demo.corpus(kind, "profile").sha256
        assert first_run.reports[kind]["mask"] == mask.digest
        assert all(check.passed for check in coe.verify(directory / f"{stem}.gguf", demo.MODEL, mask))
    assert len(list(directory.iterdir())) == 12


@together
@pytest.mark.slow
def test_the_demo_asks_before_it_overwrites(first_run: FirstRun) -> None:
    with pytest.raises(coe.InputError, match=r"python-specialist\.gguf"):
        demo.run(first_run.directory)


def evaluation(text: str, perplexity: float) -> Evaluation:
    return Evaluation(text=text, n_scored=9, perplexity=perplexity, error=0.1)


def test_the_report_for_programs_has_what_the_table_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With figures of our own, so that nothing is computed."""
    path = tmp_path / "python-specialist.gguf"
    path.write_bytes(b"12345")
    mask = coe.ExpertMask("gemma4", "0" * 64, 32, 16, {0: tuple(range(16))}, provenance={"method": "contribution"})
    figures = {
        name: tuple(evaluation(kind, perplexity + at) for at, kind in enumerate(demo.KINDS))
        for name, perplexity in (("parent", 10.0), ("live", 11.0), ("pruned", 12.0), ("utility", 13.0))
    }
    specialist = Specialist(
        path=path,
        mask=mask,
        checks=(coe.Check("bytes", True, "equal"),),
        parent=figures["parent"],
        live_masked=figures["live"],
        pruned=figures["pruned"],
        other_methods={"utility": figures["utility"]},
    )
    monkeypatch.setattr(
        demo, "run", lambda *_, **__: demo.Demo(99_000_000, figures["parent"], {"python": specialist})
    )
    told = json.loads(CliRunner().invoke(group, ["demo", "-o", str(tmp_path), "--json"]).stdout)
    assert told["parent"]["bytes"] == 99_000_000
    found = told["specialists"]["python"]
    assert (found["bytes"], found["method"], found["checks"][0]["passed"]) == (5, "contribution", True)
    assert [e["perplexity"] for e in found["pruned"]] == [12.0, 13.0, 14.0]
    assert [e["perplexity"] for e in found["other_methods"]["utility"]] == [13.0, 14.0, 15.0]
    table = CliRunner().invoke(group, ["demo", "-o", str(tmp_path)]).stdout
    shown = [float(number) for number in re.findall(r"\d+\.\d\d(?= +[+-])", table)]
    assert shown == [11, 12, 13, 12, 13, 14, 13, 14, 15], table
    assert "+10.0%" in table
