"""The README's first command in a fresh clone: what the demo prints, what it leaves, and what its figures say.

In one file, because the command runs once for all tests of a file.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.documentation import blocks, same_output
from support.first_command import FirstRun

import coe_native as coe
from coe_native.recipes import demo

pytestmark = [pytest.mark.docs, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


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


def test_pruned_equals_live_masked(first_run: FirstRun) -> None:
    """Quantised weights let a last bit grow, hence a tolerance; what the masks change is far more."""
    for beside in first_run.reports.values():
        evaluation = beside["evaluation"]
        for live, pruned in zip(evaluation["live_masked"], evaluation["pruned"], strict=True):
            assert pruned["perplexity"] == pytest.approx(live["perplexity"], rel=2e-3)


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


def test_the_demo_asks_before_it_overwrites(first_run: FirstRun) -> None:
    with pytest.raises(coe.InputError, match=r"python-specialist\.gguf"):
        demo.run(first_run.directory)


def test_its_first_command_works_in_a_fresh_clone_and_prints_the_figures_of_the_pages(first_run: FirstRun) -> None:
    assert len(list(first_run.directory.glob("*-specialist.gguf"))) == 3
    (block,) = blocks((ROOT / "docs" / "benchmarks" / "quality.md").read_text(encoding="utf-8"))
    (command,) = block.commands()
    table = first_run.printed[first_run.printed.index(command.output[0]) :]  # pip's messages come before it
    assert same_output(command.output, table), "\n".join(table)
    lost = [re.findall(r"\+[\d.]+(?=%)", line) for line in table if "contribution, live" in line]
    text = README.read_text(encoding="utf-8")
    named = [re.findall(r"\+\d+(?= %)", line) for line in text.splitlines() if re.match(r"\| .* MB \|$", line)]
    assert named == [[f"{float(loss):+.0f}" for loss in losses] for losses in lost]
