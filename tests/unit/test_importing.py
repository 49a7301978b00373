"""What other tools have counted and masked: against what was written, and against llama-imatrix's own form."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.imported_files import STORAGES, histograms, imatrix, torch_save

import coe_native as coe
from coe_native.importers.import_file import import_file
from coe_native.importers.torch_file import read_torch
from coe_native.recipes import demo


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) and type(ours) is type(theirs)


ARRAYS = st.builds(
    lambda dtype, shape: np.arange(int(np.prod(shape))).reshape(shape).astype(dtype),
    st.sampled_from(sorted(STORAGES)),
    st.lists(st.integers(0, 4), max_size=4),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | ARRAYS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@given(VALUES, st.sampled_from([2, 4]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_torch_files_are_read_as_they_were_written(tmp_path: Path, value: Any, protocol: int) -> None:
    assert same(read_torch(torch_save(tmp_path / "x.pt", value, protocol)), value)


def test_a_view_of_a_tensor_is_read_by_its_strides(tmp_path: Path) -> None:
    """A transposed tensor that begins inside its storage, as torch.save leaves it."""
    whole = np.arange(40, dtype=np.int64)
    path = torch_save(tmp_path / "x.pt", whole)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # (40,), (1,) and offset 0 become (3, 4), (1, 5) and offset 7.
    made = members["archive/data.pkl"].replace(b"K\x00K(\x85q", b"K\x07K\x03K\x04\x86q", 1)
    at = made.index(b"K\x01\x85q")
    made = made[:at] + b"K\x01K\x05\x86q" + made[at + 4 :]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, made if name.endswith("data.pkl") else data)
    expected = np.array([[7 + row + 5 * column for column in range(4)] for row in range(3)])
    np.testing.assert_array_equal(read_torch(path), expected)


class Hostile:
    """What a pickle would do when it is loaded."""

    def __reduce__(self) -> Any:
        return Path("stolen").write_text, ("all of it",)


def pickled(path: Path, data: bytes, storage: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", storage)
    return path


TENSOR = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n%s\n"
    b"X\x01\x00\x00\x00%sX\x03\x00\x00\x00cpuK\x04tQ"
)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps(Hostile()), "tensor"),
        (pickle.dumps(Hostile(), 2), "tensor"),
        (b"cos\nsystem\n(X\x01\x00\x00\x00xtR.", r"os\.system"),
        (b"\x80\x02cbuiltins\neval\n.", "counts"),
        (b"", r"x\.pt"),
        (b".", r"x\.pt"),
        (b"\x80\x02]", r"x\.pt"),
        (b"\x80\x02\xff", r"x\.pt"),
        (b"\x80\x02tR.", r"x\.pt"),
        (b"\x80\x02h\x05.", r"x\.pt"),
        (b"I1\n.", "tensor"),
        # Names of names, and keys of tuples, that double with each step.
        (b"\x80\x04\x8c\x01a\x8c\x01b\x93" + b"q\x00h\x00\x93" * 60 + b".", "tensor"),
        (b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "numbers"),
        (b"\x80\x02]q\x00h\x00a.", "counts"),  # a list that holds itself
        (TENSOR % (b"LongStorage", b"0") + b"K\x00K\x05\x85K\x01\x85\x89NtR.", "data"),
        (TENSOR % (b"LongStorage", b"0") + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89NtR.", "shape"),
        (TENSOR % (b"LongStorage", b"0") + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85\x89NtR.", "256 MB"),
        (TENSOR % (b"LongStorage", b"7") + b"K\x00K\x01\x85K\x01\x85\x89NtR.", "data/7"),
        (TENSOR % (b"LongStorage", b"/") + b"K\x00K\x01\x85K\x01\x85\x89NtR.", "type"),
        (TENSOR % (b"SomeStorage", b"0") + b"K\x00K\x01\x85K\x01\x85\x89NtR.", "type"),
    ],
)
def test_nothing_in_a_pickle_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(coe.InputError, match=said):
        import_file(pickled(tmp_path / "x.pt", data, bytes(32)), n_experts=8)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for path in (pickled(tmp_path / "x.pt", data), tmp_path / "y.pt"):
        if path.name == "y.pt":
            path.write_bytes(data)
        try:
            read_torch(path)
        except coe.InputError:
            continue


def test_other_values_are_refused(tmp_path: Path) -> None:
    indices = [np.array([0, 1, 2, 3])] * 3
    for value, options, said in (
        (indices, {}, "--experts.*--model"),
        ([[0, 1, 9]], {"n_experts": 8}, r"\b7\b"),
        ([*indices, np.array([1])], {"n_experts": 8}, "numbers"),
        ([np.array([1, 1, 2, 3])], {"n_experts": 8}, "experts"),
        (indices[:2], {"model": coe.MoeModel(demo.MODEL)}, r"\b2 layers"),
        (np.zeros((3, 16, 4), np.float32), {}, "counts"),
        (np.zeros((3, 16, 4), np.int64), {}, "counts"),
        (-histograms(), {}, "counts"),
        (histograms()[:, :, ::2] * np.array([1, 2]), {}, "text"),
        (histograms(), {"n_experts": 8}, r"\b16\b.*\b8\b"),
        ({"a": histograms(), "b": histograms()}, {}, "'a', 'b'"),
        ("text", {}, "counts"),
        (np.zeros((1, 5_000_000, 1), np.int8), {}, "counts"),
        (np.zeros((400, 20_000), np.bool_), {}, "counts"),
        ([np.zeros(5_000_000, np.bool_)], {}, "counts"),
        ([[0]] * 5000, {"n_experts": 8}, "counts"),
        ([[0, 1, 2**70]], {"n_experts": 8}, "counts"),
        ([[0, 1.5]], {"n_experts": 8}, "counts"),
        ([[[0, 1]]], {"n_experts": 8}, "counts"),
    ):
        with pytest.raises(coe.InputError, match=said):
            import_file(torch_save(tmp_path / "x.pt", value), **options)  # type: ignore[arg-type]


def test_bad_files_of_imatrix_are_refused(tmp_path: Path) -> None:
    good = {layer: row.astype(np.float32) for layer, row in enumerate(histograms().sum(axis=2))}
    large = histograms(1, 32).sum(axis=2)[0].astype(np.float32)
    for counts, options, said in (
        ({}, {}, "experts"),
        ({**good, 2: good[2] / 2}, {}, r"\b50 tokens|exact"),
        ({**good, 2: good[2] * 0}, {}, r"\[2\]"),
        ({**good, 2: np.append(good[2], np.zeros(16, np.float32))}, {}, "numbers"),
        ({**good, 1: good[1] + 0.5}, {}, "exact"),
        ({**good, 1: good[1] * np.nan}, {}, "exact"),
        (good, {"n_experts": 8}, r"\b8\b"),
        ({5: large}, {"model": coe.MoeModel(demo.MODEL)}, "layers|blocks"),
    ):
        with pytest.raises(coe.InputError, match=said):
            import_file(imatrix(tmp_path / "i.gguf", counts, 50), **options)  # type: ignore[arg-type]
    with pytest.raises(coe.InputError, match="imatrix"):
        import_file(imatrix(tmp_path / "i.gguf", good, 50, kind="model"))
    with pytest.raises(coe.InputError, match="tokens"):
        import_file(imatrix(tmp_path / "i.gguf", good, 0))


def test_tokens_of_imatrix_are_those_that_were_counted(tmp_path: Path) -> None:
    """llama-imatrix rounds the number of chunks down when it combines files."""
    n_tokens = 55  # five and a half chunks
    counts = dict(enumerate(histograms(n_tokens=n_tokens).sum(axis=2).astype(np.float32)))
    read = import_file(imatrix(tmp_path / "i.gguf", counts, n_tokens))
    assert isinstance(read, coe.RoutingProfile)
    assert read.n_tokens == n_tokens
    for options, said in (({"n_chunks": 99}, "99 chunks"), ({"down": 1}, "different counts")):
        with pytest.raises(coe.InputError, match=said):
            import_file(imatrix(tmp_path / "i.gguf", counts, n_tokens, **options))  # type: ignore[arg-type]


def test_an_imatrix_must_have_as_many_choices_as_the_model(tmp_path: Path) -> None:
    per_layer = np.zeros(32, np.float32)
    per_layer[:30] = 1  # 30 choices of 10 tokens: three for each, and the model chooses four
    counts = dict.fromkeys(range(6), per_layer)
    with pytest.raises(coe.InputError, match="3 choices"):
        import_file(imatrix(tmp_path / "i.gguf", counts, 10), model=coe.MoeModel(demo.MODEL))


def test_an_old_file_of_torch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps(119547037146038801333356) + struct.pack("<I", 1))
    with pytest.raises(coe.InputError, match=r"1\.6"):
        import_file(tmp_path / "old.pt")
    with pytest.raises(coe.InputError, match=r"none\.pt"):
        import_file(tmp_path / "none.pt")


def safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    """Write a safetensors file by its specification."""
    names = {"<i8": "I64", "<i4": "I32", "<f4": "F32", "|b1": "BOOL"}
    header, data = {"__metadata__": {"by": "a test"}}, b""
    for name, values in tensors.items():
        end = len(data) + values.nbytes
        entry = {"dtype": names[values.dtype.str], "shape": list(values.shape), "data_offsets": [len(data), end]}
        header[name] = entry  # type: ignore[assignment]
        data += values.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def savez(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    np.savez(path, **tensors)
    return path


COUNTS_OF_DEMO = histograms(6, 32)
"""Counts of 50 tokens by a model of the demo's shape."""


