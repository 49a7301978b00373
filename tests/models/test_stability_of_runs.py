"""Runs that end when their mask is stable, also after interruptions."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe
from coe_native.corpus import bundles as bundles_module
from coe_native.corpus.bundles import bundles
from coe_native.corpus.in_memory import corpus_of
from coe_native.masks import stability as stability_module
from coe_native.masks.options import MaskOptions
from coe_native.masks.stability import Stability
from coe_native.profiling.checkpoint import Checkpoint
from coe_native.profiling.run import Progress

ModelFile = Callable[[str, str], Path]
KEEP = MaskOptions(keep=8)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and bundles for texts of some hundred tokens."""
    monkeypatch.setattr(stability_module, "FIRST", 200)
    monkeypatch.setattr(bundles_module, "SHUFFLED_BUNDLE_SIZE", 800)


@pytest.fixture
def many() -> list[list[int]]:
    generator = np.random.default_rng(4)
    return [generator.integers(0, 256, length).tolist() for length in generator.integers(10, 90, 80)]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("family", ["qwen3moe", "deepseek2"])
def test_a_run_ends_when_the_mask_is_stable(model_file: ModelFile, many: list[list[int]], family: str) -> None:
    """Brute force: the run again, up to each look, and the masks of what it had counted."""
    with coe.Model(model_file(family, "F32"), n_ctx=64, n_batch=64, n_threads=1) as model:
        until = Stability(0.8, KEEP)
        profile = coe.profile_corpora(model, [corpus_of(many)], until=until)
        assert until.stable
        assert profile.n_tokens == until.curve[-1].tokens < sum(map(len, many))
        everything = Stability(1.0, KEEP)
        everything.threshold = 1.1  # no agreement is enough
        coe.profile_corpora(model, [corpus_of(many)], until=everything)
    assert not everything.stable
    assert everything.curve[: len(until.curve)] == until.curve
    lengths = [look.tokens for look in everything.curve]
    masks = [
        {block: set(kept) for block, kept in coe.build_mask(partial, KEEP.keep).kept.items()}
        for partial in _profiles_up_to(lengths, model_file(family, "F32"), many)
    ]
    for i, look in enumerate(everything.curve):
        for share, found in ((0.25, look.quarter), (0.5, look.half), (0.75, look.three_quarters)):
            if share * look.tokens < lengths[0]:
                assert found is None
                continue
            nearest = min(range(i), key=lambda j: abs(lengths[j] - share * lengths[i]))
            jaccards = [
                len(masks[i][block] & masks[nearest][block]) / len(masks[i][block] | masks[nearest][block])
                for block in masks[i]
            ]
            assert found == pytest.approx(sum(jaccards) / len(jaccards))
    ends = [
        look
        for look in everything.curve
        if look.half is not None and look.three_quarters is not None and min(look.half, look.three_quarters) >= 0.8
    ]
    assert ends[0] == until.curve[-1], "not before, and not later"


def _profiles_up_to(tokens: list[int], path: Path, many: list[list[int]]) -> list[coe.RoutingProfile]:
    """Profiles of the first so many tokens, in the order of such a run."""
    with coe.Model(path, n_ctx=64, n_batch=64, n_threads=1) as model:
        order = []
        for bundle in bundles([corpus_of(many)], shuffled=True):
            windows = [
                content[at : at + 64]
                for _, document in bundle.documents
                for content in [list(document.content)]
                for at in range(0, len(content), 64)
            ]
            # Within a bundle the longest come first, into the first batch with room: one to a batch here.
            order += sorted(windows, key=len, reverse=True)
        made = []
        for wanted in tokens:
            first: list[list[int]] = []
            while sum(map(len, first)) < wanted:
                first.append(order[len(first)])  # type: ignore[arg-type]
            assert sum(map(len, first)) == wanted
            made.append(coe.profile(model, first))
        return made


@pytest.mark.usefixtures("short")
def test_an_interrupted_run_ends_at_the_same_token(
    tmp_path: Path, model_file: ModelFile, many: list[list[int]]
) -> None:
    corpora = [corpus_of(many[:30], "first"), corpus_of(many[30:], "second")]
    out = tmp_path / "p.gguf"
    with coe.Model(model_file("qwen3moe", "Q4_K_M"), n_ctx=64, n_batch=64, n_threads=1) as model:
        straight = Stability(0.85, KEEP)
        whole = coe.profile_corpora(model, corpora, until=straight)
        assert straight.stable
        n_interruptions = 0
        while True:
            checkpoint = Checkpoint(out, every=0 if n_interruptions % 2 else 1e9, resume=True)
            most = random.Random(n_interruptions).randint(1, 6)
            ran = []

            def interrupt(progress: Progress, most: int = most, ran: list[int] = ran) -> None:
                ran.append(progress.tokens)
                if len(ran) == most:
                    raise KeyboardInterrupt

            until = Stability(0.85, KEEP)
            try:
                profile = coe.profile_corpora(
                    model, corpora, until=until, checkpoint=checkpoint, progress=interrupt
                )
                break
            except KeyboardInterrupt:
                n_interruptions += 1
        assert n_interruptions > 5
        assert until.curve == straight.curve
        np.testing.assert_array_equal(profile.histograms, whole.histograms)
        assert profile.corpora == whole.corpora
        with pytest.raises(coe.InputError, match="until-stable"):
            coe.profile_corpora(
                model, corpora, until=Stability(0.9, KEEP), checkpoint=Checkpoint(out, resume=True)
            )


@pytest.mark.usefixtures("short")
def test_stability_can_follow_a_mask_by_contribution(model_file: ModelFile, many: list[list[int]]) -> None:
    with coe.Model(model_file("olmoe", "F32"), n_ctx=128, n_batch=128, n_sequences=8, n_threads=1) as model:

        def run(stats: str, method: str) -> tuple[coe.RoutingProfile, Stability]:
            until = Stability(0.01, replace(KEEP, method=method))
            return coe.profile_corpora(model, [corpus_of(many)], stats=stats, until=until), until

        profile, until = run("contribution", "contribution")
        assert until.stable
        assert 200 < profile.n_tokens < sum(map(len, many))
        with pytest.raises(coe.InputError, match="reap"):
            run("routing", "reap")
        with pytest.raises(coe.InputError, match=r"'magic'.*utility"):
            run("contribution", "magic")
        with pytest.raises(coe.InputError, match=r"'all'.*routing, contribution"):
            run("all", "utility")


def test_a_shard_cannot_end_early(model_file: ModelFile, many: list[list[int]]) -> None:
    with (
        coe.Model(model_file("olmoe", "F32"), n_ctx=64, n_threads=1) as model,
        pytest.raises(coe.InputError, match="shard"),
    ):
        coe.profile_corpora(model, [corpus_of(many)], shard=coe.Shard(1, 2), until=Stability(0.9, KEEP))
