"""Sweeps: what is found under a live mask is what the pruned file says, and the smallest keep is that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import coe_native as coe
from coe_native.corpus.in_memory import corpus_of
from coe_native.evaluation.perplexity import evaluate_masks
from coe_native.evaluation.sweep import default_keeps, sweep

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