@pytest.mark.parametrize("write", [savez, safetensors])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_counts_are_read_from_other_containers_and_types(
    tmp_path: Path, write: Callable[..., Path], dtype: type
) -> None:
    model = coe.MoeModel(demo.MODEL)
    suffix = {savez: "npz", safetensors: "safetensors"}[write]
    path = write(tmp_path / f"c.{suffix}", {"counts": COUNTS_OF_DEMO.astype(dtype)})
    ranked = import_file(path, model=model)
    assert isinstance(ranked, coe.RoutingProfile)
    np.testing.assert_array_equal(ranked.histograms, COUNTS_OF_DEMO)
    of_layers = {str(layer): counts.astype(dtype) for layer, counts in enumerate(COUNTS_OF_DEMO.sum(axis=2))}
    for tensors in (of_layers, {"counts": np.stack(list(of_layers.values()))}):
        unranked = import_file(write(tmp_path / f"l.{suffix}", tensors), model=model)
        assert isinstance(unranked, coe.RoutingProfile)
        np.testing.assert_array_equal(unranked.counts, COUNTS_OF_DEMO.sum(axis=2))
        assert unranked.n_tokens == 50
        assert not unranked.has_ranks
        with pytest.raises(coe.InputError, match="--model"):
            import_file(tmp_path / f"l.{suffix}")


