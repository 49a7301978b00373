"""Pruned Hugging Face checkpoints against brute force, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from support import checkpoints
from support.checkpoints import EXPERTS, FORMS, Made

import coe_native as coe
from coe_native.surgery import hf_prune
from coe_native.surgery.hf_match import _alike
from coe_native.surgery.hf_prune import prune_checkpoint
from coe_native.surgery.hf_verify import verify_checkpoint

MTP = 3
"""The layer of the form `deepseek` that predicts a further token: it is not in masks."""


def draw_kept(form: str, made: Made, keep: int, seed: int) -> dict[int, list[int]]:
    """Random experts of each layer that a profile sees, as many in each group."""
    drawn = random.Random(seed)
    groups = [range(0, 4), range(4, 8)] if form == "deepseek" else [range(EXPERTS)]
    return {
        layer: sorted(e for group in groups for e in drawn.sample(group, keep // len(groups)))
        for layer in made.routers
        if (form, layer) != ("deepseek", MTP)
    }


def expected_of(form: str, made: Made, kept: dict[int, list[int]], keep: int) -> dict[str, tuple[str, np.ndarray]]:
    if form == "deepseek":
        norms = np.linalg.norm(made.values(MTP).astype(np.float64), axis=1)
        best = [
            group[0] + np.argsort(-norms[group], kind="stable")[: keep // 2]
            for group in ([*range(4)], [*range(4, 8)])
        ]
        kept = {**kept, MTP: sorted(int(expert) for expert in np.concatenate(best))}
    return checkpoints.pruned(made, kept)


def assert_equal(found: dict[str, tuple[str, np.ndarray]], expected: dict[str, tuple[str, np.ndarray]]) -> None:
    assert set(found) == set(expected)
    for name, (dtype, data) in expected.items():
        assert found[name][0] == dtype
        np.testing.assert_array_equal(found[name][1], data, name)


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_are_pruned_as_by_hand(tmp_path: Path, form: str, n_files: int) -> None:
    for keep in (2, 6, 8) if form != "deepseek" else (4, 6, 8):  # a group needs two
        made = FORMS[form]()
        kept = draw_kept(form, made, keep, seed=keep)
        parent, out = tmp_path / f"parent-{keep}", tmp_path / f"out-{keep}"
        checkpoints.write(made, parent, n_files)
        before = {path: path.read_bytes() for path in parent.iterdir()}
        mask = checkpoints.mask_for(made, kept, len(made.routers) + (form == "deepseek"))
        done = prune_checkpoint(parent, mask, out)
        assert done.checked == (form != "mlx")
        assert done.left_out == ("pytorch_model.bin",)
        assert_equal(checkpoints.read(out), expected_of(form, made, kept, keep))
        config = json.dumps(made.config)
        for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
            config = config.replace(f'"{key}": {EXPERTS}', f'"{key}": {keep}')
        assert json.loads((out / "config.json").read_text()) == json.loads(config)
        assert (out / "tokenizer.json").read_text() == '{"version": "1.0"}'
        if n_files > 1:
            index = json.loads((out / "model.safetensors.index.json").read_text())
            assert set(index["weight_map"]) == set(checkpoints.read(out))
            assert index["metadata"]["total_size"] == done.n_bytes
        assert [check.name for check in verify_checkpoint(out, parent, mask) if not check.passed] == []
        assert before == {path: path.read_bytes() for path in parent.iterdir()}
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@given(st.integers(0, 2**32), st.sampled_from(sorted(FORMS)), st.integers(1, 5))
def test_any_mask_is_applied(tmp_path_factory: pytest.TempPathFactory, seed: int, form: str, n_files: int) -> None:
    made = FORMS[form]()
    made.seed = seed
    keep = random.Random(seed).choice([4, 6])
    kept = draw_kept(form, made, keep, seed)
    directory = tmp_path_factory.mktemp("any")
    checkpoints.write(made, directory / "parent", n_files)
    mask = checkpoints.mask_for(made, kept, len(made.routers) + (form == "deepseek"))
    prune_checkpoint(directory / "parent", mask, directory / "out")
    assert_equal(checkpoints.read(directory / "out"), expected_of(form, made, kept, keep))


def changed(name: str, value: Any) -> Callable[[Made], None]:
    def change(made: Made) -> None:
        made.config[name] = value

    return change


def without(name: str) -> Callable[[Made], None]:
    return lambda made: made.tensors.pop(name) and None


def with_tensor(name: str, dtype: str, *shape: int) -> Callable[[Made], None]:
    return lambda made: made.add(name, dtype, *shape)


REFUSED: dict[str, tuple[str, Callable[[Made], None], str]] = {
    "no count": ("qwen3", changed("num_experts", None), "counts no experts"),
    "two counts": (
        "qwen3",
        changed("n_routed_experts", 7),
        "different ways: num_experts = 8, n_routed_experts = 7",
    ),
    "a list": ("qwen3", changed("moe_num_experts", [8, 8]), "different ways"),
    "another count": ("qwen3", changed("num_experts", 9), r"number of experts differs \(8, not 9\)"),
    "a huge count": ("qwen3", changed("num_experts", 10**10), "number of experts differs"),
    "an unknown count": ("qwen3", changed("expert_num", EXPERTS), "expert_num may or may not count"),
    "experts outside layers": (
        "qwen3",
        with_tensor("mtp.0.ffn.experts.0.w1.weight", "BF16", 2, 2),
        r"mtp\.0\.ffn\.experts\.0\.w1.*may belong to experts",
    ),
    "numbers of experts": (
        "qwen3",
        with_tensor("model.layers.0.mlp.gate.tid2eid", "U32", 20, 2),
        "tid2eid, which may belong to experts or hold their numbers",
    ),
    "an expert of two names": (
        "qwen3",
        with_tensor("model.layers.0.mlp.experts.01.up_proj.weight", "BF16", 2, 2),
        r"experts\.01\.up_proj",
    ),
    "a pattern of an expert": (
        "qwen3",
        changed("quantization_config", {"ignore": [r"re:.*experts\.3\..*"]}),
        "names a single expert",
    ),
    "no layers": ("qwen3", changed("num_hidden_layers", "two"), "how many layers"),
    "an expert less": (
        "qwen3",
        without("model.layers.1.mlp.experts.5.up_proj.weight"),
        r"layers\.1\.mlp.*expert 5",
    ),
    "no router": ("qwen3", without("model.layers.1.mlp.gate.weight"), "router of .*is not clear: none"),
    "two routers": (
        "qwen3",
        with_tensor("model.layers.1.mlp.router.weight", "BF16", EXPERTS, 12),
        r"not clear: .*gate\.weight, .*router\.weight",
    ),
    "an odd tensor": (
        "qwen3",
        with_tensor("model.layers.1.mlp.odd", "BF16", EXPERTS),
        r"mlp\.odd: it may or may not",
    ),
    "another dimension": (
        "gpt_oss",
        with_tensor("model.layers.0.mlp.experts.odd", "BF16", 3, EXPERTS),
        r"experts\.odd: its first dimension",
    ),
    "a transposed router": (
        "qwen3",
        with_tensor("model.layers.0.mlp.router_logits.bias", "BF16", 2, EXPERTS),
        r"router_logits\.bias: its first dimension is not that of the experts",
    ),
    "two modules": (
        "qwen3",
        with_tensor("model.layers.0.other.experts.gate_up_proj", "BF16", EXPERTS, 2, 2),
        r"also experts in other\.",
    ),
    "a quantised router with scales of blocks": (
        "mlx",
        with_tensor("model.layers.0.mlp.gate.weight_scale_inv", "F32", 1, 2),
        r"gate\.weight_scale_inv: it belongs to a quantised router",
    ),
    "a scale as wide as there are experts": (
        "narrow",
        with_tensor("model.layers.0.mlp.gate.scale", "BF16", EXPERTS),
        r"gate\.scale: the model is as wide as it has experts",
    ),
    "other experts": (
        "qwen3",
        with_tensor("model.layers.0.mlp.chunk_experts.0.up_proj.weight", "BF16", 2, 2),
        r"chunk_experts\.0.*may belong to experts",
    ),
    "a correction elsewhere": (
        "qwen3",
        with_tensor("model.layers.0.moe_statics.e_score_correction_bias", "F32", 1, EXPERTS),
        r"moe_statics.*may belong to experts",
    ),
    "two counts of one name": (
        "qwen3",
        changed("other_config", {"num_experts": 16, "num_hidden_layers": 2}),
        "different ways: num_experts = 8, num_experts = 16",
    ),
    "an expert in a text": (
        "qwen3",
        changed("quantization_config", {"ignore": "model.layers.0.mlp.experts.3.up_proj"}),
        "names a single expert",
    ),
    "an expert in a pattern": (
        "qwen3",
        changed("quantization_config", {"ignore": [[r"re:.*experts\.(?:0|1)\..*"]]}),
        "names a single expert",
    ),
    "a named expert": (
        "qwen3",
        changed("quantization_config", {"ignore": ["model.layers.0.mlp.experts.7.up_proj"]}),
        r"names a single expert \(experts\.7\)",
    ),
}


def narrow() -> Made:
    """A model as wide as it has experts."""
    made = FORMS["qwen3"]()
    for name in made.routers.values():
        dtype, data = made.tensors[name]
        made.tensors[name] = dtype, data[:, :EXPERTS]
    return made


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_clear_is_refused(tmp_path: Path, case: str) -> None:
    form, change, message = REFUSED[case]
    made = narrow() if form == "narrow" else FORMS[form]()
    kept = draw_kept(form, made, 4, 0)
    mask = checkpoints.mask_for(made, kept, 2)
    change(made)
    checkpoints.write(made, tmp_path / "parent")
    with pytest.raises(coe.InputError, match=message) as caught:
        prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q4_0"])
def test_quantised_routers_of_a_gguf_are_told_apart(name: str) -> None:
    ours, others = np.random.default_rng(0).normal(0, 0.1, (2, 8, 64)).astype(np.float32)
    kind = GGMLQuantizationType[name]
    theirs = dequantize(quantize(ours, kind), kind)
    assert _alike(ours.ravel(), theirs.ravel(), is_float=False)
    assert not _alike(ours.ravel(), theirs.ravel(), is_float=True)
    assert not _alike(others.ravel(), theirs.ravel(), is_float=False)


def test_more_about_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """Files that name single experts, two sets of weights, groups of too few experts, inputs in the output."""
    made = FORMS["qwen3"]()
    mask = checkpoints.mask_for(made, draw_kept("qwen3", made, 4, 0), 2)
    parent, out = tmp_path / "parent", tmp_path / "out"
    checkpoints.write(made, parent, 2)

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(coe.InputError, match=message):
            prune_checkpoint(parent, mask, out, **options)

    other = parent / "quant_model_description.json"
    other.write_text('{"model.layers.0.mlp.experts.3.up_proj.weight": "W8A8"}')
    refused("description.json: names a single expert")
    other.write_text(r'{"ignore": ["re:.*experts\\.[0-9]+\\.up_proj", "re:.*experts\\.\\d+.*"]}')
    (parent / "model.safetensors").write_bytes(b"others")
    refused("has model.safetensors and an .* of other files")
    (parent / "model.safetensors").unlink()
    prune_checkpoint(parent, mask, out)
    refused("holds .*m.json, an input", force=True, inputs=(out / "m.json",))
    grouped = FORMS["deepseek"]()
    checkpoints.write(grouped, tmp_path / "grouped")
    one_each = checkpoints.mask_for(grouped, {1: [0, 4], 2: [1, 5]}, 4)
    with pytest.raises(coe.InputError, match="a group"):
        prune_checkpoint(tmp_path / "grouped", one_each, tmp_path / "out2")
    made.config["vision_config"] = {"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
    checkpoints.write(made, tmp_path / "vision")
    one = checkpoints.mask_for(made, {0: [1], 1: [2]}, 2)
    with pytest.raises(coe.InputError, match="keeps 1 experts, but a token needs 2"):
        prune_checkpoint(tmp_path / "vision", one, tmp_path / "out2")


def test_configs_are_read_as_they_are(tmp_path: Path) -> None:
    """With Infinity, which JSON does not have, and with counts within lists."""
    made = FORMS["qwen3"]()
    made.config |= {"time_step_limit": [0.0, float("inf")], "blocks": [{"moe": {"num_local_experts": EXPERTS}}]}
    checkpoints.write(made, tmp_path / "parent", 2)
    (tmp_path / "parent" / "dangling").symlink_to("nowhere")
    mask = checkpoints.mask_for(made, draw_kept("qwen3", made, 4, 0), 2)
    with pytest.raises(coe.InputError, match="dangling: cannot be read"):
        prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out")
    (tmp_path / "parent" / "dangling").unlink()
    prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**made.config, "num_experts": 4, "blocks": [{"moe": {"num_local_experts": 4}}]}
    for depth in (101, 700, 3000):
        for opening, closing in ('{"a":', "}"), ("[", "]"):
            text = '{"a":' + opening * depth + "1" + closing * depth + "}"
            (tmp_path / "parent" / "config.json").write_text(text)
            with pytest.raises(coe.InputError, match="is damaged"):
                prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out2")
    made.config["half"] = "\ud800"
    (tmp_path / "parent" / "config.json").write_text(json.dumps(made.config))
    prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out2")
    assert json.loads((tmp_path / "out2" / "config.json").read_text())["half"] == "\ud800"
    del made.config["num_experts_per_tok"]
    (tmp_path / "parent" / "config.json").write_text(json.dumps(made.config))
    with pytest.raises(coe.InputError, match="does not say how many experts a token uses"):
        prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out3")


def test_a_packed_router_may_have_as_many_columns_as_experts(tmp_path: Path) -> None:
    """Its width is not the model's: MLX packs eight values of four bits into one."""
    made = FORMS["mlx"]()
    for name in made.routers.values():
        made.tensors[name] = "U32", made.tensors[name][1][:, :EXPERTS]
    checkpoints.write(made, tmp_path / "parent")
    kept = draw_kept("mlx", made, 4, 0)
    prune_checkpoint(tmp_path / "parent", checkpoints.mask_for(made, kept, 2), tmp_path / "out")
    assert_equal(checkpoints.read(tmp_path / "out"), checkpoints.pruned(made, kept))


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers"])
def test_blocks_of_a_gguf_may_include_layers_that_predict_further_tokens(tmp_path: Path, key: str) -> None:
    made = FORMS["qwen3"]()
    made.config |= {key: 3, "talker_config": {"num_hidden_layers": 9}}
    checkpoints.write(made, tmp_path / "parent")
    kept = draw_kept("qwen3", made, 4, 0)
    assert prune_checkpoint(tmp_path / "parent", checkpoints.mask_for(made, kept, 2 + 3), tmp_path / "out").checked


