"""Surgery by the byte, read back with gguf's own reader; and what it refuses."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray
from support.masks import unused_experts
from support.model_files import append_entry
from support.random_models import copy_model, split_model, write_random_model

import coe_native as coe
from coe_native.model.gguf_file import encode_entry
from coe_native.model.sampler_defaults import SamplerDefaults
from coe_native.surgery.plan import plan_prune, plan_zero, safety_notice

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]

QUANTIZATIONS = ("F32", "F16", "Q8_0", "Q4_K_M")

SAMPLING_KEYS = ("general.sampling.temp", "general.sampling.penalty_repeat")


def raw_tensors(path: Path) -> dict[str, tuple[str, list[int], NDArray[np.uint8]]]:
    """Name to type, shape (fastest dimension first) and bytes, by another reader than ours."""
    return {
        t.name: (t.tensor_type.name, t.shape.tolist(), np.ascontiguousarray(t.data).view(np.uint8).ravel())
        for t in GGUFReader(path).tensors
    }


def fields(path: Path) -> dict[str, object]:
    """Metadata by another reader than ours, without that reader's own entries."""
    reader = GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def is_expert_tensor(name: str) -> bool:
    """The tensors with an expert dimension in the families of the tests, spelt out."""
    parts = name.split(".")[2:]
    if parts[0] == "ffn_gate_inp":
        return parts[1] in ("weight", "bias")
    return parts[0] in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps", "exp_probs_b")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_prune_keeps_kept_blocks_and_all_else_byte_for_byte(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, family: str, quantization: str
) -> None:
    """One mask, from the F32 file's profile, serves every quantisation."""
    parent = model_file(family, quantization)
    mask = unused_experts(profile_of(family), 6)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    before, after = raw_tensors(parent), raw_tensors(out)
    assert list(before) == list(after)
    touched = 0
    for name, (type_name, shape, data) in before.items():
        new_type, new_shape, new_data = after[name]
        assert new_type == type_name
        if name.startswith("blk.") and is_expert_tensor(name) and int(name.split(".")[1]) in mask.kept:
            touched += 1
            kept = list(mask.kept[int(name.split(".")[1])])
            assert new_shape == [*shape[:-1], 6]
            np.testing.assert_array_equal(new_data.reshape(6, -1), data.reshape(16, -1)[kept])
        else:
            assert new_shape == shape
            np.testing.assert_array_equal(new_data, data)
    assert touched >= 3 * len(mask.kept)
    assert out.stat().st_size == plan_prune(coe.MoeModel(parent), mask).n_bytes


def test_prune_carries_metadata_over(tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf) -> None:
    parent = model_file("deepseek2", "Q8_0")
    mask = unused_experts(profile_of("deepseek2"), 6)
    before, after = fields(parent), fields(coe.prune(parent, mask, tmp_path / "out.gguf"))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    assert changed.pop("deepseek2.expert_count") == 6
    assert changed.pop("general.sampling.temp") == pytest.approx(0.6)
    assert changed.pop("general.sampling.penalty_repeat") == pytest.approx(1.05)
    assert changed == {
        "coe.mask.mode": "prune",
        "coe.mask.keep": 6,
        "coe.mask.digest": mask.digest,
        "coe.mask.parent_fingerprint": coe.MoeModel(parent).fingerprint,
        "coe.mask.parent_expert_count": 16,
        "coe.mask.notice": safety_notice(),
    }
    assert set(before) <= set(after)