def test_bfloat16_counts_of_torch_are_read(tmp_path: Path) -> None:
    halves = (COUNTS_OF_DEMO.astype(np.float32).view(np.uint32) >> 16).astype("<i2")
    path = torch_save(tmp_path / "c.pt", halves)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, archive.read(name).replace(b"ShortStorage", b"BFloat16Storage"))
    read = import_file(tmp_path / "b.pt", model=coe.MoeModel(demo.MODEL))
    assert isinstance(read, coe.RoutingProfile)
    np.testing.assert_array_equal(read.histograms, COUNTS_OF_DEMO)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npz", b"PK\x03\x04"),
        ("a.npz", b""),
        ("a.safetensors", b""),
        ("a.safetensors", struct.pack("<Q", 2**40) + b"{}"),
        ("a.safetensors", struct.pack("<Q", 2) + b"[]"),
        ("a.safetensors", struct.pack("<Q", 58) + b'{"a":{"dtype":"I64","shape":[9,9],"data_offsets":[0,648]}}'),
        ("a.safetensors", struct.pack("<Q", 57) + b'{"a":{"dtype":"X64","shape":[1,1],"data_offsets":[0,8]}}  '),
    ],
)
def test_bad_files_of_arrays_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(coe.InputError, match=name):
        import_file(tmp_path / name)


def test_objects_in_npz_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", counts=np.array([{}], object))
    with pytest.raises(coe.InputError, match=r"a\.npz"):
        import_file(tmp_path / "a.npz")


def test_fractions_are_no_counts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", counts=COUNTS_OF_DEMO + 0.5)
    with pytest.raises(coe.InputError, match="whole"):
        import_file(tmp_path / "a.npz")


