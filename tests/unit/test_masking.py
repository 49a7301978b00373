"""Scores and the three passes against brute force, with ties, and the smallest and largest keep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.profiles import TOP_K, make_profile

import coe_native as coe

profiles = st.builds(
    make_profile,
    st.integers(0, 10**6),
    n_experts=st.integers(TOP_K, 10),
    n_tokens=st.integers(1, 60),
    skew=st.sampled_from([0.1, 1.0, 10.0]),
)


@given(profiles)
def test_scores_equal_their_formulas(profile: coe.RoutingProfile) -> None:
    n, k = profile.n_tokens, profile.top_k
    for layer in range(len(profile.layers)):
        for expert in range(profile.n_experts):
            histogram, weights = profile.histograms[layer, expert], profile.weight_sum[layer, expert]
            utility = sum(h / n * (w / max(h, 1)) for h, w in zip(histogram, weights, strict=True))
            ranked = sum((k - r) / (k * (k + 1) / 2) * h for r, h in enumerate(histogram))
            assert profile.outputs is not None
            norms, weighted_norms = (
                sums[layer, expert] for sums in (profile.outputs.norm_sum, profile.outputs.weighted_norm_sum)
            )
            expected = {
                "utility": utility,
                "rank-weighted": ranked,
                "frequency": histogram.sum() / n,
                "contribution": weighted_norms / n,
                "reap": weighted_norms / max(histogram.sum(), 1),
                "ean": norms / n,
            }
            for method in coe.METHODS:
                assert coe.score(profile, method)[layer, expert] == pytest.approx(expected[method], abs=1e-12)


@given(profiles)
def test_utility_is_the_mean_routed_weight(profile: coe.RoutingProfile) -> None:
    np.testing.assert_allclose(
        coe.score(profile, "utility"), profile.weight_sum.sum(axis=2) / profile.n_tokens, atol=1e-12
    )


def brute_force(
    profile: coe.RoutingProfile,
    keep: int,
    method: str,
    structural_rank: float,
    structural_min: int,
    reasoning: coe.RoutingProfile | None,
    swaps: int,
) -> tuple[dict[int, list[int]], list[tuple[int, int, int]], list[tuple[int, int]]]:
    """The method's text, word by word, in loops."""
    scores = coe.score(profile, method)
    kept_of, record, unplaced = {}, [], []
    for i, block in enumerate(profile.layers):
        experts = list(range(profile.n_experts))
        counts = [int(profile.histograms[i, e].sum()) for e in experts]
        ranks = [
            sum(r * profile.histograms[i, e, r] for r in range(TOP_K)) / counts[e] if counts[e] else float("inf")
            for e in experts
        ]
        structural = [
            e for e in experts if counts[e] >= structural_min and counts[e] and ranks[e] < structural_rank
        ]
        size = profile.n_experts // profile.n_groups
        groups = [experts[start : start + size] for start in range(0, profile.n_experts, size)]
        kept = []
        for group in groups:
            kept += sorted(group, key=lambda e: (-scores[i, e], e))[: keep // len(groups)]

        def weakest(incoming: int, protected: list[int]) -> int | None:
            own = next(group for group in groups if incoming in group)  # noqa: B023
            candidates = [e for e in kept if e in own and e not in structural and e not in protected]  # noqa: B023
            if not candidates:
                return None
            lowest = min(scores[i, e] for e in candidates)  # noqa: B023
            tied = [e for e in candidates if scores[i, e] == lowest]  # noqa: B023
            worst = max(ranks[e] for e in tied)  # noqa: B023
            return max(e for e in tied if ranks[e] == worst)  # noqa: B023

        for expert in sorted(structural, key=lambda e: (-scores[i, e], e)):
            if expert not in kept:
                out = weakest(expert, [])
                if out is None:
                    unplaced.append((block, expert))
                    continue
                kept[kept.index(out)] = expert
                record.append((block, expert, out))
        if reasoning is not None:
            wanted = coe.score(reasoning, method)[i]
            came_in: list[int] = []
            for _ in range(swaps):
                pairs = [(e, weakest(e, came_in)) for e in experts if e not in kept]
                better = [(e, out) for e, out in pairs if out is not None and wanted[e] > wanted[out]]
                if not better:
                    break
                incoming, out = min(better, key=lambda pair: (-wanted[pair[0]], pair[0]))
                kept[kept.index(out)] = incoming
                came_in.append(incoming)
                record.append((block, incoming, out))
        kept_of[block] = sorted(kept)
    return kept_of, record, unplaced


GROUPS = [((1, 1), keep) for keep in range(TOP_K, 13)]
GROUPS += [
    ((2, 1), 8),
    ((2, 1), 10),
    ((2, 1), 6),
    ((3, 2), 6),
    ((3, 2), 9),
    ((4, 2), 8),
    ((6, 2), 12),
]
"""Groups of 12 experts, of which so many are used, and what can be kept then."""


@settings(max_examples=400)
@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from(GROUPS),
    st.sampled_from(coe.METHODS),
    st.sampled_from([0.0, 0.9, 1.1, 2.0, 9.0]),
    st.sampled_from([0, 3, 10]),
    st.booleans(),
    st.integers(0, 5),
)
def test_masks_equal_brute_force(
    seed: int,
    other: int,
    groups_and_keep: tuple[tuple[int, int], int],
    method: str,
    structural_rank: float,
    structural_min: int,
    with_reasoning: bool,
    swaps: int,
) -> None:
    groups, keep = groups_and_keep
    profile = make_profile(seed, n_experts=12, skew=0.3, groups=groups)
    reasoning = make_profile(other, n_experts=12, groups=groups) if with_reasoning else None
    mask = coe.build_mask(
        profile,
        keep,
        method=method,
        structural=True,
        structural_rank=structural_rank,
        structural_min=structural_min,
        reasoning=reasoning,
        reasoning_swaps=swaps,
    )
    expected = brute_force(profile, keep, method, structural_rank, structural_min, reasoning, swaps)
    assert {block: list(kept) for block, kept in mask.kept.items()} == expected[0]
    assert [(s.layer, s.incoming, s.outgoing) for s in mask.swaps] == expected[1]
    assert list(mask.unplaced) == expected[2]


