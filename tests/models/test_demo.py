"""The shipped model: trained weights, real text, a real tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from support.model_files import append_entry
from support.random_models import copy_entries

import coe_native as coe
from coe_native.corpus.corpora import Corpus
from coe_native.corpus.documents import Document, Message
from coe_native.corpus.read import read_corpus
from coe_native.model.gguf_file import encode_entry
from coe_native.recipes import demo

REFERENCE = Path(__file__).parents[1] / "data" / "demo_reference.npz"
"""Windows of the shipped profile texts, and what router hooks in ``transformers`` counted on the
full-precision model; made by examples/demo_model (see its README)."""


OUTPUTS = Path(__file__).parents[1] / "data" / "demo_outputs.npz"
"""Sums of what the experts of the shipped file's weights put out in the same windows, in float32, by hooks in
``transformers``; made by examples/demo_model/reference_outputs.py."""


def share(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of choices (or of weight) that both put into the same cell."""
    return float(np.minimum(ours, theirs).sum() / theirs.sum())


def test_histograms_agree_with_transformers() -> None:
    """The shipped file is quantised and the reference is not: nearly all choices still fall into the same
    cell of [layer, expert, rank], and half the experts chosen by either are nearly the same."""
    stored = np.load(REFERENCE)
    profile = coe.profile(demo.MODEL, list(stored["tokens"]), n_ctx=512)
    assert profile.n_tokens == stored["tokens"].size
    assert share(profile.histograms, stored["histograms"]) > 0.985
    assert share(profile.counts, stored["histograms"].sum(axis=2)) > 0.99
    assert share(profile.weight_sum, stored["weight_sum"]) > 0.985
    theirs = coe.RoutingProfile(
        profile.architecture,
        "reference",
        profile.fingerprint,
        profile.layers,
        profile.n_tokens,
        stored["histograms"],
        stored["weight_sum"],
    )
    overlaps = coe.compare(*(coe.build_mask(each, 16, method="utility") for each in (profile, theirs)))
    assert sum(overlap.shared for overlap in overlaps) >= 16 * len(overlaps) - 3


@pytest.mark.slow
def test_outputs_agree_with_transformers(tmp_path: Path) -> None:
    """The shipped weights as an F32 file. A near-tie that falls to the other side takes a token with it, so that
    experts differ by a little more than their outputs do; keys and values in F16 move more than those in F32."""
    theirs = np.load(OUTPUTS)
    tokens = list(np.load(REFERENCE)["tokens"])
    write_f32(demo.MODEL, tmp_path / "f32.gguf")
    for f32_kv, moved in ((True, 1e-4), (False, 3e-4)):
        with coe.Model(tmp_path / "f32.gguf", f32_kv=f32_kv) as model:
            profile = coe.profile(model, tokens, stats="contribution")
        assert np.abs(profile.counts - theirs["counts"]).sum() <= 2 * moved * theirs["counts"].sum()
        for name in ("norm_sum", "weighted_norm_sum"):
            ours = getattr(profile.outputs, name)
            np.testing.assert_allclose(ours.sum(axis=1), theirs[name].sum(axis=1), rtol=1e-3)
            same = slice(None) if f32_kv else profile.counts == theirs["counts"]
            assert np.mean(profile.counts == theirs["counts"]) > 0.3
            np.testing.assert_allclose(ours[same], theirs[name][same], rtol=1e-3)


def write_f32(source: Path, target: Path) -> None:
    """A model with all its weights dequantised."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "")
    writer.kv_data[0].clear()  # the architecture that the writer adds by itself
    copy_entries(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_expert_of_the_demo_is_used() -> None:
    """No expert of the shipped model is dead on all kinds of text, and no layer leans on a few."""
    stored = np.load(REFERENCE)
    counts = stored["histograms"].sum(axis=2)
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert (counts > 0).all()
    entropy = -(shares * np.log(shares)).sum(axis=1)
    assert (entropy > 0.85 * np.log(counts.shape[1])).all()


def test_texts_of_the_demo_do_not_overlap() -> None:
    names = [
        json.loads(line)["name"]
        for kind in demo.KINDS
        for part in ("profile", "test")
        for line in (demo.DATA / f"{kind}.{part}.jsonl").read_text().splitlines()
    ]
    assert len(names) == len(set(names)) > 100


def test_tokens_are_llama_cpps_own() -> None:
    """Through llama-cpp-python's own tokenizer, BOS in front."""
    import llama_cpp

    text = demo.corpus("python", "test").documents[0].content
    llama = llama_cpp.Llama(str(demo.MODEL), vocab_only=True, verbose=False)
    expected = llama.tokenize(str(text).encode(), add_bos=True, special=False)
    llama.close()
    with coe.Model(demo.MODEL, n_ctx=8, n_batch=8) as model:
        assert model.tokenize(str(text)).tolist() == expected
        assert model.text.bos_token == expected[0]


TEMPLATE = "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}"


def with_template(path: Path, template: str) -> Path:
    """A copy of the demo model that carries a chat template."""
    return append_entry(demo.MODEL, path, encode_entry("tokenizer.chat_template", template))


def test_conversations_use_the_models_own_template(tmp_path: Path) -> None:
    path = with_template(tmp_path / "chat.gguf", TEMPLATE)
    turns = (Message("user", "Write a loop."), Message("model", "for x in y: pass"))
    expected = "<bos><|turn>user\nWrite a loop.<turn|>\n<|turn>model\nfor x in y: pass<turn|>\n"
    with coe.Model(path, n_ctx=64, n_batch=64) as model:
        assert model.text.render_chat(turns) == expected
        tokens = model.tokenize(expected, parse_special=True)
        assert tokens[:2].tolist() == [2, 4], "the template's own BOS, once, and a turn as one token"
        profile = coe.profile_corpora(model, [Corpus("chat", (Document("chat", turns),))])
    assert profile.n_tokens == len(tokens)
    with (
        coe.Model(demo.MODEL, n_ctx=8, n_batch=8) as model,
        pytest.raises(coe.InputError, match="template"),
    ):
        model.text.render_chat(turns)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% for %}", "{{ 1 / 0 }}"])
def test_a_broken_template_is_one_clear_error(tmp_path: Path, template: str) -> None:
    path = with_template(tmp_path / "chat.gguf", template)
    with (
        coe.Model(path, n_ctx=8, n_batch=8) as model,
        pytest.raises(coe.InputError, match="template"),
    ):
        model.text.render_chat((Message("user", "x"),))


def test_a_long_text_has_bos_in_every_window() -> None:
    text = "x = 1\n" * 400
    with coe.Model(demo.MODEL, n_ctx=64, n_batch=64) as model:
        body = len(model.tokenize(text)) - 1
        profile = coe.profile(model, [text])
    assert profile.n_tokens == body + -(-body // 63)


def test_standard_input_is_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"def f(): pass\n")))
    corpus = read_corpus("-")
    assert [document.content for document in corpus.documents] == ["def f(): pass\n"]
