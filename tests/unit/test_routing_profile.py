"""The profile's value and its file."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import make_live_profile, make_profile
from support.random_models import copy_entries

import coe_native as coe
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.output_norms import OutputNorms


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = make_profile(1)
    profile.save(tmp_path / "p.gguf")
    loaded = coe.RoutingProfile.load(tmp_path / "p.gguf")
    np.testing.assert_array_equal(loaded.histograms, profile.histograms)
    np.testing.assert_array_equal(loaded.weight_sum, profile.weight_sum)
    np.testing.assert_array_equal(loaded.weight_sum_rest, profile.weight_sum_rest)
    assert loaded.outputs is not None
    for name in OutputNorms.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(loaded.outputs, name), getattr(profile.outputs, name))
    for name in ("architecture", "model_name", "fingerprint", "layers", "n_tokens", "corpora"):
        assert getattr(loaded, name) == getattr(profile, name)


def test_other_gguf_readers_read_a_profile(tmp_path: Path) -> None:
    """Read with another reader: any GGUF tool can."""
    profile = make_profile(2)
    profile.save(tmp_path / "p.gguf")
    reader = GGUFReader(tmp_path / "p.gguf")
    assert reader.fields["general.type"].contents() == "routing-profile"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for index, block in enumerate(profile.layers):
        histogram = tensors[f"blk.{block}.router.histogram"]
        assert histogram.tensor_type.name == "I64"
        np.testing.assert_array_equal(histogram.data, profile.histograms[index])
        weight_sum = tensors[f"blk.{block}.router.weight_sum"]
        assert weight_sum.tensor_type.name == "F64"
        np.testing.assert_array_equal(weight_sum.data, profile.weight_sum[index])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.7e308, 1.7e308])
def test_weights_that_no_router_can_give_are_refused(weight: float) -> None:
    """Two finite ones of 1.7e308 would add up to an infinite one."""
    profile = make_profile(1)
    weight_sum = profile.weight_sum.copy()
    weight_sum[0, 0, 0] = weight
    with pytest.raises(coe.InputError, match="finite"):
        replace(profile, weight_sum=weight_sum)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_sum": float("nan")}, "norm_sum"),
        ({"norm_sum": -1.0}, "norm_sum"),
        ({"norm_sum": 1e300}, "norm_sum"),
        ({"weighted_norm_sum": float("inf")}, "weighted_norm_sum"),
        ({"norm_sum_rest": 1.0}, "norm_sum"),
        ({"weighted_norm_sum_rest": float("nan")}, "weighted_norm_sum"),
    ],
)
def test_outputs_that_no_expert_can_have_are_refused(change: dict[str, float], message: str) -> None:
    profile = make_profile(1)
    ((name, value),) = change.items()
    values = getattr(profile.outputs, name).copy()
    values[1, 3] = value
    with pytest.raises(coe.InputError, match=message):
        replace(profile, outputs=replace(profile.outputs, **{name: values}))


def test_outputs_are_of_chosen_experts_in_all_layers() -> None:
    profile = make_profile(1, n_tokens=0)
    sums = np.zeros((2, 8))
    replace(profile, outputs=OutputNorms(sums, sums))
    sums[1, 3] = 0.5
    with pytest.raises(coe.InputError, match=r"norm_sum|never"):
        replace(profile, outputs=OutputNorms(sums, sums))
    with pytest.raises(coe.InputError, match="norm_sum"):
        replace(profile, outputs=OutputNorms(sums[:, :7], sums))


def test_profiles_with_and_without_outputs_do_not_add_up(tmp_path: Path) -> None:
    make_profile(1).save(tmp_path / "with.gguf")
    make_profile(2, outputs=False).save(tmp_path / "without.gguf")
    first, second = (coe.RoutingProfile.load(tmp_path / f"{name}.gguf") for name in ("with", "without"))
    assert second.outputs is None
    for one, other in ((first, second), (second, first)):
        with pytest.raises(coe.InputError, match="--stats"):
            one + other


def test_profiles_add_up() -> None:
    first, second = make_profile(1), make_profile(2)
    both = first + second
    assert both.n_tokens == first.n_tokens + second.n_tokens
    np.testing.assert_array_equal(both.histograms, first.histograms + second.histograms)
    np.testing.assert_array_equal(both.weight_sum, first.weight_sum + second.weight_sum)
    for name in ("norm_sum", "weighted_norm_sum"):
        np.testing.assert_array_equal(
            getattr(both.outputs, name), getattr(first.outputs, name) + getattr(second.outputs, name)
        )
    with pytest.raises(coe.InputError, match="layers"):
        first + make_profile(1, n_layers=3)


def test_a_profile_that_does_not_add_up_is_refused() -> None:
    profile = make_profile(1)
    histograms = profile.histograms.copy()
    histograms[0, 0, 0] += 1
    with pytest.raises(coe.InputError, match=r"\b60\b"):
        coe.RoutingProfile("test", "m", "", profile.layers, 60, histograms, profile.weight_sum)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coe.profile.version", 4, r"\b4\b"),
        ("coe.profile.version", 3, "layer_tokens"),
        ("coe.profile.tokens", 61, r"\b61\b"),
        ("coe.profile.corpora", "[1]", "corpora"),
        ("coe.profile.corpora", "{", "corpora"),
        ("coe.profile.corpora", '[{"name": "c"}]', "corpora"),
        ("coe.profile.corpora", '[{"name": 1}]', "corpora"),
        ("coe.profile.corpora", "[" * 10_000, "corpora"),
        ("coe.profile.tokens", "sixty", r"coe\.profile\.tokens"),
        ("coe.profile.fingerprint", 7, r"coe\.profile\.fingerprint"),
        ("general.type", "model", "profile"),
    ],
)
def test_damaged_profiles_are_refused(tmp_path: Path, key: str, value: int | str, message: str) -> None:
    profile = make_profile(1)
    path = tmp_path / "p.gguf"
    fields: dict[str, int | str] = {
        "general.type": "routing-profile",
        "general.name": "m",
        "coe.profile.version": 1,
        "coe.profile.fingerprint": "f",
        "coe.profile.tokens": 60,
        "coe.profile.corpora": "[]",
        key: value,
    }
    writer = GGUFWriter(path, "test")
    for name, content in fields.items():
        (writer.add_string if isinstance(content, str) else writer.add_uint32)(name, content)  # type: ignore[operator]
    for index, block in enumerate(profile.layers):
        writer.add_tensor(f"blk.{block}.router.histogram", profile.histograms[index])
        writer.add_tensor(f"blk.{block}.router.weight_sum", profile.weight_sum[index])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(coe.InputError, match=message):
        coe.RoutingProfile.load(path)


def test_mean_rank_is_infinite_for_experts_never_chosen() -> None:
    profile = make_profile(0, n_tokens=1)
    assert np.isinf(profile.mean_rank).sum() == profile.mean_rank.size - 3 * len(profile.layers)


def test_layers_may_choose_different_numbers(tmp_path: Path) -> None:
    """Two experts a token in the first layer, three in the second: ranks that a layer has not hold nothing,
    and rank-weighted scores go by the layer's own number."""
    histograms = np.array([[[5, 0, 0], [0, 5, 0], [0, 0, 0]], [[5, 0, 0], [0, 5, 0], [0, 0, 5]]])
    profile = coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms, histograms * 0.5, (), 3, 2)
    assert profile.layer_top_k.tolist() == [2, 3]
    np.testing.assert_allclose(coe.score(profile, "rank-weighted") * 6 / 5, [[4, 2, 0], [3, 2, 1]])
    profile.save(tmp_path / "p.gguf")
    read = coe.RoutingProfile.load(tmp_path / "p.gguf")
    np.testing.assert_array_equal(read.histograms, histograms)
    assert (read.n_groups, read.n_groups_used) == (3, 2)
    assert (profile + read).n_groups == 3
    with pytest.raises(coe.InputError, match="rank"):
        coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms[:, :, ::-1], histograms * 0.5)
    with pytest.raises(coe.InputError, match="groups"):
        coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms, histograms * 0.5, (), 2, 1)
    with pytest.raises(coe.InputError, match="groups"):
        _ = profile + coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms, histograms * 0.5)


