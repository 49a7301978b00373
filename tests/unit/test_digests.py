"""Digests hash the bytes that docs/formats.md specifies, and files of version 0.1.0 still match their models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from support.random_models import write_random_model

import coe_native as coe
from coe_native.corpus.documents import Document, Message
from coe_native.masks.check import check_cut
from coe_native.recipes import demo

OLD = Path(__file__).parents[1] / "data" / "version_0_1_0"
ROUTER = ".ffn_gate_inp.weight"


def specified_fingerprint(path: Path, version: int) -> str:
    """Follow docs/formats.md, with gguf's own reader."""
    reader = GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    architecture = value("general.architecture")
    counts = [value(f"{architecture}.{key}") for key in ("block_count", "expert_count", "expert_used_count")]
    digest = hashlib.sha256()
    for text in (architecture, *map(str, counts)):
        digest.update(text.encode() + b"\0")
    for tensor in sorted(
        (t for t in reader.tensors if t.name.endswith(ROUTER)), key=lambda t: int(t.name.split(".")[1])
    ):
        stored = tensor.data.tobytes() if version == 1 else dequantize(tensor.data, tensor.tensor_type).tobytes()
        kind = int(tensor.tensor_type) if version == 1 else 0
        shape = tuple(int(size) for size in tensor.shape)
        for text in (tensor.name, str(shape), str(kind)):
            digest.update(text.encode() + b"\0")
        digest.update(stored)
    return digest.hexdigest()