def test_ties_go_to_the_lower_index() -> None:
    histograms = np.full((1, 6, TOP_K), 10, np.int64)
    norms = coe.OutputNorms(np.full((1, 6), 15.0), np.full((1, 6), 5.0))
    profile = coe.RoutingProfile("test", "tied", "0" * 64, (0,), 60, histograms, histograms * 0.25, outputs=norms)
    for method in coe.METHODS:
        assert coe.build_mask(profile, 3, method=method, structural=False).kept[0] == (0, 1, 2)


def test_the_structural_pass_changes_the_mask() -> None:
    """An expert chosen seldom but always first comes in for one chosen often but last."""
    histograms = np.zeros((1, 5, TOP_K), np.int64)
    histograms[0, 0] = [40, 0, 0]
    histograms[0, 1] = [0, 60, 0]
    histograms[0, 2] = [0, 0, 60]
    histograms[0, 3] = [12, 0, 0]
    histograms[0, 4] = [8, 0, 0]
    profile = coe.RoutingProfile("test", "m", "0" * 64, (4,), 60, histograms, histograms * [0.5, 0.3, 0.2])
    without = coe.build_mask(profile, 3, method="frequency", structural=False)
    mask = coe.build_mask(profile, 3, method="frequency")
    assert without.kept[4] == (0, 1, 2)
    assert mask.kept[4] == (0, 1, 3)
    (swap,) = mask.swaps
    assert (swap.layer, swap.incoming, swap.outgoing, swap.stage) == (4, 3, 2, 2)
    assert (swap.incoming_score, swap.outgoing_score) == (12 / 60, 1.0)
    # Expert 4 is chosen first as well, but only eight times; with a lower bar nobody is left to replace.
    assert coe.build_mask(profile, 3, method="frequency", structural_min=5).unplaced == ((4, 4),)


def test_smallest_and_largest_keep() -> None:
    profile = make_profile(3)
    assert coe.build_mask(profile, 8).kept == dict.fromkeys(profile.layers, tuple(range(8)))
    assert all(len(kept) == TOP_K for kept in coe.build_mask(profile, TOP_K).kept.values())
    for keep in (TOP_K - 1, 9, 0, -1):
        with pytest.raises(coe.InputError, match=r"keep.*\b3\b"):
            coe.build_mask(profile, keep)