def of_one_token(weights: list[float]) -> list[coe.RoutingProfile]:
    """A profile of each weight, which is also the length of what the expert put out."""
    one = np.ones((1, 1, 1), np.int64)
    return [
        coe.RoutingProfile(
            "a",
            "m",
            "0" * 64,
            (0,),
            1,
            one,
            np.full((1, 1, 1), weight),
            outputs=OutputNorms(np.full((1, 1), max(weight, 0)), np.full((1, 1), weight)),
        )
        for weight in weights
    ]


_WEIGHTS = st.floats(-1000, 1000, width=32).map(lambda weight: round(weight * 2**64) / 2**64)
"""Router weights as they are counted: multiples of 2^-64."""


@given(st.lists(_WEIGHTS, min_size=1, max_size=40), st.randoms())
def test_weights_add_up_exactly_in_any_order(weights: list[float], random: Any) -> None:
    exact = sum(map(Fraction, weights))
    profiles = of_one_token(weights)
    while len(profiles) > 1:  # in any order, and of any number of parts
        random.shuffle(profiles)
        profiles.append(profiles.pop() + profiles.pop())
    (total,) = profiles
    assert Fraction(total.weight_sum.item()) + Fraction(total.weight_sum_rest.item()) == exact
    assert total.weight_sum.item() == float(exact)
    assert total.outputs is not None
    norms = total.outputs.norm_sum.item(), total.outputs.norm_sum_rest.item()
    assert sum(map(Fraction, norms)) == sum(Fraction(max(weight, 0)) for weight in weights)
    assert total.outputs.weighted_norm_sum.item() == float(exact)
    assert total.outputs.weighted_norm_sum_rest.item() == total.weight_sum_rest.item()