def with_routers_as(source: Path, target: Path, kind: GGMLQuantizationType) -> Path:
    """Write a copy of a model whose routers are stored in another type, with values that it can hold exactly."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])
    for tensor in reader.tensors:
        if tensor.name.endswith(ROUTER):
            # Through BF16 and F16, so that all of the three types hold the same values.
            values = dequantize(quantize(tensor.data, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
            values = values.astype(np.float16).astype(np.float32)
            values = dequantize(quantize(values, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
            stored = values if kind == GGMLQuantizationType.F32 else quantize(values, kind)
            writer.add_tensor(tensor.name, stored, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def by_type(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("routers")
    write_random_model(directory / "model.gguf", "qwen3moe")
    return {
        kind.name: with_routers_as(directory / "model.gguf", directory / f"{kind.name}.gguf", kind)
        for kind in (GGMLQuantizationType.F32, GGMLQuantizationType.BF16, GGMLQuantizationType.F16)
    }


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
def test_fingerprint_follows_its_specification(by_type: dict[str, Path], kind: str) -> None:
    header = coe.MoeModel(by_type[kind])
    assert header.fingerprint == specified_fingerprint(by_type[kind], 2)
    assert header.has_fingerprint(specified_fingerprint(by_type[kind], 1))
    assert not header.has_fingerprint("0" * 64)


def test_same_router_in_another_type_is_the_same_model(by_type: dict[str, Path]) -> None:
    assert len({coe.MoeModel(path).fingerprint for path in by_type.values()}) == 1
    assert len({specified_fingerprint(path, 1) for path in by_type.values()}) == 3


def test_another_router_is_another_model(tmp_path: Path) -> None:
    fingerprints = set()
    for seed in (1, 2):
        write_random_model(tmp_path / "model.gguf", "qwen3moe", seed=seed)
        fingerprints.add(coe.MoeModel(tmp_path / "model.gguf").fingerprint)
    assert len(fingerprints) == 2


def test_masks_with_an_old_fingerprint_match_their_model(by_type: dict[str, Path]) -> None:
    header = coe.MoeModel(by_type["BF16"])
    kept = {block: tuple(range(8)) for block in header.blocks}
    for version in (1, 2):
        fingerprint = specified_fingerprint(by_type["BF16"], version)
        check_cut(coe.ExpertMask(header.architecture, fingerprint, header.n_experts, 8, kept), header)
    old_of_another = specified_fingerprint(by_type["F16"], 1)
    with pytest.raises(coe.InputError, match="weights"):
        check_cut(coe.ExpertMask(header.architecture, old_of_another, header.n_experts, 8, kept), header)


def specified_corpus_digest(documents: list[Document]) -> str:
    def sized(text: str) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return str(len(data)).encode() + b"\n" + data + b"\n"

    data = b"coe-native corpus 2\n"
    for document in documents:
        content = document.content
        if isinstance(content, str):
            data += b"text " + sized(content)
        elif content and isinstance(content[0], Message):
            with_fields = bool(document.tools) or any(message.fields for message in content)
            data += (b"conversation " if with_fields else b"messages ") + str(len(content)).encode() + b"\n"
            data += sized(document.tools) if with_fields else b""
            for message in content:
                assert isinstance(message, Message)
                data += sized(message.role) + sized(message.content)
                data += sized(message.fields) if with_fields else b""
        else:
            data += b"tokens " + str(len(content)).encode() + b"\n" + ",".join(map(str, content)).encode() + b"\n"
    return hashlib.sha256(data).hexdigest()


CONTENTS = st.one_of(
    st.text(),
    st.lists(st.builds(Message, st.text(), st.text(), st.sampled_from(["", '{"name": "a"}'])), min_size=1).map(
        tuple
    ),
    st.lists(st.integers(), min_size=1).map(tuple),
)


@given(st.lists(CONTENTS))
def test_corpus_digest_follows_its_specification(contents: list[Any]) -> None:
    documents = [Document("somewhere", content) for content in contents]
    assert coe.Corpus("name", tuple(documents)).sha256 == specified_corpus_digest(documents)


@given(st.lists(CONTENTS), st.lists(CONTENTS))
def test_other_contents_have_another_digest(first: list[Any], second: list[Any]) -> None:
    corpora = [coe.Corpus("name", tuple(Document("", content) for content in each)) for each in (first, second)]
    assert (corpora[0].sha256 == corpora[1].sha256) == (first == second)


def test_mask_digest_follows_its_specification() -> None:
    mask = coe.ExpertMask("olmoe", "f00d", 8, 2, {10: (0, 3), 2: (4, 5)}, provenance={"a": 1})
    text = '["olmoe", 8, 2, {"2": [4, 5], "10": [0, 3]}]'
    assert json.loads(text)
    assert mask.digest == hashlib.sha256(text.encode()).hexdigest()


def test_old_profiles_and_masks_are_read_and_match_their_model() -> None:
    header = coe.MoeModel(demo.MODEL)
    profile = coe.RoutingProfile.load(OLD / "demo.profile.gguf")
    mask = coe.ExpertMask.load(OLD / "demo.mask.json")
    assert header.has_fingerprint(profile.fingerprint)
    check_cut(mask, header)
    assert profile.outputs is not None
    assert coe.build_mask(profile, 16, method="utility").digest == mask.digest
    # Documents of a corpus are recognised by their digest, which was computed in another way.
    assert profile.corpora[0].sha256 == coe.Corpus("python", read_documents()).old_sha256
    assert (profile + profile).n_tokens == 2 * profile.n_tokens


def read_documents() -> tuple[Document, ...]:
    return demo.corpus("python", "test").documents[:6]


def test_profile_is_written_as_the_specification_says(tmp_path: Path) -> None:
    coe.RoutingProfile.load(OLD / "demo.profile.gguf").save(tmp_path / "again.gguf")
    old, new = GGUFReader(OLD / "demo.profile.gguf"), GGUFReader(tmp_path / "again.gguf")
    assert {name: field.contents() for name, field in old.fields.items() if "GGUF" not in name} == {
        name: field.contents() for name, field in new.fields.items() if "GGUF" not in name
    }
    for ours, theirs in zip(new.tensors, old.tensors, strict=True):
        assert (ours.name, ours.tensor_type, list(ours.shape)) == (
            theirs.name,
            theirs.tensor_type,
            list(theirs.shape),
        )
        np.testing.assert_array_equal(ours.data, theirs.data)
