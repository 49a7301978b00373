"""The profile's value and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from test_masking import make_profile

import coe_native as coe


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = make_profile(1)
    profile.save(tmp_path / "p.gguf")
    loaded = coe.RoutingProfile.load(tmp_path / "p.gguf")
    np.testing.assert_array_equal(loaded.histograms, profile.histograms)
    np.testing.assert_array_equal(loaded.weight_sum, profile.weight_sum)
    for name in ("architecture", "model_name", "fingerprint", "layers", "n_tokens", "corpora"):
        assert getattr(loaded, name) == getattr(profile, name)


def test_the_file_is_what_the_interface_says(tmp_path: Path) -> None:
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


def test_profiles_add_up() -> None:
    first, second = make_profile(1), make_profile(2)
    both = first + second
    assert both.n_tokens == first.n_tokens + second.n_tokens
    np.testing.assert_array_equal(both.histograms, first.histograms + second.histograms)
    np.testing.assert_array_equal(both.weight_sum, first.weight_sum + second.weight_sum)
    with pytest.raises(coe.InputError, match="their layers differ"):
        first + make_profile(1, n_layers=3)


def test_a_profile_that_does_not_add_up_is_refused() -> None:
    profile = make_profile(1)
    histograms = profile.histograms.copy()
    histograms[0, 0, 0] += 1
    with pytest.raises(coe.InputError, match="needs 60 choices at each rank"):
        coe.RoutingProfile("test", "m", "", profile.layers, 60, histograms, profile.weight_sum)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coe.profile.version", 2, "has profile version 2"),
        ("coe.profile.tokens", 61, "needs 61 choices"),
        ("coe.profile.corpora", "[1]", "damaged profile"),
        ("coe.profile.corpora", "{", "damaged profile"),
        ("general.type", "model", "is not a routing profile"),
    ],
)
def test_damaged_profiles_are_refused(tmp_path: Path, key: str, value: int | str, message: str) -> None:
    profile = make_profile(1)
    path = tmp_path / "p.gguf"
    fields: dict[str, int | str] = {
        "general.type": "routing-profile",
        "general.name": "m",
        "coe.profile.version": 1,
        "coe.profile.fingerprint": "",
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
    with pytest.raises(coe.InputError, match="each rank"):
        coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms[:, :, ::-1], histograms * 0.5)
    with pytest.raises(coe.InputError, match="cannot have 2 groups"):
        coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms, histograms * 0.5, (), 2, 1)
    with pytest.raises(coe.InputError, match="groups of experts differ"):
        _ = profile + coe.RoutingProfile("a", "m", "0" * 64, (2, 5), 5, histograms, histograms * 0.5)