@pytest.mark.parametrize(
    ("given", "own", "expected"),
    [
        (SamplerDefaults(), {}, (0.6, 1.05)),
        (SamplerDefaults(temperature=0.3), {}, (0.3, 1.05)),
        (SamplerDefaults(repeat_penalty=1.0), {"temp": 1.5}, (1.5, 1.0)),
        (SamplerDefaults(temperature=0.0), {"temp": 1.5, "penalty_repeat": 1.2}, (0.0, 1.2)),
        (None, {}, (None, None)),
        (None, {"temp": 1.5}, (1.5, None)),
    ],
)
def test_sampling_settings_are_the_given_ones_then_the_parents_then_the_published(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: ProfileOf,
    given: SamplerDefaults | None,
    own: dict[str, float],
    expected: tuple[float | None, float | None],
) -> None:
    """Other settings of the parent stay, and the file is verified whatever was chosen."""
    parent, out = tmp_path / "parent.gguf", tmp_path / "out.gguf"
    source = model_file("llama", "F32")
    entries = {f"general.sampling.{key}": value for key, value in own.items()}
    for key, value in {**entries, "general.sampling.min_p": 0.25}.items():
        source = append_entry(source, tmp_path / f"with {key}.gguf", encode_entry(key, value))
    parent.write_bytes(source.read_bytes())
    mask = unused_experts(profile_of("llama"), 8)
    after = fields(coe.prune(parent, mask, out, sampling=given))
    for key, value in zip(("temp", "penalty_repeat"), expected, strict=True):
        found = after.get(f"general.sampling.{key}")
        assert found is None if value is None else found == pytest.approx(value)
    assert after["general.sampling.min_p"] == 0.25
    assert all(check.passed for check in coe.verify(out, parent, mask))


