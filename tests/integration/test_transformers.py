"""Pruned checkpoints in transformers, where it is installed: ``pip install '.[reference]'``."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import coe_native as coe
from coe_native.model.hf_checkpoint import HfCheckpoint
from coe_native.recipes import demo
from coe_native.surgery import hf_loading

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[2] / "examples" / "demo_model" / "checkpoint.py"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, coe.ExpertMask]:
    """The demo's model as a checkpoint, its specialist, and the mask."""
    directory = tmp_path_factory.mktemp("checkpoint")
    subprocess.run([sys.executable, SCRIPT, directory / "parent"], check=True)
    model, drawn = coe.MoeModel(demo.MODEL), random.Random(0)
    kept = {block: tuple(sorted(drawn.sample(range(32), 16))) for block in model.blocks}
    mask = coe.ExpertMask(model.architecture, model.fingerprint, 32, 16, kept)
    coe.prune_checkpoint(directory / "parent", mask, directory / "out")
    return directory / "parent", directory / "out", mask


def test_trained_checkpoints_compute_what_the_masked_model_computes(
    pruned: tuple[Path, Path, coe.ExpertMask], tmp_path: Path
) -> None:
    _, out, mask = pruned
    tokens = [2, *(7 * n % 4000 for n in range(1, 60))]
    model = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    coe.quantize(demo.MODEL, coe.QuantizeOptions("F32"), tmp_path / "f32.gguf")
    with coe.Model(tmp_path / "f32.gguf", n_ctx=64, n_batch=64, f32_kv=True) as ours:
        ours.apply(mask)
        differences = abs(ours.logits(tokens) - theirs).max(axis=1) / abs(theirs).max()
    assert np.quantile(differences, 0.9) < 1e-3  # a few tokens are near ties of the router


def test_verify_loads_them(pruned: tuple[Path, Path, coe.ExpertMask], monkeypatch: pytest.MonkeyPatch) -> None:
    parent, out, mask = pruned
    checks = coe.verify_checkpoint(out, parent, mask)
    assert checks[-1] == coe.Check("loads", True, "transformers loads it and computes a token")
    monkeypatch.setattr(hf_loading, "_ROOM", 10**9)
    last = coe.verify_checkpoint(out, parent, mask)[-1]
    assert last == coe.Check(
        "loads", True, "transformers has these names and shapes; there is too little memory to load it"
    )


def changed_tensors(source: Path, target: Path, change: Callable[[dict[str, np.ndarray]], object]) -> HfCheckpoint:
    """A copy of a checkpoint whose tensors, in one file, have been changed."""
    shutil.copytree(source, target)
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(target.glob("model*")):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        path.unlink()
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return HfCheckpoint.read(target)


def infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.inf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.router.scale"), r"missing keys: .*1\.router\.scale"),
        (lambda tensors: tensors.update({"model.odd": np.zeros(3, np.float32)}), r"unexpected keys: .*odd"),
        (lambda tensors: tensors.update({"model.norm.weight": np.zeros(3, np.float32)}), "cannot load it"),
        (infinite, "logits that are not finite"),
    ],
)
def test_what_transformers_finds_fails_unless_the_parent_has_it_too(
    pruned: tuple[Path, Path, coe.ExpertMask],
    tmp_path: Path,
    change: Callable[[dict[str, np.ndarray]], object],
    message: str,
) -> None:
    parent, out, _ = pruned
    changed = changed_tensors(out, tmp_path / "out", change)
    with pytest.raises(coe.CoeError, match=message):
        hf_loading.check_loads(changed, HfCheckpoint.read(parent), 1)
    if "keys" in message:
        alike = changed_tensors(parent, tmp_path / "parent", change)
        assert hf_loading.check_loads(changed, alike, 1) == "transformers loads it and computes a token"


@pytest.mark.parametrize("key", [{"model_type": "unheard of"}, {"quantization_config": {"bits": 4}}])
def test_what_cannot_be_tried_is_no_check(
    pruned: tuple[Path, Path, coe.ExpertMask], tmp_path: Path, key: dict[str, object]
) -> None:
    parent = shutil.copytree(pruned[0], tmp_path / "parent")
    config = json.loads((parent / "config.json").read_text())
    (parent / "config.json").write_text(json.dumps(config | key))
    out, mask = tmp_path / "out", pruned[2]
    coe.prune_checkpoint(parent, mask, out)
    names = [check.name for check in coe.verify_checkpoint(out, parent, mask)]
    assert names == ["record", "config", "layout", "bytes", "finite"]