def reap_layers(profile: coe.RoutingProfile) -> dict[int, dict[str, Any]]:
    """What REAP's observer would have counted of a run that a profile describes."""
    assert profile.outputs is not None
    return {
        block: {
            "total_tokens": np.int64(profile.layer_tokens[index]),
            "expert_frequency": profile.counts[index],
            "pairwise_expert_frequency": np.add.outer(profile.counts[index], profile.counts[index]),
            "ean_sum": profile.outputs.norm_sum[index],
            "weighted_ean_sum": profile.outputs.weighted_norm_sum[index],
            "weighted_expert_frequency_sum": profile.weight_sum[index].sum(axis=1),
            "max_activations": np.ones(profile.n_experts, np.float32),
        }
        for index, block in enumerate(profile.layers)
    }


def as_means(layer: dict[str, Any]) -> dict[str, Any]:
    """The same as llama-expert-profile writes it."""
    counts = layer["expert_frequency"]
    most = np.maximum(counts, 1)
    return {
        "total_tokens": int(layer["total_tokens"]),
        "activation_counts": counts.tolist(),
        "activation_frequency": (counts / layer["total_tokens"]).tolist(),
        "avg_gate_weight": (layer["weighted_expert_frequency_sum"] / most).tolist(),
        "ean_mean": (layer["ean_sum"] / most).tolist(),
        "reap": (layer["weighted_ean_sum"] / most).tolist(),
        "never_activated": int((counts == 0).sum()),
    }


def write_reap(path: Path, layers: dict[int, dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps({str(block): as_means(layer) for block, layer in layers.items()}))
        return path
    plain = {
        block: {name: int(value) if name == "total_tokens" else value for name, value in layer.items()}
        for block, layer in layers.items()
    }
    return torch_save(path, plain)


@pytest.mark.parametrize("name", ["state.pt", "expert_stats.json"])
def test_statistics_of_reap_score_as_our_own(tmp_path: Path, name: str) -> None:
    """Its counts, weights and norms are the sums that a profile has."""
    texts = [document.content for document in demo.corpus("python", "test").documents][:2]
    own = coe.profile(demo.MODEL, texts, stats="contribution", n_threads=2)  # type: ignore[arg-type]
    moe = coe.MoeModel(demo.MODEL)
    profile = import_file(write_reap(tmp_path / name, reap_layers(own)), model=moe)
    assert isinstance(profile, coe.RoutingProfile)
    assert (profile.n_tokens, profile.layers, profile.layer_tokens) == (own.n_tokens, own.layers, own.layer_tokens)
    np.testing.assert_array_equal(profile.counts, own.counts)
    for method in ("contribution", "frequency"):
        np.testing.assert_allclose(coe.score(profile, method), coe.score(own, method), rtol=1e-9)
        kept = [coe.build_mask(each, 16, method=method, structural=False).kept for each in (profile, own)]
        assert kept[0] == kept[1]
    profile.save(tmp_path / "p.gguf")
    again = coe.RoutingProfile.load(tmp_path / "p.gguf")
    np.testing.assert_array_equal(coe.score(again, "contribution"), coe.score(profile, "contribution"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers[1].pop("ean_sum"), "ean_mean"),
        (lambda layers: layers[0].pop("total_tokens"), "total_tokens"),
        (lambda layers: layers[1].update(expert_frequency=np.array([1, 2, 3])), "damaged"),
        (lambda layers: layers[1].update(weighted_ean_sum=np.full(4, np.nan)), "cannot be"),
        (lambda layers: layers[1].update(expert_frequency=np.array([1, 1, 1, 6])), "one number"),
        (lambda layers: layers.update({7: layers.pop(1)}), r"\[0, 7\]"),
    ],
)
def test_damaged_statistics_of_reap_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    layers: dict[int, Any] = {
        block: {
            "total_tokens": np.int64(4),
            "expert_frequency": np.array([4, 2, 1, 1]),
            "ean_sum": np.ones(4),
            "weighted_ean_sum": np.ones(4),
            "weighted_expert_frequency_sum": np.ones(4),
        }
        for block in (0, 1)
    }
    assert isinstance(import_file(write_reap(tmp_path / "good.pt", layers)), coe.RoutingProfile)
    model = None
    change(layers)
    if 7 in layers:
        model = coe.MoeModel(demo.MODEL)
        message = "experts in a layer"
    path = write_reap(tmp_path / "bad.pt", layers)
    with pytest.raises(coe.InputError, match=message):
        import_file(path, model=model)
