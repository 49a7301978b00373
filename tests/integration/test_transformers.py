"""Pruned checkpoints in transformers, where it is installed: ``pip install '.[reference]'``."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    assert (last.name, last.passed) == ("loads", True)
    assert "too large for this machine" in last.detail


def test_what_transformers_refuses_fails(pruned: tuple[Path, Path, coe.ExpertMask]) -> None:
    """Such as a config that still counts the parent's experts, had the other checks not found it before."""
    parent, out, _ = pruned
    path = out / "config.json"
    good = path.read_text()
    path.write_text(json.dumps({**json.loads(good), "num_experts": 32}))
    written = HfCheckpoint.read(out)
    with pytest.raises(coe.CoeError, match="transformers"):
        hf_loading.load(written, 1)
    path.write_text(good)
    config = parent / "config.json"
    good = config.read_text()
    config.write_text(json.dumps({**json.loads(good), "model_type": "unheard of"}))
    assert not hf_loading.can_be_tried(HfCheckpoint.read(parent))
    config.write_text(good)
    assert hf_loading.can_be_tried(HfCheckpoint.read(parent))
