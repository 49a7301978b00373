"""What `verify` must find, one damage at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.masks import unused_experts
from support.model_files import append_entry, change_metadata
from support.random_models import copy_model, write_random_model

import coe_native as coe
from coe_native.model.gguf_file import encode_entry

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]


@pytest.fixture(params=["F32", "Q4_K_M"])
def made(
    request: pytest.FixtureRequest, tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> tuple[Path, Path, coe.ExpertMask]:
    """A specialist, its parent and its mask."""
    parent = model_file("gemma4", request.param)
    mask = unused_experts(profile_of("gemma4"), 8)
    return coe.prune(parent, mask, tmp_path / "out.gguf"), parent, mask


def failures(out: Path, parent: Path, mask: coe.ExpertMask | None) -> dict[str, str]:
    return {check.name: check.detail for check in coe.verify(out, parent, mask) if not check.passed}


def damage(path: Path, offset: int, data: bytes | None = None) -> None:
    """Overwrites bytes; by default flips one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        new = data if data is not None else bytes([file.read(1)[0] ^ 1])
        file.seek(offset)
        file.write(new)


def test_a_good_specialist_passes(made: tuple[Path, Path, coe.ExpertMask]) -> None:
    checks = coe.verify(*made)
    assert [check.name for check in checks] == ["metadata", "layout", "bytes", "norms", "loads", "graph"]
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize(
    "name",
    ["blk.1.ffn_gate_up_exps.weight", "blk.2.attn_q.weight", "blk.0.ffn_gate_inp.weight", "token_embd.weight"],
)
def test_one_flipped_bit_is_found(made: tuple[Path, Path, coe.ExpertMask], name: str) -> None:
    out, parent, mask = made
    tensor = coe.MoeModel(out).tensors[name]
    offset = tensor.offset + tensor.n_bytes - 1
    damage(out, offset)
    found = failures(out, parent, mask)["bytes"]
    assert name in found
    assert str(offset) in found
    if "exps" in name:
        assert f"expert {mask.kept[1][-1]}" in found


