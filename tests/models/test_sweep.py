"""Sweeps: what is found under a live mask is what the pruned file says, and the smallest keep is that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe
from coe_native.corpus.in_memory import corpus_of
from coe_native.evaluation.perplexity import evaluate_masks
from coe_native.evaluation.sweep import ALL_EXPERTS, default_keeps, frontier, sweep, sweep_files
from coe_native.evaluation.sweep_checkpoint import SweepCheckpoint

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]
OPTIONS = {"n_ctx": 64, "n_batch": 64, "n_threads": 1}


@pytest.mark.parametrize("family", ["qwen3moe", "gemma4", "deepseek2"])
def test_each_point_is_the_pruned_file(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]], family: str
) -> None:
    parent, profile = model_file(family, "F32"), profile_of(family, "F32")
    texts = {"own": corpus_of(documents[:4]), "other": corpus_of(documents[4:])}
    keeps = [keep for keep in coe.MoeModel(parent).possible_keeps if keep % 4 == 0][:2]
    with coe.Model(parent, **OPTIONS) as model:
        told: list[float] = []
        found = sweep(
            model,
            profile,
            texts,
            keeps=[*keeps[::-1], keeps[0]],
            methods=["frequency", "utility", "utility"],
            passes=coe.PassOptions(structural=False),
            progress=lambda progress: told.append(progress.tokens / progress.total),
        )
        assert model.mask is None
        plain = [coe.evaluate(model, text) for text in texts.values()]
        assert told == sorted(told)
        assert told[-1] == 1
        assert [evaluation.perplexity for evaluation in found.parent] == [e.perplexity for e in plain]
        assert [(point.method, point.keep) for point in found.points] == [
            (method, keep) for method in ("frequency", "utility") for keep in keeps
        ]
        for point in found.points:
            mask = coe.build_mask(profile, point.keep, method=point.method, structural=False)
            assert point.mask == mask.digest
            out = coe.prune(parent, mask, tmp_path / "out.gguf", force=True)
            assert point.n_bytes == pytest.approx(out.stat().st_size, rel=0.02)
            with coe.Model(out, **OPTIONS) as pruned:
                for evaluation, (name, text) in zip(point.evaluations, texts.items(), strict=True):
                    written = coe.evaluate(pruned, text, reference=model)
                    assert evaluation.text == name
                    assert evaluation.perplexity == pytest.approx(written.perplexity, rel=1e-3)
                    assert evaluation.kl_divergence == pytest.approx(written.kl_divergence, rel=1e-2, abs=1e-5)
                    assert evaluation.kl_divergence > 1e-4, "a mask that changes nothing says nothing"


def test_masks_judged_together_score_as_alone(
    model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    """With batches shorter than a window too: outputs of its second half come from several batches."""
    text, profile = corpus_of(documents), profile_of("olmoe")
    masks = [coe.build_mask(profile, keep) for keep in (6, 10)]
    path = model_file("olmoe", "F32")
    for n_batch in (64, 20):
        with (
            coe.Model(path, n_ctx=64, n_batch=n_batch, n_threads=1) as model,
            coe.Model(path, n_ctx=64, n_batch=n_batch, n_threads=1) as reference,
        ):
            parent, judged = evaluate_masks(model, text, masks)
            assert parent == coe.evaluate(model, text)
            for mask, evaluation in zip(masks, judged, strict=True):
                model.apply(mask)
                assert evaluation == coe.evaluate(model, text, reference=reference)


def test_several_files_are_compared_with_the_reference(
    model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    """Each point is what `evaluate` says of the file under the mask, with the same reference."""
    files = [model_file("qwen3moe", name) for name in ("Q4_K_M", "Q8_0")]
    reference, profile = model_file("qwen3moe", "F32"), profile_of("qwen3moe", "F32")
    texts = {"own": corpus_of(documents[:4]), "other": corpus_of(documents[4:])}
    options = coe.ModelOptions(**OPTIONS)
    told: list[tuple[int, int]] = []
    for base in (reference, None):
        found = sweep_files(
            *(files, options, profile, texts),
            keeps=[8, 12, 16],
            reference=base,
            progress=lambda progress: told.append((progress.tokens, progress.total)),
        )
        assert told[-1][0] == told[-1][1]
        judged_by = reference if base is not None else files[1]
        assert found.n_bytes == judged_by.stat().st_size
        assert [(point.model, point.keep) for point in found.points] == [
            (file.name, keep) for file in files for keep in (16, 8, 12)
        ]
        with coe.Model(judged_by, **OPTIONS) as unmasked:
            assert [e.perplexity for e in found.parent] == [
                coe.evaluate(unmasked, t).perplexity for t in texts.values()
            ]
            assert all(evaluation.kl_divergence is None for evaluation in found.parent)
            for point in found.points:
                (path,) = (file for file in files if file.name == point.model)
                with coe.Model(path, **OPTIONS) as model:
                    if point.method != ALL_EXPERTS:
                        model.apply(coe.build_mask(profile, point.keep))
                    for evaluation, text in zip(point.evaluations, texts.values(), strict=True):
                        expected = coe.evaluate(model, text, reference=unmasked)
                        assert evaluation.perplexity == pytest.approx(expected.perplexity, rel=1e-9)
                        if judged_by.name == point.model and point.method == ALL_EXPERTS:
                            assert evaluation.kl_divergence is None
                        else:
                            assert evaluation.kl_divergence == pytest.approx(
                                expected.kl_divergence, rel=1e-6, abs=1e-9
                            )
        sizes = [(point.n_bytes, found.losses(point)[0]) for point in found.points]
        assert [point.frontier for point in found.points] == frontier(sizes)


def test_without_memory_for_two_models_there_are_no_divergences(
    monkeypatch: pytest.MonkeyPatch, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    monkeypatch.setattr("coe_native.evaluation.sweep.fit_side_by_side", lambda *_: False)
    files = [model_file("qwen3moe", name) for name in ("Q4_K_M", "Q8_0")]
    texts = {"own": corpus_of(documents)}
    found = sweep_files(files, coe.ModelOptions(**OPTIONS), profile_of("qwen3moe"), texts, keeps=[8])
    divergences = [point.evaluations[0].kl_divergence for point in found.points]
    assert divergences[:3] == [None, None, None]
    assert divergences[3] is not None
    with coe.Model(files[0], **OPTIONS) as model:
        expected = coe.evaluate(model, texts["own"]).perplexity
    assert found.points[0].evaluations[0].perplexity == pytest.approx(expected, rel=1e-9)


def test_files_of_other_models_and_the_same_name_are_refused(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    texts, options = {"own": corpus_of(documents)}, coe.ModelOptions(**OPTIONS)
    own, other = model_file("qwen3moe", "Q8_0"), model_file("olmoe", "Q8_0")
    with pytest.raises(coe.InputError, match="olmoe"):
        sweep_files([own, other], options, profile_of("qwen3moe"), texts, keeps=[8])
    copied, link = tmp_path / own.name, tmp_path / "link.gguf"
    copied.write_bytes(own.read_bytes())
    link.symlink_to(own)
    for second, said in ((copied, "two of the files"), (link, "given twice")):
        with pytest.raises(coe.InputError, match=said):
            sweep_files([own, second], options, profile_of("qwen3moe"), texts, keeps=[8])


@pytest.mark.parametrize("stop_after", [1, 3, 6, 9])
def test_an_interrupted_sweep_ends_as_it_would_have(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]], stop_after: int
) -> None:
    files = [model_file("qwen3moe", name) for name in ("Q4_K_M", "Q8_0")]
    profile, options = profile_of("qwen3moe"), coe.ModelOptions(**OPTIONS)
    texts = {"own": corpus_of(documents[:4]), "other": corpus_of(documents[4:])}
    whole = sweep_files(files, options, profile, texts, keeps=[8])
    output = tmp_path / "s.json"

    def run(checkpoint: SweepCheckpoint, keeps: list[int]) -> coe.Sweep:
        return sweep_files(files, options, profile, texts, keeps=keeps, checkpoint=checkpoint)

    class Stopping(SweepCheckpoint):
        def _offer(self) -> None:
            if self.n_windows == stop_after:
                self.save()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Stopping(output), [8])
    with pytest.raises(coe.InputError, match="interrupted sweep"):
        SweepCheckpoint(output)
    with pytest.raises(coe.InputError, match="other masks"):
        run(SweepCheckpoint(output, resume=True), [9])
    # An interruption of the second run keeps what the first has left of later parts.
    again = SweepCheckpoint(output, resume=True)
    again.begin(json.loads(bytes(np.load(again.path)["run"])), True)
    before = set(np.load(again.path).files)
    again.save()
    assert set(np.load(again.path).files) == before
    resumed = SweepCheckpoint(output, resume=True)
    assert run(resumed, [8]) == whole
    resumed.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "lengths", "missing", "one array", "complex", "texts"])
def test_damaged_checkpoints_are_refused(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]], damage: str
) -> None:
    output = tmp_path / "s.json"
    texts = {"own": corpus_of(documents)}
    with coe.Model(model_file("olmoe", "F32"), **OPTIONS) as model:
        checkpoint = SweepCheckpoint(output)
        sweep(model, profile_of("olmoe"), texts, keeps=[8], checkpoint=checkpoint)
        checkpoint.save()
        path = checkpoint.path
        arrays = dict(np.load(path))
        data = path.read_bytes()
        if damage == "lengths":
            arrays["0.0/lengths"] = arrays["0.0/lengths"] + 1
        if damage in ("complex", "texts"):
            kind = np.complex128 if damage == "complex" else np.str_
            arrays["0.0/1/divergences"] = arrays["0.0/1/divergences"].astype(kind)
        if damage == "missing":
            del arrays["0.0/1/log_probabilities"]
        changed = {"empty": b"", "text": b"words", "cut": data[: len(data) // 2]}.get(damage)
        if changed is None:
            with path.open("wb") as file:
                if damage == "one array":
                    np.save(file, arrays["run"])
                else:
                    np.savez(file, **arrays)
        else:
            path.write_bytes(changed)
        with pytest.raises(coe.InputError, match=r"s\.json\.checkpoint: .*damaged"):
            sweep(
                *(model, profile_of("olmoe"), texts),
                keeps=[8],
                checkpoint=SweepCheckpoint(output, resume=True),
            )


def test_default_keeps_can_be_cut(model_file: ModelFile) -> None:
    moe = coe.MoeModel(model_file("deepseek2", "F32"))
    keeps = default_keeps(moe)
    assert keeps
    for keep in keeps:
        moe.check_cut(keep)


def test_an_impossible_mask_is_refused_before_the_sweep(
    model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    told: list[object] = []
    with coe.Model(model_file("olmoe", "F32"), **OPTIONS) as model:
        for profile, keep in ((profile_of("olmoe"), 2), (profile_of("llama"), 8)):
            with pytest.raises(coe.InputError):
                sweep(model, profile, {"own": corpus_of(documents)}, keeps=[12, keep], progress=told.append)
    assert not told