def test_a_reasoning_profile_of_another_model_is_refused() -> None:
    other = make_profile(1, n_layers=3)
    with pytest.raises(coe.InputError, match="model"):
        coe.build_mask(make_profile(0), 4, reasoning=other)


def test_no_scores_without_tokens_or_method() -> None:
    empty = make_profile(0, n_tokens=0)
    with pytest.raises(coe.InputError, match="tokens"):
        coe.score(empty)
    with pytest.raises(coe.InputError, match=r"'reapp'.*utility"):
        coe.score(make_profile(0), "reapp")


@pytest.mark.parametrize("method", ["contribution", "reap", "ean"])
def test_methods_that_need_outputs_are_refused_without_them(method: str) -> None:
    profile = make_profile(0, outputs=False)
    assert profile.outputs is None
    with pytest.raises(coe.InputError, match=f"{method}.*--stats"):
        coe.build_mask(profile, 4, method=method)


@given(st.integers(0, 1000), st.integers(TOP_K, 8))
def test_masks_survive_their_file(tmp_path_factory: pytest.TempPathFactory, seed: int, keep: int) -> None:
    path = tmp_path_factory.mktemp("masks") / "mask.json"
    mask = coe.build_mask(make_profile(seed), keep, reasoning=make_profile(seed + 1))
    mask.save(path)
    assert coe.ExpertMask.load(path) == mask
    document = json.loads(path.read_text())
    assert document["format"] == "coe-native.expert-mask"
    assert document["expert_count"] == 8
    assert document["layers"] == {str(b): list(kept) for b, kept in mask.kept.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "mask"),
        ({"version": 2}, r"\b2\b"),
        ({"layers": {"1": [0, 1, 1, 2]}}, r"\b4\b"),
        ({"layers": {"1": [3, 2, 1, 0]}}, "ascending"),
        ({"layers": {"1": [0, 1, 2, 8]}}, r"\b7\b"),
        ({"layers": {"1": [0, 1, 2, 3.5]}}, r"\b7\b"),
        ({"layers": {"x": [0, 1, 2, 3]}}, "mask"),
        ({"layers": {}}, "keep|layers"),
        ({"expert_count": 2**31}, "expert_count"),
        ({"keep": 9}, r"keep.*\b8\b"),
        ({"keep": "4"}, "keep"),
        ({"keep": True}, "bool|keep"),
        ({"swaps": [{"layer": 1}]}, "mask"),
        ({"swaps": 7}, "mask"),
        ({"architecture": None, "layers": None}, "mask"),
    ],
)
def test_damaged_masks_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "mask.json"
    coe.build_mask(make_profile(0), 4).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(coe.InputError, match=message) as caught:
        coe.ExpertMask.load(path)
    assert str(path) in str(caught.value)


def test_compare_counts_overlap_beside_chance() -> None:
    def mask(kept: tuple[int, ...]) -> coe.ExpertMask:
        return coe.ExpertMask("test", "0" * 64, 8, 4, {0: kept, 2: kept})

    (first, second) = coe.compare(mask((0, 1, 2, 3)), mask((2, 3, 4, 5)))
    assert (first.layer, first.shared, first.union, first.by_chance) == (0, 2, 6, 2.0)
    assert (second.layer, second.jaccard) == (2, pytest.approx(1 / 3))
    with pytest.raises(coe.InputError, match="model"):
        coe.compare(mask((0, 1, 2, 3)), coe.ExpertMask("test", "", 8, 1, {0: (1,)}))


@pytest.mark.parametrize("method", coe.METHODS)
@pytest.mark.parametrize("combine", ["sum", "max"])
def test_several_domains_share_a_mask(method: str, combine: str) -> None:
    """Brute force: shares of each layer's scores, added up or the largest."""
    domains = [make_profile(seed, n_tokens=n_tokens) for seed, n_tokens in ((1, 200), (2, 5000))]
    mask = coe.build_mask(domains, 4, method=method, combine=combine, structural=False)
    scores = [coe.score(domain, method) for domain in domains]
    for index, block in enumerate(domains[0].layers):
        shares = [of_one[index] / of_one[index].sum() for of_one in scores]
        both = shares[0] + shares[1] if combine == "sum" else np.maximum(*shares)
        assert set(mask.kept[block]) == set(sorted(range(len(both)), key=lambda e: (-both[e], e))[:4])
    assert mask.provenance["domains"] == 2
    assert mask.provenance["combine"] == combine
    alone = coe.build_mask(domains[0], 4, method=method)
    assert coe.build_mask(domains[:1], 4, method=method, combine=combine).kept == alone.kept