def test_the_rest_of_a_sum_is_kept_in_the_file(tmp_path: Path) -> None:
    """1e9 and its tenth of a billionth: no double holds the sum."""
    profile = reduce(add, of_one_token([1e9, 2.0**-40]))
    assert profile.weight_sum.item() == 1e9
    profile.save(tmp_path / "p.gguf")
    loaded = coe.RoutingProfile.load(tmp_path / "p.gguf")
    assert loaded.weight_sum_rest.item() == 2.0**-40
    assert reduce(add, [loaded, *of_one_token([-1e9])]).weight_sum.item() == 2.0**-40
    with pytest.raises(coe.InputError, match=r"rest|digit"):
        replace(profile, weight_sum_rest=np.ones((1, 1, 1)))


def test_profiles_without_the_rest_are_read(tmp_path: Path) -> None:
    """Other programs write what the format asks for, and no more."""
    profile = make_profile(3)
    profile.save(tmp_path / "p.gguf")
    reader = GGUFReader(tmp_path / "p.gguf")
    writer = GGUFWriter(tmp_path / "less.gguf", "")
    writer.kv_data[0].clear()
    copy_entries(reader, writer)
    for tensor in reader.tensors:
        if not tensor.name.endswith("_rest"):
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_array_equal(coe.RoutingProfile.load(tmp_path / "less.gguf").weight_sum, profile.weight_sum)


def test_shards_of_a_corpus_given_twice_stay_two_records() -> None:
    """Each shard of such a run has it twice, which is no shard merged twice."""
    record = CorpusRecord("c", 1, 10, "0" * 64, (1,), 2)
    first = replace(make_profile(1), corpora=(record, record))
    second = replace(make_profile(2), corpora=(replace(record, shards=(2,)),) * 2)
    whole = replace(record, documents=2, tokens=20, n_shards=1)
    assert (first + second).corpora == (whole, whole)
    other = replace(first, corpora=(replace(record, sha256="1" * 64, shards=(2,)),))
    assert (first + other).corpora == (record, record, *other.corpora)