@pytest.mark.parametrize(("given", "expected"), [("all", True), (5, False)])
def test_an_index_counts_the_values_that_are_left(tmp_path: Path, given: object, expected: bool) -> None:
    """Where its count was that of all values; numbers that mean something else are left out."""
    made = FORMS["qwen3"]()
    checkpoints.write(made, tmp_path / "parent", 2)
    path = tmp_path / "parent" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_parameters"] = (
        given if given != "all" else count_values(checkpoints.read(path.parent))
    )
    path.write_text(json.dumps(index))
    kept = draw_kept("qwen3", made, 4, 0)
    prune_checkpoint(path.parent, checkpoints.mask_for(made, kept, 2), tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / path.name).read_text())["metadata"]
    assert metadata.get("total_parameters") == (
        count_values(checkpoints.read(tmp_path / "out")) if expected else None
    )


def count_values(tensors: dict[str, tuple[str, np.ndarray]]) -> int:
    return sum(data[..., 0].size for _, data in tensors.values())


def test_masks_of_other_models_are_refused(tmp_path: Path) -> None:
    made = FORMS["qwen3"]()
    checkpoints.write(made, tmp_path / "parent")
    kept = draw_kept("qwen3", made, 4, 0)
    other = FORMS["qwen3"]()
    other.tensors[other.routers[1]][1][3, 5, 0] ^= 1  # the last bit of one value
    for mask, message in (
        (checkpoints.mask_for(other, kept, 2), "routers have other values"),
        (checkpoints.mask_for(made, kept, 3), "routers have other values"),
        (checkpoints.mask_for(made, {0: kept[0]}, 2), "list of layers with experts differs"),
        (checkpoints.mask_for(made, {0: [1], 1: [2]}, 2), "keeps 1 experts, but a token needs 2"),
    ):
        with pytest.raises(coe.InputError, match=message):
            prune_checkpoint(tmp_path / "parent", mask, tmp_path / "out")
    grouped = FORMS["deepseek"]()
    checkpoints.write(grouped, tmp_path / "grouped")
    uneven = checkpoints.mask_for(grouped, {1: [0, 1, 2, 4], 2: [0, 1, 4, 5]}, 4)
    with pytest.raises(coe.InputError, match="layer 1 keeps different numbers of experts in the 2 groups"):
        prune_checkpoint(tmp_path / "grouped", uneven, tmp_path / "out")