def test_an_expert_stays_when_any_domain_needs_it() -> None:
    """One domain uses expert 0 alone, and the other the rest: only the largest keeps it at any rate."""
    n_experts = 8
    narrow, wide = np.zeros((1, n_experts, 1), np.int64), np.zeros((1, n_experts, 1), np.int64)
    narrow[0, 7, 0] = 100
    wide[0, :7, 0] = [40, 30, 10, 5, 5, 5, 5]
    profiles = [
        coe.RoutingProfile("a", "m", "0" * 64, (0,), 100, counts, counts.astype(float))
        for counts in (narrow, wide)
    ]
    assert coe.build_mask(profiles, 2, combine="max", structural=False).kept[0] == (0, 7)
    # Expert 1 is needed a little by both, expert 0 more by one alone.
    halves = [
        replace_counts(profiles[0], [[50], [30], [20], [0], [0], [0], [0], [0]]),
        replace_counts(profiles[1], [[0], [30], [0], [70], [0], [0], [0], [0]]),
    ]
    assert coe.build_mask(halves, 2, combine="max", structural=False).kept[0] == (0, 3)
    assert coe.build_mask(halves, 2, combine="sum", structural=False).kept[0] == (1, 3)
    with pytest.raises(coe.InputError, match=r"sum.*max"):
        coe.build_mask(profiles, 2, combine="mean")
    with pytest.raises(coe.InputError, match="model"):
        coe.build_mask([profiles[0], make_profile(1)], 2)


def test_a_layer_without_weight_counts_for_nothing() -> None:
    """A profile may hold no weight at all in one layer: it has no say there, and spoils nothing."""
    profile, empty = make_profile(1), make_profile(2)
    empty.weight_sum[0] = 0
    mask = coe.build_mask([profile, empty], 4, method="utility", structural=False)
    assert mask.kept[1] == coe.build_mask(profile, 4, method="utility", structural=False).kept[1]


def replace_counts(profile: coe.RoutingProfile, counts: list[list[int]]) -> coe.RoutingProfile:
    made = np.array([counts], np.int64)
    return replace(profile, histograms=made, weight_sum=made.astype(float))


def test_the_default_scores_by_contribution_where_it_can() -> None:
    with_norms = make_profile(0)
    without = replace(with_norms, outputs=None)
    default = coe.build_mask(with_norms, 4)
    assert default.kept == coe.build_mask(with_norms, 4, method="contribution", structural=False).kept
    assert default.provenance["method"] == "contribution"
    assert default.provenance["structural"] is False
    fallback = coe.build_mask(without, 4)
    assert fallback.kept == coe.build_mask(without, 4, method="utility", structural=True).kept
    assert fallback.provenance["structural"] is True
    # One profile without norms decides, the reasoning profile too.
    for profiles, reasoning in (([with_norms, without], None), ([with_norms], without)):
        mask = coe.build_mask(profiles, 4, reasoning=reasoning)
        assert mask.provenance["method"] == "utility"
    np.testing.assert_array_equal(coe.score(with_norms), coe.score(with_norms, "contribution"))
    np.testing.assert_array_equal(coe.score(without), coe.score(without, "utility"))


def test_masks_record_whether_they_follow_the_published_recipe() -> None:
    profile = make_profile(0)
    assert coe.build_mask(profile, 4).provenance["recipe"] == "own"
    for options in ({}, {"reasoning": make_profile(1)}, {"reasoning_swaps": 5}):
        mask = coe.build_mask(profile, 4, method="utility", **options)
        assert mask.provenance["recipe"] == "published"
    for changed in ({"structural": False}, {"structural_min": 5}, {"reasoning": profile, "reasoning_swaps": 5}):
        assert coe.build_mask(profile, 4, method="utility", **changed).provenance["recipe"] == "own"
