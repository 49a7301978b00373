"""``prune`` and ``verify`` with the directory of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.checkpoints import Made
from support.command_line import by_line, check_input_refused, ok, report, run

import coe_native as coe
from coe_native.recipes import demo


def demo_checkpoint() -> Made:
    """Gemma 4's names with the routers of the demo's GGUF, and small experts."""
    model = coe.MoeModel(demo.MODEL)
    config = {"num_hidden_layers": model.n_blocks, "num_experts": model.n_experts, "top_k_experts": model.top_k}
    made = Made({"architectures": ["Gemma4ForCausalLM"], "text_config": config})
    for layer in model.routed_layers:
        module = f"model.language_model.layers.{layer.block}"
        made.add(f"{module}.experts.gate_up_proj", "BF16", model.n_experts, 4, 6, of=(layer.block, None))
        with layer.router.file.open() as file:
            file.seek(layer.router.offset)
            data = np.frombuffer(file.read(layer.router.n_bytes), np.uint8)
        made.add(f"{module}.router.proj.weight", "F32", 0)
        made.tensors[f"{module}.router.proj.weight"] = "F32", data.reshape(model.n_experts, -1, 4)
        made.cut[f"{module}.router.proj.weight"] = layer.block, None
        made.add(f"{module}.router.per_expert_scale", "BF16", model.n_experts, of=(layer.block, None))
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint, `parent`, and a mask that was made with the demo's GGUF, `m.json`."""
    checkpoints.write(demo_checkpoint(), tmp_path / "parent", 2)
    model = coe.MoeModel(demo.MODEL)
    drawn = np.random.default_rng(0)
    kept = {block: tuple(sorted(map(int, drawn.permutation(32)[:16]))) for block in model.blocks}
    coe.ExpertMask(model.architecture, model.fingerprint, 32, 16, kept).save(tmp_path / "m.json")
    return tmp_path


def test_a_mask_of_the_gguf_prunes_the_checkpoint(directory: Path) -> None:
    done = ok("prune", "parent", "--mask", "m.json", "-o", "out", cwd=directory)
    assert "16 of 32 experts in each layer" in done.err + done.out
    assert "not copied, because they may hold the parent's weights: pytorch_model.bin" in done.err + done.out
    kept = coe.ExpertMask.load(directory / "m.json").kept
    found, expected = checkpoints.read(directory / "out"), checkpoints.pruned(demo_checkpoint(), kept)
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name][1], data) for name, (_, data) in expected.items())
    again = report("prune", "parent", "--mask", "m.json", "-o", "out", "--force", cwd=directory)
    assert again["checked"]
    assert again["left_out"] == ["pytorch_model.bin"]
    checked = report("verify", "out", "--parent", "parent", "--mask", "m.json", cwd=directory)
    assert checked["passed"]
    assert [check["name"] for check in checked["checks"]] == ["record", "config", "layout", "bytes", "finite"]


def test_a_damaged_checkpoint_is_not_verified(directory: Path) -> None:
    ok("prune", "parent", "--mask", "m.json", "-o", "out", cwd=directory)
    config = directory / "out" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "more": 1}))
    failed = run("verify", "out", "--parent", "parent", "--mask", "m.json", "--json", cwd=directory)
    assert failed.status == 1
    assert [check["name"] for check in failed.json["checks"] if not check["passed"]] == ["config"]


def rounded(made: Made, layer: int) -> None:
    """Round a router to BF16, as a copy in another type is."""
    name = made.routers.get(layer) or next(name for name in made.tensors if f".{layer}.router.proj" in name)
    data = made.tensors[name][1].copy().view("<u4")
    made.tensors[name] = "BF16", ((data + 0x8000) >> 16).astype("<u2").view(np.uint8)


def test_rounded_routers_are_compared_with_the_gguf(directory: Path) -> None:
    made = demo_checkpoint()
    for layer in (0, 2, 5):
        rounded(made, layer)
    checkpoints.write(made, directory / "rounded")
    refused = run("prune", "rounded", "--mask", "m.json", "-o", "out", cwd=directory)
    assert (refused.status, "--gguf GGUF" in refused.err) == (2, True)
    again = report("prune", "rounded", "--mask", "m.json", "--gguf", demo.MODEL, "-o", "out", cwd=directory)
    assert again["checked"]
    line = ("verify", "out", "--parent", "rounded", "--mask", "m.json")
    assert report(*line, "--gguf", demo.MODEL, cwd=directory)["passed"]
    assert "--gguf GGUF" in run(*line, cwd=directory).err
    name = next(name for name in made.tensors if ".2.router.proj" in name)
    made.tensors[name][1][7, 9] = np.array([1.5], "<f4").view("<u2")[1:].view(np.uint8)
    checkpoints.write(made, directory / "other")
    untied = json.loads((directory / "m.json").read_text()) | {"fingerprint": "unknown", "architecture": "unknown"}
    (directory / "untied.json").write_text(json.dumps(untied))
    for mask in ("m.json", "untied.json"):
        refused = run("prune", "other", "--mask", mask, "--gguf", demo.MODEL, "-o", "out2", cwd=directory)
        assert (refused.status, f"{name} has other values" in refused.err) == (2, True)
    refused = run("prune", "other", "--mask", "m.json", "--gguf", demo.MODEL, "-o", "out2", cwd=directory)
    assert (refused.status, f"{name} has other values than blk.2.ffn_gate_inp.weight" in refused.err) == (2, True)
    assert not (directory / "out2").exists()


@by_line(
    "pattern",
    [
        ("prune parent -o out", "is pruned with a mask that was made with the model's GGUF"),
        ("prune parent --profile p.gguf --keep 16 -o out", "--profile is for GGUF files"),
        ("prune parent --mask m.json --type Q4_K_M -o out", "--type is for GGUF files"),
        ("prune empty --mask m.json -o out", "is a directory without config.json"),
        ("prune parent --mask m.json -o parent", "parent: is the parent or in it"),
        ("prune parent --mask m.json -o empty", "empty: exists; choose another name or pass --force"),
        ("prune parent --mask m.json -o empty --force", "was not written by coe-native"),
        ("prune parent --mask other.json -o out", "other values: the mask is of another model"),
        ("verify empty --parent parent", "give the mask that the checkpoint was pruned with"),
        ("prune DEMO --mask m.json --gguf DEMO -o out", "--gguf is for checkpoints"),
        ("verify empty --parent DEMO --mask m.json --gguf DEMO", "--gguf is for checkpoints"),
        ("prune parent --mask other.json --gguf DEMO -o out", r"other\.json: for .*demo-Q8_0\.gguf: .*model"),
        ("verify empty --parent parent --mask m.json --ctx 5", "--ctx is for GGUF files"),
    ],
)
def test_what_cannot_be_done_is_refused(directory: Path, line: str, pattern: str) -> None:
    (directory / "empty").mkdir()
    mask = json.loads((directory / "m.json").read_text())
    (directory / "other.json").write_text(json.dumps({**mask, "fingerprint": "0" * 64}))
    check_input_refused(directory, line, pattern)
