"""`coe-native specialise`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
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
from coe_native.cli.commands.specialise import command
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.options import ModelOptions
from coe_native.recipes import demo


@one_family
def test_specialise_runs_the_whole_pipeline(made: Made, tmp_path: Path) -> None:
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
    by_utility = shown["evaluation"]["other_methods"]["utility"][0]
    assert set(shown["evaluation"]["other_methods"]) == {"utility"}
    profile = coe.RoutingProfile.load(beside["profile.gguf"])
    mask = coe.build_mask(profile, 8, structural=False, method="utility")
    mask.save(tmp_path / "utility.json")
    judged = report("eval", parent, "--text", made.corpus, "--mask", tmp_path / "utility.json", *RUN)
    assert by_utility["perplexity"] == pytest.approx(judged["texts"][0]["perplexity"], rel=1e-9)
    done = ok("specialise", parent, *arguments, "--force", "--method", "utility")
    assert re.search("parent +live, utility +live, contribution +pruned", done.out)
    assert f"{parents['perplexity']:.3f}" in done.out
    assert f"{by_utility['perplexity']:.3f}" in done.out
    assert coe.ExpertMask.load(beside["mask.json"]).kept == mask.kept
    assert "verified" in done.err


@one_family
def test_specialise_compares_the_methods_that_its_profiles_support(made: Made, tmp_path: Path) -> None:
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
    assert re.search(r"routing\.gguf.*contribution", done.err)


BAD_INPUT: list[tuple[str, str]] = [
    ("specialise parent.gguf -c words.txt --keep 4 -o out.gguf", r"parent\.gguf.*tokenizer"),
    ("specialise parent.gguf -c tokens.npy --text short.npy --keep 4 -o out.gguf", r"short\.npy"),
    ("specialise zeroed.gguf -c tokens.npy --keep 4 -o out.gguf", r"zeroed\.gguf: .*zeroed"),
    ("specialise parent.gguf -c tokens.npy --keep 9 -o out.gguf", r"keep.*\b8\b.*\b9\b"),
    ("specialise parent.gguf -c tokens2.npy --keep 4 -o tokens2.npy --force", r"tokens2\.npy.*input"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


def test_parent_and_specialist_are_never_loaded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would have to fit into memory together."""
    open_model, loaded, beside = LoadedModel._open, [], []

    def watched(self: LoadedModel, options: ModelOptions) -> object:
        if not options.tokenizer_only:
            beside.append([model.moe.path.name for model in loaded if model._open_session is not None])
            loaded.append(self)
        return open_model(self, options)

    monkeypatch.setattr(LoadedModel, "_open", watched)
    text = tmp_path / "text.txt"
    text.write_text("def first(values):\n    return values[0]\n" * 80)
    line = (str(demo.MODEL), "-c", str(text), "--ctx", "256", "-o")
    for more in (("a.gguf", "--keep", "16"), ("b.gguf", "--fit", "30MiB", "--types", "Q4_0", "--fit-ctx", "256")):
        done = CliRunner().invoke(command, [*line, str(tmp_path / more[0]), *more[1:]])
        assert done.exit_code == 0, done.output
    assert len(beside) >= 6
    assert beside == [[]] * len(beside)