def test_verify_finds_every_change(tmp_path: Path) -> None:
    made = FORMS["qwen3"]()
    kept = draw_kept("qwen3", made, 4, 0)
    mask = checkpoints.mask_for(made, kept, 2)
    parent, out = tmp_path / "parent", tmp_path / "out"
    checkpoints.write(made, parent, 2)
    prune_checkpoint(parent, mask, out)
    file = out / "model-00001-of-00002.safetensors"

    def failed() -> list[str]:
        return [check.name for check in verify_checkpoint(out, parent, mask) if not check.passed]

    def with_change(path: Path, change: Callable[[bytes], bytes]) -> list[str]:
        good = path.read_bytes()
        path.write_bytes(change(good))
        found = failed()
        path.write_bytes(good)
        return found

    assert with_change(file, lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]) == ["bytes"]
    assert with_change(file, lambda data: data[:-2] + b"\x80\x7f") == ["bytes", "finite"]
    assert with_change(file, lambda data: data[:-2]) == ["layout"]
    assert with_change(
        out / "config.json", lambda data: data.replace(b'"num_experts": 4', b'"num_experts": 8')
    ) == ["config"]
    assert with_change(out / "coe_native.json", lambda data: data.replace(b'"keep": 4', b'"keep": 5')) == [
        "record"
    ]
    assert with_change(
        out / "model.safetensors.index.json", lambda data: data.replace(b"experts.3.up", b"experts.9.up")
    ) == ["layout"]
    assert failed() == []