def test_a_nan_scale_is_found(made: tuple[Path, Path, coe.ExpertMask]) -> None:
    out, parent, mask = made
    tensor = coe.MoeModel(out).tensors["blk.1.ffn_down_exps.weight"]
    nan = b"\x00\x00\xc0\x7f" if tensor.type_name == "F32" else b"\x00\x7e"
    damage(out, tensor.offset + 2 * (tensor.n_bytes // 8), nan)
    found = failures(out, parent, mask)
    assert "bytes" in found
    assert "NaN" in found["norms"]
    assert f"expert {mask.kept[1][2]}" in found["norms"]


def test_a_nan_in_the_parent_too_is_found_by_its_norm(
    tmp_path: Path, made: tuple[Path, Path, coe.ExpertMask]
) -> None:
    """Equal bytes are not enough."""
    out, parent, mask = made
    copy = tmp_path / "parent.gguf"
    copy.write_bytes(parent.read_bytes())
    for path, n_experts, expert in ((copy, 16, mask.kept[1][2]), (out, 8, 2)):
        tensor = coe.MoeModel(path).tensors["blk.1.ffn_down_exps.weight"]
        nan = b"\x00\x00\xc0\x7f" if tensor.type_name == "F32" else b"\x00\x7e"
        damage(path, tensor.offset + expert * (tensor.n_bytes // n_experts), nan)
    found = failures(out, copy, mask)
    assert "bytes" not in found
    assert "NaN" in found["norms"]


def test_another_mask_is_found(made: tuple[Path, Path, coe.ExpertMask]) -> None:
    out, parent, mask = made
    kept = dict(mask.kept)
    kept[0] = tuple(sorted({*kept[0][1:], mask.dropped(0)[0]}))
    other = coe.ExpertMask(mask.architecture, mask.fingerprint, 16, 8, kept)
    found = failures(out, parent, other)
    assert "mask" in found["metadata"]
    assert "expert" in found["bytes"]


@pytest.mark.parametrize("missing", [1, 1000, 0.5])
def test_a_truncated_file_is_found(made: tuple[Path, Path, coe.ExpertMask], missing: float) -> None:
    out, parent, mask = made
    data = out.read_bytes()
    # The last tensor may be followed by padding, which is no loss.
    end = max(t.offset + t.n_bytes for t in coe.MoeModel(out).tensors.values())
    out.write_bytes(data[: end - int(missing)] if missing >= 1 else data[: end // 2])
    assert "truncated" in failures(out, parent, mask)["header"]


def test_changed_metadata_is_found(made: tuple[Path, Path, coe.ExpertMask]) -> None:
    """A model that says another thing of itself than its parent did."""
    out, parent, mask = made
    damage(out, out.read_bytes().index(b"random gemma4"), b"rAndom gemma4")
    assert "parent" in failures(out, parent, mask)["metadata"]


SAMPLING = "general.sampling."


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"temp": None, "penalty_repeat": None}, True),  # of an older version, or --no-sampling
        ({"temp": 0.25, "penalty_repeat": 1.5}, True),
        ({"temp": None}, False),
        ({"penalty_repeat": None}, False),
        ({"temp": -1.0}, False),
        ({"penalty_repeat": float("nan")}, False),
        ({"temp": 1}, False),
        ({"temp": "0.6"}, False),
        ({"top_p": 0.5}, False),
        ({"temperature": 0.5}, False),
        ({"min_p": 0.5}, False),
        ({"min_p": None}, False),
    ],
)
def test_sampling_settings_may_only_be_what_prune_can_write(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: ProfileOf,
    changes: dict[str, float | str | None],
    passes: bool,
) -> None:
    """The parent has a setting of another kind."""
    parent = append_entry(
        model_file("qwen3moe", "F32"), tmp_path / "parent.gguf", encode_entry(f"{SAMPLING}min_p", 0.25)
    )
    mask = unused_experts(profile_of("qwen3moe"), 8)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    raw = {
        f"{SAMPLING}{key}": None if value is None else encode_entry(f"{SAMPLING}{key}", value)
        for key, value in changes.items()
    }
    change_metadata(out, raw)
    found = failures(out, parent, mask)
    assert list(found) == ([] if passes else ["metadata"])


def test_changed_sampling_settings_of_a_zeroed_or_copied_model_are_found(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    parent = model_file("qwen3moe", "F32")
    mask = unused_experts(profile_of("qwen3moe"), 8)
    copied = tmp_path / "copied.gguf"
    copied.write_bytes(parent.read_bytes())
    changes = {f"{SAMPLING}temp": encode_entry(f"{SAMPLING}temp", 0.6)}
    for out, its_mask in ((coe.zero(parent, mask, tmp_path / "zero.gguf"), mask), (copied, None)):
        change_metadata(out, changes)
        assert list(failures(out, parent, its_mask)) == ["metadata"]


def test_a_zeroed_expert_that_is_not_zero_is_found(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    parent = model_file("qwen3moe", "Q8_0")
    mask = unused_experts(profile_of("qwen3moe"), 8)
    out = coe.zero(parent, mask, tmp_path / "zero.gguf")
    assert failures(out, parent, mask) == {}
    tensor = coe.MoeModel(out).tensors["blk.2.ffn_up_exps.weight"]
    dropped = mask.dropped(2)[0]
    damage(out, tensor.offset + dropped * (tensor.n_bytes // 16), b"\x00\x3c\x01")
    found = failures(out, parent, mask)
    assert f"expert {dropped}" in found["bytes"]
    assert "norm" in found["norms"]


def test_a_file_that_llama_cpp_cannot_run_is_found(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf
) -> None:
    """Bytes as the mask says, but of a parent that lacks a tensor: only loading shows that."""
    parent = tmp_path / "parent.gguf"
    copy_model(model_file("qwen3moe", "F32"), parent, without="output_norm.weight")
    mask = unused_experts(profile_of("qwen3moe"), 8)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    found = failures(out, parent, mask)
    assert list(found) == ["loads"]
    assert "output_norm" in found["loads"]


def test_a_changed_graph_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]]
) -> None:
    """Llama 4 with 128 experts has no norm on queries and keys, with any other number it has one; surgery
    refuses that, and had it not known, verification would have seen it."""
    parent = tmp_path / "parent.gguf"
    write_random_model(parent, "llama4", n_experts=128, n_ff_expert=32)
    mask = unused_experts(coe.profile(parent, documents, n_ctx=128, n_threads=1), 64)
    monkeypatch.setattr("coe_native.surgery.plan.check_cut", lambda *_: None)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    found = failures(out, parent, mask)
    assert list(found) == ["graph"]
    assert found["graph"]


TYPES = ("Q8_0", "Q6_K", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XS", "IQ1_M", "F16", "BF16")


@pytest.fixture(scope="module")
def importance(
    tmp_path_factory: pytest.TempPathFactory, model_file: ModelFile, documents: list[list[int]]
) -> Callable[[str], Path]:
    """The importance matrix of a family's model, which the smallest types need."""
    directory = tmp_path_factory.mktemp("imatrix")

    def write(family: str) -> Path:
        path = directory / f"{family}.gguf"
        if not path.exists():
            with coe.Model(model_file(family, "F32"), n_ctx=128, n_threads=1) as model:
                coe.compute_imatrix(model, documents).save(path)
        return path

    return write


@pytest.mark.parametrize(
    ("family", "file_type"),
    [*(("gemma4", file_type) for file_type in TYPES), ("deepseek2", "Q4_K_M"), ("gpt-oss", "IQ4_XS")],
)
def test_a_requantised_specialist_passes(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: ProfileOf,
    importance: Callable[[str], Path],
    family: str,
    file_type: str,
) -> None:
    parent = model_file(family, "F32")
    mask = unused_experts(profile_of(family), 8)
    options = coe.QuantizeOptions(file_type)
    imatrix = importance(family)
    out = coe.prune_and_quantize(parent, mask, options, tmp_path / "out.gguf", imatrix=imatrix)
    assert failures(out, parent, mask) == {}
    details = {check.name: check.detail for check in coe.verify(out, parent, mask)}
    assert "tensors requantised" in details["quantisation"]
    whole = coe.quantize(parent, options, tmp_path / "whole.gguf", imatrix=imatrix)
    assert all(check.passed for check in coe.verify(whole, parent, None))
    # The order of the steps does not matter to the check, though it may to the types.
    pruned = coe.prune(whole, mask, tmp_path / "pruned.gguf")
    assert all(check.passed for check in coe.verify(pruned, parent, mask))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out.gguf", "pruned.gguf", "whole.gguf"]


def test_what_rounding_does_not_explain_is_found(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, importance: Callable[[str], Path]
) -> None:
    parent = model_file("gemma4", "F32")
    mask = unused_experts(profile_of("gemma4"), 8)
    for file_type in ("Q8_0", "Q4_0", "IQ1_M"):
        out = tmp_path / f"{file_type}.gguf"
        coe.prune_and_quantize(parent, mask, coe.QuantizeOptions(file_type), out, imatrix=importance("gemma4"))
        tensor = coe.MoeModel(out).tensors["blk.1.ffn_down_exps.weight"]
        size = tensor.n_bytes // 8
        good = out.read_bytes()[tensor.offset :][: 2 * size]
        damage(out, tensor.offset, good[size:] + good[:size])  # two experts have changed places
        found = failures(out, parent, mask)
        assert list(found) == ["quantisation"]
        assert f"of {tensor.name} differs" in found["quantisation"]
        assert (
            f"expert {mask.kept[1][0]} " in found["quantisation"]
            or f"expert {mask.kept[1][1]} " in found["quantisation"]
        )
        damage(out, tensor.offset, good)
        assert not failures(out, parent, mask)
        embedding = coe.MoeModel(out).tensors["token_embd.weight"]
        damage(out, embedding.offset, bytes(embedding.n_bytes))
        assert "token_embd.weight differs" in failures(out, parent, mask)["quantisation"]
    other = tmp_path / "other.gguf"
    write_random_model(other, "gemma4", seed=1)
    requantised = coe.quantize(other, coe.QuantizeOptions("Q8_0"), tmp_path / "requantised.gguf")
    assert "quantisation" in {check.name for check in coe.verify(requantised, parent, None) if not check.passed}


@pytest.mark.parametrize("with_mask", [True, False])
def test_single_experts_are_looked_at_in_all_types(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: ProfileOf,
    importance: Callable[[str], Path],
    with_mask: bool,
) -> None:
    """NaN in any expert, two that have changed places, and a third of one that is gone."""
    parent = model_file("gemma4", "F32")
    mask = unused_experts(profile_of("gemma4"), 8) if with_mask else None
    for file_type in ("Q4_0", "Q2_K", "IQ2_XXS"):
        out, imatrix = tmp_path / "out.gguf", importance("gemma4")
        options = coe.QuantizeOptions(file_type)
        if mask is not None:
            coe.prune_and_quantize(parent, mask, options, out, imatrix=imatrix, force=True)
        else:
            coe.quantize(parent, options, out, imatrix=imatrix, force=True)
        tensor = coe.MoeModel(out).tensors["blk.1.ffn_gate_up_exps.weight"]
        size = tensor.n_bytes // tensor.shape[-1]
        at = tensor.offset + 5 * size
        good = out.read_bytes()[at : at + 2 * size]
        harms = {
            "changed places": good[size:] + good[:size],
            "gone": bytes(size // 3) + good[size // 3 :],
            "not numbers": _with_nan(file_type, good),
        }
        for harm, data in harms.items():
            damage(out, at, data)
            found = {check.name: check.detail for check in coe.verify(out, parent, mask) if not check.passed}
            assert tensor.name in found.get("quantisation", ""), (file_type, harm)
        damage(out, at, good)
        assert all(check.passed for check in coe.verify(out, parent, mask))


def _with_nan(file_type: str, data: bytes) -> bytes:
    """Set the scale of the first block to NaN, which ggml has at its beginning, or for Q2_K at its end."""
    nan = b"\xff\x7f"
    at = 80 if file_type == "Q2_K" else 0
    return data[:at] + nan + data[at + 2 :]


def test_a_copy_needs_no_mask(tmp_path: Path, model_file: ModelFile) -> None:
    parent = model_file("qwen3moe", "Q4_K_M")
    out = tmp_path / "copy.gguf"
    out.write_bytes(parent.read_bytes())
    assert all(check.passed for check in coe.verify(out, parent, None))
    tensor = coe.MoeModel(out).tensors["blk.1.attn_q.weight"]
    damage(out, tensor.offset)
    assert (
        "blk.1.attn_q.weight" in {c.name: c.detail for c in coe.verify(out, parent, None) if not c.passed}["bytes"]
    )
