"""The search for the specialist that loses least: what it writes is what brute force finds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.command_line import refuse

import coe_native as coe
from coe_native.corpus.in_memory import corpus_of
from coe_native.llama.options import ModelOptions
from coe_native.model.header import ModelHeader
from coe_native.profiling.imatrix import InputWatcher
from coe_native.recipes import demo
from coe_native.recipes.candidates import find_candidates
from coe_native.recipes.search import Found, Goal, Protected, specialise_to_goal
from coe_native.recipes.specialise import Watchers

OPTIONS = ModelOptions(n_ctx=256, n_batch=256, n_threads=2)
USE = ModelOptions(n_ctx=2048, n_batch=512, n_threads=2)
TYPES = ("Q4_0", "Q3_K_M", "IQ3_XXS", "Q2_K")
MIB = 1 << 20


def texts(kind: str, part: str, count: int) -> coe.Corpus:
    lines = (demo.DATA / f"{kind}.{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return corpus_of([json.loads(line)["text"][:4000] for line in lines[:count]], kind)


@pytest.fixture(scope="module")
def calibration() -> coe.Corpus:
    return texts("python", "profile", 8)


@pytest.fixture(scope="module")
def held_out() -> coe.Corpus:
    return texts("python", "test", 3)


def find(
    out: Path, calibration: coe.Corpus, held_out: coe.Corpus, goal: Goal, types: Sequence[str], **options: object
) -> Found:
    files = options.pop("files", [ModelHeader(demo.MODEL)])
    return specialise_to_goal(
        files,  # type: ignore[arg-type]
        OPTIONS,
        [calibration],
        out,
        texts=[held_out],
        goal=goal,
        types=types,
        **options,  # type: ignore[arg-type]
    )


def perplexity(path: Path, text: coe.Corpus, mask: coe.ExpertMask | None = None) -> float:
    with coe.Model(path, OPTIONS) as model:
        if mask is not None:
            model.apply(mask)
        return coe.evaluate(model, text).perplexity


@pytest.mark.slow
def test_the_least_loss_that_fits_is_what_brute_force_finds(
    tmp_path: Path, calibration: coe.Corpus, held_out: coe.Corpus
) -> None:
    """Every file and type with every number of experts: quantised, judged, and its memory planned."""
    limit = 21 * MIB
    said: list[str] = []
    out = tmp_path / "out.gguf"
    found = find(out, calibration, held_out, Goal(fit_bytes=limit, use=USE), TYPES, note=said.append)
    with coe.Model(demo.MODEL, OPTIONS, n_sequences=16) as model:
        inputs = InputWatcher()
        profile = coe.profile_corpora(model, [calibration], inputs=inputs)
        parent = coe.evaluate(model, held_out).perplexity
    work = tmp_path / "work"
    work.mkdir()
    inputs.imatrix.save(work / "im.gguf")
    best = (float("inf"), "", 0)
    for name in ("", *TYPES):
        path = demo.MODEL
        if name:
            path = coe.quantize(
                demo.MODEL, coe.QuantizeOptions(name), work / f"{name}.gguf", imatrix=work / "im.gguf"
            )
        moe = ModelHeader(path)
        fits = [keep for keep in moe.possible_keeps if coe.memory_of(moe, keep, USE).total <= limit]
        if not fits:
            continue
        mask = None if max(fits) == 32 else coe.build_mask(profile, max(fits))
        loss = perplexity(path, held_out, mask) / parent - 1
        best = min(best, (loss, name, max(fits)))
    chosen = found.chosen
    assert (chosen.candidate.file_type or "", chosen.candidate.keep) == best[1:]
    assert chosen.losses[0] == pytest.approx(best[0], abs=1e-6)
    assert coe.memory_of(ModelHeader(out), chosen.candidate.keep, USE).total <= limit
    assert perplexity(out, held_out) == pytest.approx(found.written[0].perplexity, rel=1e-9)
    assert found.written[0].perplexity == pytest.approx(chosen.evaluations[0].perplexity, rel=1e-3)
    assert all(check.passed for check in found.checks)
    assert any("temp" in line or "removed at the end" in line for line in said)
    kinds = {"gguf", "profile.gguf", "report.json"}
    kinds |= {"imatrix.gguf"} if chosen.candidate.file_type else set()
    kinds |= {"mask.json"} if chosen.mask is not None else set()
    work_files = {path.name for path in tmp_path.iterdir()} - {"work"}
    assert work_files == {f"out.{kind}" for kind in kinds}
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert [point["chosen"] for point in report["points"]].count(True) == 1
    # Those that were not judged are beaten by one that was.
    judged = {trial.candidate.name for trial in found.trials}
    assert judged | {candidate.name for candidate in found.skipped} == {demo.MODEL.name, *TYPES}


def test_a_type_with_a_number_of_experts_is_what_the_steps_write(
    tmp_path: Path, calibration: coe.Corpus, held_out: coe.Corpus
) -> None:
    out = tmp_path / "out.gguf"
    found = find(out, calibration, held_out, Goal(keep=12), ["Q4_K_M"], only_types=True)
    mask = coe.ExpertMask.load(tmp_path / "out.mask.json")
    assert found.chosen.mask == mask
    whole = coe.quantize(
        demo.MODEL, coe.QuantizeOptions("Q4_K_M"), tmp_path / "q.gguf", imatrix=tmp_path / "out.imatrix.gguf"
    )
    by_steps = coe.prune(whole, mask, tmp_path / "steps.gguf")
    tensors = [ModelHeader(path).tensors for path in (out, by_steps)]
    assert list(tensors[0]) == list(tensors[1])
    with out.open("rb") as ours, by_steps.open("rb") as theirs:
        for name, tensor in tensors[0].items():
            ours.seek(tensor.offset)
            theirs.seek(tensors[1][name].offset)
            assert ours.read(tensor.n_bytes) == theirs.read(tensor.n_bytes), name
    assert [check.name for check in found.checks][-1] == "as judged"


@pytest.mark.slow
def test_the_smallest_that_keeps_all_bounds_is_written(
    tmp_path: Path, calibration: coe.Corpus, held_out: coe.Corpus
) -> None:
    prose = texts("prose", "test", 4)
    goal = Goal(max_loss=0.10, protected=(Protected("prose", prose, 0.15),))
    found = find(tmp_path / "out.gguf", calibration, held_out, goal, ("Q3_K_M",))
    assert found.chosen.excess <= 0
    assert found.chosen.candidate.file_type == "Q3_K_M", "with fewer bits it is smaller"
    assert found.chosen.losses[0] <= 0.10
    assert found.chosen.losses[1] <= 0.15
    written = [
        evaluation.loss(parent) for evaluation, parent in zip(found.written, found.judged_parent, strict=True)
    ]
    assert written == pytest.approx(found.chosen.losses, abs=5e-3)
    smaller = [trial for trial in found.trials if trial.candidate.n_bytes < found.chosen.candidate.n_bytes]
    assert smaller
    assert all(trial.excess > 0 for trial in smaller)
    # Without the bound on prose, fewer experts are enough.
    alone = find(tmp_path / "alone.gguf", calibration, held_out, Goal(max_loss=0.10), ("Q3_K_M",))
    assert alone.chosen.candidate.keep <= found.chosen.candidate.keep
    with pytest.raises(
        coe.CoeError, match=r"the best, .* loses .*% on prose, which may lose 0\.0%; allow .*% more"
    ):
        find(
            tmp_path / "none.gguf",
            calibration,
            held_out,
            Goal(fit_bytes=21 * MIB, use=USE, protected=(Protected("prose", prose, 0.0001),)),
            (),
        )
    assert not list(tmp_path.glob("none*"))


def test_what_cannot_win_is_skipped_and_says_why(tmp_path: Path) -> None:
    parent = ModelHeader(demo.MODEL)
    given = ModelHeader(coe.quantize(demo.MODEL, coe.QuantizeOptions("Q4_0"), tmp_path / "mine.gguf"))
    found = find_candidates([given, parent], ["F16", "Q4_0", "Q4_K_M", "Q2_K"], fit_bytes=64 * MIB, use=USE)
    reasons = {candidate.name: candidate.skipped for candidate in found}
    assert reasons[parent.path.name] == ""
    assert "not smaller" in reasons["F16"]
    assert "mine.gguf has this type" in reasons["Q4_0"]
    for name in ("mine.gguf", "Q4_K_M", "Q2_K"):
        assert "all experts fit with demo-Q8_0.gguf, which has more bits" in reasons[name]
    tight = {c.name: c for c in find_candidates([parent], ["Q2_K"], fit_bytes=17 * MIB, use=USE)}
    assert "does not fit" in tight[parent.path.name].skipped
    assert not tight["Q2_K"].skipped
    for candidate in find_candidates([parent], ["Q5_K_M", "Q3_K_M"], fit_bytes=20 * MIB, use=USE):
        pruned = coe.memory_of(parent, candidate.keep, USE, types=candidate.types).total
        assert candidate.memory == pruned <= 20 * MIB
        more = next(keep for keep in parent.possible_keeps if keep > candidate.keep)
        assert coe.memory_of(parent, more, USE, types=candidate.types).total > 20 * MIB


def test_an_interruption_leaves_nothing(tmp_path: Path, calibration: coe.Corpus, held_out: coe.Corpus) -> None:
    def stop(step: str) -> None:
        if step == "judging Q3_K_M":
            assert list(tmp_path.glob(".out.gguf.*/Q3_K_M.gguf"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(
            tmp_path / "out.gguf",
            calibration,
            held_out,
            Goal(fit_bytes=20 * MIB, use=USE),
            ["Q3_K_M"],
            watchers=Watchers(step=stop),
        )
    assert not list(tmp_path.iterdir())


def test_files_of_other_models_are_refused(
    tmp_path: Path, calibration: coe.Corpus, held_out: coe.Corpus, model_file: Callable[[str, str], Path]
) -> None:
    other, parent = ModelHeader(model_file("gemma4", "Q8_0")), ModelHeader(demo.MODEL)
    goal = Goal(fit_bytes=64 * MIB, use=USE)
    for files, said in (([parent, other], "another model"), ([parent, parent], "given twice")):
        with pytest.raises(coe.InputError, match=said):
            find(tmp_path / "out.gguf", calibration, held_out, goal, (), files=files)
    assert not list(tmp_path.iterdir())


def test_nothing_of_a_replaced_specialist_stays(
    tmp_path: Path, calibration: coe.Corpus, held_out: coe.Corpus
) -> None:
    out = tmp_path / "out.gguf"
    find(out, calibration, held_out, Goal(keep=12), ["Q4_0"], only_types=True)
    assert (tmp_path / "out.mask.json").exists()
    whole = find(out, calibration, held_out, Goal(fit_bytes=64 * MIB, use=USE), (), force=True)
    assert whole.chosen.mask is None
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf", "out.profile.gguf", "out.report.json"}
    assert json.loads((tmp_path / "out.report.json").read_text())["notice"] == ""
    assert all(check.passed for check in coe.verify(out, demo.MODEL, None))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--keep 4 --fit 1GiB", "not both"),
        ("--type Q4_0", "how large"),
        ("--fit 1GiB --types Q4_0 --type Q4_0", "--types"),
        ("--keep 4 --types Q4_0", "--types"),
        ("--fit 1GiB --types Q4_0,,", "Q4_0,,"),
        ("--fit 1GiB --types Q4_X", "Q4_X"),
        ("--fit 2MiB --types none", "nothing fits"),
        ("--protect prose=t.txt", "3%"),
        ("--protect prose=t.txt:much", "much"),
        ("--protect prose=nothing.txt:3%", r"nothing\.txt"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: str, said: str) -> None:
    (tmp_path / "t.txt").write_text("words " * 200, encoding="utf-8")
    line = ["specialise", demo.MODEL, "-c", "t.txt", "-o", "out.gguf", *options.split()]
    done = refuse(tmp_path, *line)
    assert done.status == 2
    assert re.search(said, done.err), done.err