def test_outputs_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = FORMS["qwen3"]()
    mask = checkpoints.mask_for(made, draw_kept("qwen3", made, 4, 0), 2)
    parent, out = tmp_path / "parent", tmp_path / "out"
    checkpoints.write(made, parent, 2)
    copy, calls_left = hf_prune.copy_range, 0

    def fail_later(*given: Any) -> None:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0:
            raise OSError(28, "No space left on device")
        copy(*given)

    for n_calls in range(40):
        calls_left = n_calls
        with monkeypatch.context() as patch:
            patch.setattr(hf_prune, "copy_range", fail_later)
            with pytest.raises(coe.CoeError, match="No space left"):
                prune_checkpoint(parent, mask, out)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]
    prune_checkpoint(parent, mask, out)
    with pytest.raises(coe.InputError, match="--force"):
        prune_checkpoint(parent, mask, out)
    (out / "old").write_text("")
    prune_checkpoint(parent, mask, out, force=True)
    assert not (out / "old").exists()
    rename = Path.rename

    def fail_at_the_end(path: Path, target: Path) -> Path:
        if path.name == "checkpoint":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_at_the_end)
        with pytest.raises(coe.CoeError, match="Input/output error"):
            prune_checkpoint(parent, mask, out, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    for path, message in (
        (tmp_path / "precious", "was not written by coe-native"),
        (parent / "in", "is the parent or in it"),
        (tmp_path, "holds the parent"),
        (tmp_path / "nowhere" / "out", "does not exist"),
        (parent / "config.json", "is the parent or in it"),
    ):
        with pytest.raises(coe.InputError, match=message):
            prune_checkpoint(parent, mask, path, force=True)
    assert (tmp_path / "precious" / "file").exists()


@given(st.data())
def test_damaged_files_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    made = FORMS["gpt_oss"]()
    mask = checkpoints.mask_for(made, draw_kept("gpt_oss", made, 4, 0), 2)
    directory = tmp_path_factory.mktemp("damaged")
    checkpoints.write(made, directory / "parent", 2)
    names = ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    path = directory / "parent" / data.draw(st.sampled_from(names))
    good = path.read_bytes()
    end = min(len(good), 4000)
    at = data.draw(st.integers(0, end - 1))
    path.write_bytes(
        good[:at] + data.draw(st.binary(min_size=1, max_size=8)) + good[at + data.draw(st.integers(0, 8)) :]
    )
    try:
        prune_checkpoint(directory / "parent", mask, directory / "out")
    except coe.CoeError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert not (directory / "out").exists()
