"""Files that hold vision and audio parts beside the language model, as Ollama's library has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from support.command_line import ok
from support.random_models import copy_entries

import coe_native as coe
from coe_native.llama.text_only import loadable
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]
OTHERS = ("v.blk.0.attn_q.weight", "v.patch_embd.weight", "a.blk.0.ffn_up.weight", "mm.a.fc.weight")


def combine(source: Path, target: Path) -> Path:
    """Write a model with vision and audio tensors before, between and after its own."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "")
    writer.kv_data[0].clear()
    copy_entries(reader, writer)
    architecture = str(reader.fields["general.architecture"].contents())
    writer.add_uint32(f"{architecture}.vision.block_count", 1)
    writer.add_uint32(f"{architecture}.audio.block_count", 1)
    noise = np.random.default_rng(0).normal(size=(4, 7, 33)).astype(np.float16)
    waiting = list(zip(OTHERS, noise, strict=True))
    for number, tensor in enumerate(reader.tensors):
        if number in (0, 3, 5):
            writer.add_tensor(*waiting.pop())
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(*waiting.pop())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(("family", "quantization"), [("qwen3moe", "Q4_K_M"), ("gemma4", "F32"), ("demo", "")])
def test_the_language_model_is_profiled_pruned_and_verified(
    tmp_path: Path, model_file: ModelFile, documents: list[list[int]], family: str, quantization: str
) -> None:
    alone = demo.MODEL if family == "demo" else model_file(family, quantization)
    both = combine(alone, tmp_path / "both.gguf")
    before = both.read_bytes()
    options = {"n_ctx": 128, "n_batch": 64, "n_threads": 1}
    profile = coe.profile(both, documents, stats="contribution", **options)
    expected = coe.profile(alone, documents, stats="contribution", **options)
    np.testing.assert_array_equal(profile.histograms, expected.histograms)
    assert profile.fingerprint == expected.fingerprint

    mask = coe.build_mask(profile, profile.n_experts // 2)
    cut = coe.prune(both, mask, tmp_path / "cut.gguf")
    of_alone = coe.prune(alone, mask, tmp_path / "alone.gguf")
    with coe.Model(cut, n_ctx=64) as specialist, coe.Model(of_alone, n_ctx=64) as other:
        assert np.array_equal(specialist.logits([1, 2, 3]), other.logits([1, 2, 3]))
    ours, theirs = (GGUFReader(path) for path in (cut, of_alone))
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor, like in zip(ours.tensors, theirs.tensors, strict=True):
        assert np.array_equal(tensor.data, like.data)
    assert not [key for key in ours.fields if ".vision." in key or ".audio." in key]
    assert all(check.passed for check in coe.verify(cut, both, mask))

    kept = coe.prune(both, mask, tmp_path / "kept.gguf", keep_vision=True)
    assert all(check.passed for check in coe.verify(kept, both, mask))
    names = [tensor.name for tensor in GGUFReader(kept).tensors]
    assert names == [tensor.name for tensor in GGUFReader(both).tensors]
    assert [key for key in GGUFReader(kept).fields if key.endswith(".vision.block_count")]
    with coe.Model(kept, n_ctx=64) as specialist, coe.Model(of_alone, n_ctx=64) as other:
        assert np.array_equal(specialist.logits([1, 2, 3]), other.logits([1, 2, 3]))

    zeroed = coe.zero(both, mask, tmp_path / "zeroed.gguf")
    assert all(check.passed for check in coe.verify(zeroed, both, mask))
    assert both.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("alone.gguf", "both.gguf", "cut.gguf", "kept.gguf", "zeroed.gguf")
    ]


def test_a_changed_vision_tensor_is_found(
    tmp_path: Path, documents: list[list[int]], model_file: ModelFile
) -> None:
    both = combine(model_file("qwen3moe", "F32"), tmp_path / "both.gguf")
    profile = coe.profile(both, documents, n_ctx=128)
    mask = coe.build_mask(profile, 8)
    kept = coe.prune(both, mask, tmp_path / "kept.gguf", keep_vision=True)
    tensor = next(tensor for tensor in GGUFReader(kept).tensors if tensor.name == OTHERS[0])
    with kept.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 5)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    failed = [check for check in coe.verify(kept, both, mask) if not check.passed]
    assert [check.name for check in failed] == ["bytes"]
    assert OTHERS[0] in failed[0].detail


def test_the_copy_is_written_where_there_is_room(
    tmp_path: Path, model_file: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, temporary = tmp_path / "library", tmp_path / "temporary"
    library.mkdir()
    temporary.mkdir()
    header = coe.MoeModel(combine(model_file("qwen3moe", "F32"), library / "both.gguf"))
    with loadable(header) as path:
        assert path.parent == library
        assert path.stat().st_size < header.n_bytes
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("os.access", lambda *_: False)
    with loadable(header) as path:
        assert path.parent == temporary
    alone = coe.MoeModel(model_file("qwen3moe", "F32"))
    with loadable(alone) as path:
        assert path == alone.path
    assert [*temporary.iterdir(), *library.iterdir()] == [header.path]


def test_commands_treat_combined_files_as_their_language_models(tmp_path: Path) -> None:
    both = combine(demo.MODEL, tmp_path / "both.gguf")
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 40)
    assert ok("inspect", both, "--json").json["vision_bytes"] == 4 * 7 * 33 * 2
    done = ok("profile", both, "-c", text, "-o", tmp_path / "p.gguf")
    assert "language model" in done.err
    alone, combined = (ok("eval", model, "--text", text, "--json").json for model in (demo.MODEL, both))
    assert alone["texts"][0]["perplexity"] == combined["texts"][0]["perplexity"]
    ok("mask", tmp_path / "p.gguf", "--keep", 16, "-o", tmp_path / "m.json")
    assert "--keep-vision" in ok("prune", both, "--mask", tmp_path / "m.json", "-o", tmp_path / "cut.gguf").err
    ok("verify", tmp_path / "cut.gguf", "--parent", both, "--mask", tmp_path / "m.json")