def test_no_shard_counts_twice() -> None:
    """In whatever order they come, and when the whole is there already."""
    record = CorpusRecord("c", 1, 10, "0" * 64, (1,), 2, "run")
    shards = [replace(make_profile(1), corpora=(replace(record, shards=(index,)),)) for index in (1, 2)]
    thirds = replace(shards[0], corpora=(replace(record, n_shards=3),))
    elsewhere = replace(shards[1], corpora=(replace(record, shards=(2,), run="with other corpora"),))
    for first, second, third in itertools.permutations([*shards, shards[0]]):
        with pytest.raises(coe.InputError, match=r"\bc\b"):
            _ = first + second + third
    for wrong in (thirds, elsewhere, shards[0], shards[0] + shards[1]):
        for pair in ((shards[0], wrong), (wrong, shards[0])):
            with pytest.raises(coe.InputError, match="shard"):
                _ = pair[0] + pair[1]


@pytest.mark.parametrize("shards", [(3,), (0,), (), (1, 1), (2, 1)])
def test_impossible_shards_are_refused(shards: tuple[int, ...]) -> None:
    for record in (CorpusRecord("c", 1, 10, "0" * 64, shards, 2), CorpusRecord("c", 1, 10, "0" * 64, (1,), 10**9)):
        with pytest.raises(coe.InputError, match="shard"):
            replace(make_profile(1), corpora=(record,))


def test_layers_may_have_seen_different_numbers_of_tokens(tmp_path: Path) -> None:
    """A file of version 3, which says so; merged and scored layer by layer."""
    profile = make_live_profile((60, 7))
    assert profile.n_tokens == 60
    assert not profile.is_whole
    assert "60" in profile.shortfall
    profile.save(tmp_path / "p.gguf")
    reader = GGUFReader(tmp_path / "p.gguf")
    assert reader.fields["coe.profile.version"].contents() == 3
    assert reader.fields["coe.profile.layer_tokens"].contents() == [60, 7]
    loaded = coe.RoutingProfile.load(tmp_path / "p.gguf")
    assert loaded.layer_tokens == (60, 7)
    np.testing.assert_array_equal(loaded.histograms, profile.histograms)

    for method, each in (("utility", 0.25 * 3), ("frequency", 3)):
        np.testing.assert_allclose(coe.score(loaded, method).sum(axis=1), [each, each])
    whole = make_profile(5, outputs=False)
    assert whole.is_whole
    assert whole.shortfall == ""
    completed = loaded + whole
    assert completed.layer_tokens == (120, 67)
    assert completed.n_tokens == 120
    np.testing.assert_allclose(coe.score(completed, "frequency"), completed.counts / np.array([[120], [67]]))
    assert coe.build_mask(completed, 4).keep == 4


def test_a_layer_without_tokens_has_no_score() -> None:
    profile = make_live_profile((60, 0))
    with pytest.raises(coe.InputError, match=r"\[\d+\].*merge"):
        coe.score(profile)
    coe.score(profile + make_profile(5, outputs=False))


@pytest.mark.parametrize("seen", [(60,), (60, 61), (59, 7), (60, 8)])
def test_layers_tokens_must_be_those_of_their_choices(seen: tuple[int, ...]) -> None:
    profile = make_live_profile((60, 7))
    with pytest.raises(coe.InputError, match=r"\b60\b"):
        replace(profile, layer_tokens=seen)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=2), st.lists(st.integers(0, 20), min_size=2, max_size=2))
def test_live_profiles_add_up_layer_by_layer(first: list[int], second: list[int]) -> None:
    one, other = make_live_profile(tuple(first)), make_live_profile(tuple(second))
    total = one + other
    assert total.layer_tokens == tuple(map(add, first, second))
    assert total.n_tokens == max(first) + max(second)
    np.testing.assert_array_equal(total.histograms, one.histograms + other.histograms)
