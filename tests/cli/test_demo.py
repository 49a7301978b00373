"""`coe-native demo`: the shipped model and its specialists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.command_line import ok, report, run

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