def test_sampling_settings_are_what_gguf_would_write(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    """The first of several files has them, as llama.cpp expects."""
    mask = unused_experts(profile_of("llama"), 8)
    first = coe.prune(model_file("llama", "F32"), mask, tmp_path / "out.gguf", split_max_bytes=100_000)
    others = coe.MoeModel(first).paths[1:]
    writer = GGUFWriter(tmp_path / "expected.gguf", "llama")
    writer.add_sampling_temp(0.6)
    writer.add_sampling_penalty_repeat(1.05)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    theirs, ours = GGUFReader(tmp_path / "expected.gguf").fields, GGUFReader(first).fields
    for key in SAMPLING_KEYS:
        assert ours[key].types == theirs[key].types == [GGUFValueType.FLOAT32]
        assert [part.tobytes() for part in ours[key].parts] == [part.tobytes() for part in theirs[key].parts]
    assert others
    assert not any(set(SAMPLING_KEYS) & set(fields(path)) for path in others)


def test_zeroed_models_get_no_sampling_settings(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    """They are the parent, for study."""
    mask = unused_experts(profile_of("llama"), 8)
    out = coe.zero(model_file("llama", "F32"), mask, tmp_path / "out.gguf")
    assert not set(SAMPLING_KEYS) & set(fields(out))


@pytest.mark.parametrize("sampling", [SamplerDefaults(), SamplerDefaults(temperature=0.3), None])
def test_pruning_and_quantising_in_one_step_keeps_the_sampling_settings(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, sampling: SamplerDefaults | None
) -> None:
    parent, mask = model_file("llama", "F32"), unused_experts(profile_of("llama"), 8)
    options = coe.QuantizeOptions("Q4_0")
    pruned = coe.prune(parent, mask, tmp_path / "pruned.gguf", sampling=sampling)
    two = coe.quantize(pruned, options, tmp_path / "two.gguf")
    one = coe.prune_and_quantize(parent, mask, options, tmp_path / "one.gguf", sampling=sampling)
    assert one.read_bytes() == two.read_bytes()
    assert (set(SAMPLING_KEYS) <= set(fields(one))) == (sampling is not None)
    assert all(check.passed for check in coe.verify(one, parent, mask))


def test_sampling_settings_out_of_range_are_refused() -> None:
    values = {"temperature": (-1.0, 101.0, float("nan")), "repeat_penalty": (0.0, 1e-40, float("inf"))}
    for bad in ({name: value} for name, several in values.items() for value in several):
        with pytest.raises(coe.InputError, match=r"temperature|penalty"):
            SamplerDefaults(**bad)


@pytest.mark.parametrize("method", coe.METHODS)
def test_the_safety_notice_names_the_method(method: str) -> None:
    """Each has a text of its own, and none is that for masks of unknown origin."""
    notices = {safety_notice(other) for other in (*coe.METHODS, None)}
    assert len(notices) == len(coe.METHODS) + 1
    assert safety_notice(method) != safety_notice("no such method") == safety_notice()


def test_a_written_file_says_how_its_experts_were_chosen(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    mask = coe.build_mask(profile_of("llama"), 8, method="frequency")
    written = coe.MoeModel(coe.prune(model_file("llama", "F32"), mask, tmp_path / "out.gguf"))
    assert written.files[0].get("coe.mask.notice") == safety_notice("frequency")


def test_metadata_of_every_kind_is_carried_byte_for_byte(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    """Empty arrays, which gguf's writer refuses, and odd types come through: the bytes are copied."""
    odd, parent = tmp_path / "odd.gguf", tmp_path / "parent.gguf"

    def add(writer: GGUFWriter) -> None:
        writer.add_array("odd.texts", ["", "ä", "x" * 300])
        writer.add_array("odd.numbers", [1.5, -2.0])
        writer.add_bool("odd.flag", True)
        writer.add_uint64("odd.large", 2**63)

    copy_model(model_file("qwen3moe", "F32"), odd, add=add)
    key = b"odd.empty"
    append_entry(odd, parent, struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 5, 0))
    mask = unused_experts(profile_of("qwen3moe"), 6)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    before, after = coe.MoeModel(parent).files[0], coe.MoeModel(out).files[0]
    for key in before.keys:
        if key != "qwen3moe.expert_count":
            assert after.raw_entry(key) == before.raw_entry(key)
    assert after.get("odd.texts") == ["", "ä", "x" * 300]
    assert after.get("odd.large") == 2**63
    assert after.get("odd.empty") == []


@pytest.mark.parametrize("quantization", ["F32", "Q4_K_M"])
def test_zero_copies_and_zeroes_in_place_alike(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, family: str, quantization: str
) -> None:
    """Weights and biases of dropped experts are zero, all else is the parent's; in place, only those bytes
    of the file change."""
    parent = model_file(family, quantization)
    mask = unused_experts(profile_of(family), 6)
    copy = coe.zero(parent, mask, tmp_path / "copy.gguf")
    in_place = tmp_path / "in_place.gguf"
    in_place.write_bytes(parent.read_bytes())
    zeroed = coe.zero_in_place(in_place, mask)
    before, after = raw_tensors(parent), raw_tensors(copy)
    expected_zeroed = 0
    for name, (_, _, data) in before.items():
        expected = data.copy()
        block = int(name.split(".")[1]) if name.startswith("blk.") else -1
        if block in mask.kept and "_exps." in name and name.endswith((".weight", ".bias")):
            slices = expected.reshape(16, -1)
            slices[mask.dropped(block)] = 0
            expected_zeroed += slices.shape[1] * 10
        np.testing.assert_array_equal(after[name][2], expected)
    assert zeroed.n_bytes == expected_zeroed > 0
    assert zeroed.freed >= 0
    changed = raw_tensors(in_place)
    for name, (_, _, data) in after.items():
        np.testing.assert_array_equal(changed[name][2], data)
    header = coe.MoeModel(parent).files[0].header.data_offset
    assert in_place.read_bytes()[:header] == parent.read_bytes()[:header]


def test_split_models_are_read(tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf) -> None:
    """The specialist of a split model is the specialist of the whole one, byte for byte."""
    parent = model_file("gemma4", "Q4_K_M")
    shards = split_model(parent, tmp_path, 3)
    mask = unused_experts(profile_of("gemma4"), 8)
    whole = coe.prune(parent, mask, tmp_path / "whole.gguf")
    joined = coe.prune(shards[0], mask, tmp_path / "joined.gguf")
    before, after = raw_tensors(whole), raw_tensors(joined)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name][2], before[name][2])
    assert fields(whole) == fields(joined)
    assert all(check.passed for check in coe.verify(joined, shards[0], mask))
    with pytest.raises(coe.InputError, match="first"):
        coe.MoeModel(shards[1])
    shards[1].write_bytes(shards[2].read_bytes())
    with pytest.raises(coe.InputError, match="2 of 3"):
        coe.MoeModel(shards[0])
    shards[2].unlink()
    with pytest.raises(coe.InputError, match=r"-00003-of-00003\.gguf"):
        coe.MoeModel(shards[0])


def test_split_models_are_zeroed_in_place(tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf) -> None:
    parent = model_file("gemma4", "Q8_0")
    shards = split_model(parent, tmp_path, 2)
    mask = unused_experts(profile_of("gemma4"), 8)
    coe.zero_in_place(shards[0], mask)
    checks = coe.verify(shards[0], parent, mask)
    assert all(check.passed for check in checks), checks


def test_a_mask_serves_all_files_of_a_model_and_no_other(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, family: str
) -> None:
    mask = unused_experts(profile_of(family, "Q4_K_M"), 8)
    for quantization in QUANTIZATIONS:
        coe.prune(model_file(family, quantization), mask, tmp_path / f"{quantization}.gguf")
    other = tmp_path / "other.gguf"
    write_random_model(other, family, seed=1)
    with pytest.raises(coe.InputError, match="weights"):
        coe.prune(other, mask, tmp_path / "out.gguf")
    write_random_model(other, family, n_experts=32)
    with pytest.raises(coe.InputError, match=r"\b16\b.*\b32\b"):
        coe.prune(other, mask, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_specialist_can_be_pruned_again(tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf) -> None:
    """Its own profile gives its own mask, and the record is the last mask's."""
    first = coe.prune(model_file("llama", "F32"), unused_experts(profile_of("llama"), 10), tmp_path / "a.gguf")
    profile = coe.profile(first, [list(range(200))], n_threads=1)
    assert profile.n_experts == 10
    mask = unused_experts(profile, 5)
    second = coe.prune(first, mask, tmp_path / "b.gguf")
    assert fields(second)["coe.mask.digest"] == mask.digest
    assert fields(second)["coe.mask.parent_expert_count"] == 10
    assert all(check.passed for check in coe.verify(second, first, mask))


def test_a_mask_that_leaves_a_layer_out_is_refused(model_file: ModelFile, profile_of: ProfileOf) -> None:
    mask = unused_experts(profile_of("olmoe"), 8)
    partial = replace(mask, kept={block: mask.kept[block] for block in (0, 1)})
    with pytest.raises(coe.InputError, match="layers"):
        plan_prune(coe.MoeModel(model_file("olmoe", "F32")), partial)


@pytest.mark.parametrize("row", ["glm4moe, MTP", "deepseek2, groups, MTP"])
def test_layers_that_predict_further_tokens_keep_their_largest_router_rows(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, row: str
) -> None:
    parent, profile = model_file(row, "F32"), profile_of(row)
    out = coe.prune(parent, unused_experts(profile, 8), tmp_path / "out.gguf")
    before, after = tensors_of(parent), tensors_of(out)
    norms = np.linalg.norm(before["blk.3.ffn_gate_inp.weight"].astype(np.float64), axis=1)
    groups = np.arange(16).reshape(profile.n_groups, -1)
    kept = sorted(e for group in groups for e in sorted(group, key=lambda e: -norms[e])[: 8 // profile.n_groups])
    assert kept != list(range(8))
    cut = [name for name in before if name.startswith("blk.3.") and is_expert_tensor(name)]
    assert len(cut) >= 4
    for name in cut:
        np.testing.assert_array_equal(after[name], before[name][kept])
    assert fields(out)["coe.mask.mtp"] == "kept by router norm"
    assert all(
        check.passed for check in coe.verify(out, parent, unused_experts(profile, 8))
    )  # loads MTP layers too


@pytest.mark.parametrize("row", ["glm4moe, MTP", "qwen35moe, MTP", "nemotron_h_moe, MTP"])
def test_layers_that_predict_further_tokens_can_be_dropped(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, row: str, documents: list[list[int]]
) -> None:
    parent, mask = model_file(row, "F32"), unused_experts(profile_of(row), 8)
    model = coe.MoeModel(parent)
    kept = coe.prune(parent, mask, tmp_path / "kept.gguf")
    dropped = coe.prune(parent, mask, tmp_path / "dropped.gguf", drop_mtp=True)
    last = f"blk.{model.n_blocks - 1}."
    assert tensors_of(dropped).keys() == {name for name in tensors_of(kept) if not name.startswith(last)}
    assert coe.MoeModel(dropped).n_blocks == model.n_blocks - 1
    assert not coe.MoeModel(dropped).mtp_layers
    changed = {key for key, value in fields(kept).items() if fields(dropped)[key] != value}
    lists = {
        key for key, value in fields(kept).items() if isinstance(value, list) and len(value) == model.n_blocks
    }
    lists -= {"qwen35moe.rope.dimension_sections"}  # four of another kind
    counts = {f"{model.architecture}.{key}" for key in ("block_count", "nextn_predict_layers")}
    assert changed == {"coe.mask.mtp"} | counts | lists
    outputs = []
    for path in (kept, dropped):
        assert all(check.passed for check in coe.verify(path, parent, mask))
        with coe.Model(path, n_ctx=128, n_threads=1) as loaded:
            outputs.append(loaded.logits(documents[0]))
    np.testing.assert_array_equal(*outputs)


def test_dropping_mtp_layers_of_a_model_without_any_is_refused(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    with pytest.raises(coe.InputError, match=r"predict|MTP"):
        coe.prune(
            model_file("llama", "F32"), unused_experts(profile_of("llama"), 8), tmp_path / "o.gguf", drop_mtp=True
        )
    assert not list(tmp_path.iterdir())


def tensors_of(path: Path) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def test_a_block_counted_as_mtp_without_its_tensors_is_an_ordinary_block(
    tmp_path: Path, documents: list[list[int]]
) -> None:
    """llama.cpp runs it (DeepSeek 4), so it is profiled and cut by the mask."""
    parent = tmp_path / "parent.gguf"
    write_random_model(parent, "deepseek4", extra_metadata={"deepseek4.nextn_predict_layers": 1})
    profile = coe.profile(parent, documents, n_ctx=128, n_threads=1)
    assert profile.layers == (0, 1, 2, 3)
    mask = unused_experts(profile, 8)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    logits = []
    for path, live in ((parent, mask), (out, None)):
        with coe.Model(path, n_ctx=128, n_threads=1, f32_kv=True) as model:
            if live is not None:
                model.apply(live)
            logits.append(model.logits(documents[4]))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5 * np.abs(logits[0]).max())


def test_a_specialist_without_mtp_layers_can_be_pruned_again(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    """Its record still says that they were dropped: from its own parent, not from it."""
    first = coe.prune(
        model_file("glm4moe, MTP", "F32"),
        unused_experts(profile_of("glm4moe, MTP"), 12),
        tmp_path / "first.gguf",
        drop_mtp=True,
    )
    mask = unused_experts(coe.profile(first, documents, n_ctx=128, n_threads=1), 8)
    second = coe.prune(first, mask, tmp_path / "second.gguf")
    assert all(check.passed for check in coe.verify(second, first, mask))


def test_no_layer_may_need_more_than_is_kept(tmp_path: Path) -> None:
    """llama.cpp holds the count of experts against every block's top-k, also of those that no profile sees."""
    parent = tmp_path / "parent.gguf"
    key = "nemotron_h_moe.expert_used_count"
    write_random_model(parent, "nemotron_h_moe, MTP", extra_metadata={key: [0, 3, 0, 3, 6]})
    model = coe.MoeModel(parent)
    assert model.top_k == 3
    with pytest.raises(coe.InputError, match=r"keep.*\b6\b"):
        model.check_cut(4)


@pytest.mark.parametrize(("keep", "reason"), [(6, r"\b4\b"), (4, r"\b8\b"), (3, r"\b8\b"), (17, r"\b16\b")])
def test_groups_set_what_can_be_kept(model_file: ModelFile, keep: int, reason: str) -> None:
    """16 experts in 4 groups of which 2 are used: each must keep two, and 2 of them the 4 of a token."""
    with pytest.raises(coe.InputError, match=reason):
        coe.MoeModel(model_file("deepseek2, groups", "F32")).check_cut(keep)


def test_a_mask_that_leaves_groups_uneven_is_refused(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    mask = unused_experts(profile_of("deepseek2, groups"), 8)
    uneven = replace(mask, kept={**mask.kept, 1: tuple(range(8))})
    with pytest.raises(coe.InputError, match=r"groups.*\[1\]"):
        coe.prune(model_file("deepseek2, groups", "F32"), uneven, tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_an_expert_count_with_a_special_meaning_is_refused(tmp_path: Path) -> None:
    """Llama 4 with 128 experts has another attention than with any other number."""
    for n_experts, keep in ((128, 64), (160, 128)):
        path = tmp_path / f"{n_experts}.gguf"
        write_random_model(path, "llama4", n_experts=n_experts, n_ff_expert=32)
        model = coe.MoeModel(path)
        with pytest.raises(coe.InputError, match=r"llama4.*128"):
            model.check_cut(keep)
        assert (model.obstacle is not None) == (n_experts == 128)
        model.check_cut(n_experts)


@pytest.mark.parametrize("size", [200_000, 900_000, 10_000_000])
def test_split_outputs_hold_what_one_file_would(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, size: int
) -> None:
    parent, mask = model_file("qwen3moe", "Q4_K_M"), unused_experts(profile_of("qwen3moe"), 8)
    whole = coe.prune(parent, mask, tmp_path / "whole.gguf")
    first = coe.prune(parent, mask, tmp_path / "split.gguf", split_max_bytes=size)
    paths = coe.MoeModel(first).paths
    assert (len(paths) > 1) == (size < whole.stat().st_size)
    assert sorted(tmp_path.iterdir()) == sorted([whole, *paths])
    merged: dict[str, tuple[str, list[int], NDArray[np.uint8]]] = {}
    for number, path in enumerate(paths):
        tensors = raw_tensors(path)
        assert path.stat().st_size <= size or len(tensors) == 1
        merged |= tensors
        if len(paths) > 1:
            assert path.name == f"split-{number + 1:05}-of-{len(paths):05}.gguf"
            assert (fields(path)["split.no"], fields(path)["split.count"]) == (number, len(paths))
    assert list(merged) == list(raw_tensors(whole))
    for name, (type_name, shape, data) in raw_tensors(whole).items():
        assert merged[name][:2] == (type_name, shape)
        np.testing.assert_array_equal(merged[name][2], data)
    assert fields(paths[0]).keys() >= fields(whole).keys()
    assert all(check.passed for check in coe.verify(first, parent, mask))
    with pytest.raises(coe.InputError, match="exists"):
        coe.prune(parent, mask, tmp_path / "split.gguf", split_max_bytes=size)
    # As llama-gguf-split merges: one file that still has the keys, and says that it is none of several.
    again = tmp_path / "merged.gguf"
    copy_model(whole, again, add=lambda writer: writer.add_uint16("split.count", 0))
    assert all(check.passed for check in coe.verify(again, parent, mask))


def test_a_split_output_that_fails_leaves_nothing(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    parent = tmp_path / "parent.gguf"
    data = bytearray(model_file("olmoe", "F32").read_bytes())
    tensor = coe.MoeModel(model_file("olmoe", "F32")).tensors["blk.2.ffn_down_exps.weight"]
    data[tensor.offset : tensor.offset + tensor.n_bytes] = np.full(tensor.n_bytes // 4, np.nan, "<f4").tobytes()
    parent.write_bytes(data)
    with pytest.raises(coe.CoeError, match="NaN"):
        coe.prune(parent, unused_experts(profile_of("olmoe"), 8), tmp_path / "out.gguf", split_max_bytes=10**6)
    assert list(tmp_path.iterdir()) == [parent]


def test_a_parent_with_nan_leaves_no_output(tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf) -> None:
    parent = tmp_path / "parent.gguf"
    data = bytearray(model_file("gemma4", "Q8_0").read_bytes())
    mask = unused_experts(profile_of("gemma4"), 8)
    tensor = coe.MoeModel(model_file("gemma4", "Q8_0")).tensors["blk.1.ffn_down_exps.weight"]
    kept = mask.kept[1][3]
    start = tensor.offset + kept * (tensor.n_bytes // 16)
    data[start : start + 2] = b"\x00\x7e"  # a half-precision NaN as the first block's scale
    parent.write_bytes(data)
    with pytest.raises(coe.CoeError, match=rf"ffn_down_exps\.weight.*NaN.*expert {kept}\b"):
        coe.prune(parent, mask, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent.gguf"]


def test_outputs_are_not_overwritten_and_inputs_never(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    parent = tmp_path / "parent.gguf"
    parent.write_bytes(model_file("llama", "Q8_0").read_bytes())
    mask = unused_experts(profile_of("llama"), 8)
    link, hard = tmp_path / "link.gguf", tmp_path / "hard.gguf"
    link.symlink_to(parent)
    hard.hardlink_to(parent)
    for name in (parent, link, hard):
        with pytest.raises(coe.InputError, match="input"):
            coe.prune(parent, mask, name, force=True)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    with pytest.raises(coe.InputError, match="exists"):
        coe.prune(parent, mask, out)
    coe.prune(parent, mask, out, force=True)
    assert parent.read_bytes() == model_file("llama", "Q8_0").read_bytes()


MEMORY = """
import resource, sys
from pathlib import Path
import coe_native as coe
parent, mask, out = sys.argv[1:]
loaded = coe.ExpertMask.load(mask)
coe.MoeModel(parent)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(coe.prune if "prune" in out else coe.zero)(parent, loaded, out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted otherwise elsewhere")
@pytest.mark.parametrize("mode", ["prune", "zero"])
@pytest.mark.parametrize(
    "sizes",
    [{"n_layers": 4, "n_experts": 64, "n_ff_expert": 768}, {"n_vocab": 320_000}],
    ids=["experts", "vocabulary"],
)
def test_memory_stays_flat(tmp_path: Path, mode: str, sizes: dict[str, int]) -> None:
    """A file of 600 MB, be it in experts or in a few large tensors without any, takes less than 300 MB above
    start-up: surgery streams."""
    parent = tmp_path / "parent.gguf"
    write_random_model(parent, "qwen3moe", **sizes)
    assert parent.stat().st_size > 600e6
    model = coe.MoeModel(parent)
    kept = {block: tuple(range(0, model.n_experts, 2)) for block in model.blocks}
    mask = coe.ExpertMask(model.architecture, model.fingerprint, model.n_experts, model.n_experts // 2, kept)
    mask.save(tmp_path / "mask.json")
    arguments = [str(parent), str(tmp_path / "mask.json"), str(tmp_path / f"{mode}.gguf")]
    command = [sys.executable, "-c", MEMORY, *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 300e6


def test_zeroed_models_record_their_mode(tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf) -> None:
    parent = model_file("gpt-oss", "F32")
    mask = unused_experts(profile_of("gpt-oss"), 8)
    out = coe.zero(parent, mask, tmp_path / "zero.gguf")
    assert fields(out)["coe.mask.mode"] == "zero"
    assert fields(out)["gpt-oss.expert_count"] == 16
    assert out.stat().st_size == plan_zero(coe.MoeModel(parent), mask).n_bytes


@pytest.mark.parametrize("padding", [0, 4, 8, 12, 16, 20, 24, 28])
def test_outputs_have_an_alignment_that_llama_cpp_loads(
    model_file: ModelFile, profile_of: ProfileOf, tmp_path: Path, padding: int
) -> None:
    """Data of a parent with less may begin at a multiple of 16 that is none of 32, as its header's size has it."""

    def align(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(16)
        writer.add_string("x.padding", "p" * padding)

    usual, parent = model_file("olmoe", "Q8_0"), tmp_path / "parent.gguf"
    copy_model(usual, parent, add=align)
    assert coe.MoeModel(parent).files[0].header.alignment == 16
    mask = unused_experts(profile_of("olmoe"), 8)
    expected = tensors_of(coe.prune(usual, mask, tmp_path / "usual.gguf"))
    for out in (
        coe.prune(parent, mask, tmp_path / "pruned.gguf"),
        coe.prune(parent, mask, tmp_path / "split.gguf", split_max_bytes=300_000),
    ):
        assert coe.MoeModel(out).metadata("general.alignment") == 32
        with coe.Model(out, n_ctx=32, n_threads=1) as model:
            assert np.isfinite(model.logits([1, 2, 3])).all()
    written = tensors_of(tmp_path / "pruned.gguf")
    assert all(np.array_equal(written[name], values) for name, values in expected.items())
    assert coe.MoeModel(coe.zero(parent, mask, tmp_path / "zeroed.gguf")).metadata("general.alignment") == 32
