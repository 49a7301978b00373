"""What other tools have counted and masked: against what was written, and against llama-imatrix's own form."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import coe_native as coe
from coe_native.importers.import_file import import_file
from coe_native.importers.torch_file import read_torch

ModelFile = Callable[[str, str], Path]
STORAGES = {"i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char", "u1": "Byte", "b1": "Bool", "f4": "Float"}


class TorchPickler(pickle._Pickler):  # the one in Python, whose instructions can be added to
    """Writes a pickle as torch.save does, for NumPy arrays in place of tensors. By PyTorch's own format: a call of
    _rebuild_tensor_v2 with a persistent id for the storage."""

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages: list[bytes] = []

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(value, np.ndarray):
            super().save(value, save_persistent_id)
            return
        stored = np.array(value, order="C")
        strides = [step // stored.itemsize for step in stored.strides]
        self._name("torch._utils", "_rebuild_tensor_v2")
        self.write(pickle.MARK)
        self.write(pickle.MARK)
        super().save("storage")
        self._name("torch", STORAGES[stored.dtype.str[1:]] + "Storage")
        super().save(str(len(self.storages)))
        super().save("cpu")
        super().save(stored.size)
        self.write(pickle.TUPLE + pickle.BINPERSID)
        for part in (0, stored.shape, tuple(strides), False):
            super().save(part)
        self._name("collections", "OrderedDict")
        self.write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
        self.storages.append(stored.tobytes())

    def _name(self, module: str, name: str) -> None:
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def torch_save(path: Path, value: Any, protocol: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            pickler = TorchPickler(file, protocol)
            pickler.dump(value)
        archive.writestr("archive/byteorder", "little")
        for number, data in enumerate(pickler.storages):
            archive.writestr(f"archive/data/{number}", data)
        archive.writestr("archive/version", "3\n")
    return path


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
        (pickle.dumps(Hostile()), "no tensor"),
        (pickle.dumps(Hostile(), 2), "no tensor"),
        (b"cos\nsystem\n(X\x01\x00\x00\x00xtR.", "no tensor: os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "neither counts"),
        (b"", "exhausted"),
        (b".", "makes no sense"),
        (b"\x80\x02]", "exhausted"),
        (b"\x80\x02\xff", "makes no sense"),
        (b"\x80\x02tR.", "makes no sense"),
        (b"\x80\x02h\x05.", "makes no sense"),
        (b"I1\n.", "is no tensor"),
        # Names of names, and keys of tuples, that double with each step.
        (b"\x80\x04\x8c\x01a\x8c\x01b\x93" + b"q\x00h\x00\x93" * 60 + b".", "no tensor"),
        (b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "neither texts nor numbers"),
        (b"\x80\x02]q\x00h\x00a.", "neither counts"),  # a list that holds itself
        (TENSOR % (b"LongStorage", b"0") + b"K\x00K\x05\x85K\x01\x85\x89NtR.", "larger than its data"),
        (TENSOR % (b"LongStorage", b"0") + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89NtR.", "no possible shape"),
        (TENSOR % (b"LongStorage", b"0") + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85\x89NtR.", "more than 64 MB"),
        (TENSOR % (b"LongStorage", b"7") + b"K\x00K\x01\x85K\x01\x85\x89NtR.", "has no data/7"),
        (TENSOR % (b"LongStorage", b"/") + b"K\x00K\x01\x85K\x01\x85\x89NtR.", "of a type"),
        (TENSOR % (b"SomeStorage", b"0") + b"K\x00K\x01\x85K\x01\x85\x89NtR.", "of a type"),
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


def histograms(n_layers: int = 3, n_experts: int = 16, top_k: int = 4, n_tokens: int = 50) -> NDArray[np.int64]:
    counts = np.zeros((n_layers, n_experts, top_k), np.int64)
    generator = np.random.default_rng(1)
    for layer in range(n_layers):
        for _ in range(n_tokens):
            for rank, expert in enumerate(generator.permutation(n_experts)[:top_k]):
                counts[layer, expert, rank] += 1
    return counts


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_counts_become_a_profile(tmp_path: Path, model_file: ModelFile, dtype: type) -> None:
    counts = histograms()
    path = torch_save(tmp_path / "x.pt", {"histograms": counts.astype(dtype), "note": "of nobody"})
    moe = coe.MoeModel(model_file("qwen3moe", "F32"))
    for model in (None, moe):
        profile = import_file(path, model=model)
        assert isinstance(profile, coe.RoutingProfile)
        profile.save(tmp_path / "p.gguf")
        profile = coe.RoutingProfile.load(tmp_path / "p.gguf")
        np.testing.assert_array_equal(profile.histograms, counts)
        assert (profile.n_tokens, profile.top_k, profile.layers) == (50, 4, (0, 1, 2))
        with pytest.raises(
            coe.InputError, match="choices without their weights; use --method rank-weighted or frequency"
        ):
            coe.score(profile)
        mask = coe.build_mask(profile, 8, method="rank-weighted")
        mask.save(tmp_path / "m.json")
        coe.prune(moe.path, coe.ExpertMask.load(tmp_path / "m.json"), tmp_path / "out.gguf", force=True)
    with pytest.raises(coe.InputError, match=r"has 3 layers, and .* MoE layers"):
        import_file(path, model=coe.MoeModel(model_file("deepseek2", "F32")))


@pytest.mark.parametrize(
    "form",
    [
        lambda kept: [np.array(row) for row in kept],
        lambda kept: [np.array(row[::-1], np.int32) for row in kept],
        lambda kept: {str(layer): np.array(row) for layer, row in enumerate(kept)},
        lambda kept: {"mask": [list(row) for row in kept], "keep": 4},
        lambda kept: np.array([[expert in row for expert in range(16)] for row in kept]),
        lambda kept: [np.array([expert in row for expert in range(16)]) for row in kept],
    ],
)
def test_masks_are_taken_over(tmp_path: Path, model_file: ModelFile, form: Callable[[Any], Any]) -> None:
    kept = [(0, 3, 5, 15), (1, 2, 3, 4), (0, 1, 14, 15)]
    path = torch_save(tmp_path / "m.pt", form(kept))
    moe = coe.MoeModel(model_file("qwen3moe", "F32"))
    for mask in (import_file(path, model=moe), import_file(path, n_experts=16)):
        assert isinstance(mask, coe.ExpertMask)
        assert list(mask.kept.values()) == kept
        assert (mask.keep, mask.n_experts) == (4, 16)
        mask.save(tmp_path / "m.json")
        with coe.Model(moe.path, n_ctx=64, n_threads=1) as model:
            model.apply(coe.ExpertMask.load(tmp_path / "m.json"))


def test_what_is_no_mask_is_refused(tmp_path: Path, model_file: ModelFile) -> None:
    indices = [np.array([0, 1, 2, 3])] * 3
    for value, options, said in (
        (indices, {}, "--experts N, or --model MODEL"),
        ([[0, 1, 9]], {"n_experts": 8}, "outside 0 to 7"),
        ([*indices, np.array([1])], {"n_experts": 8}, "unlike numbers"),
        ([np.array([1, 1, 2, 3])], {"n_experts": 8}, "different experts"),
        (indices[:2], {"model": coe.MoeModel(model_file("qwen3moe", "F32"))}, "has 2 layers"),
        (np.zeros((3, 16, 4), np.float32), {}, "neither counts"),
        (np.zeros((3, 16, 4), np.int64), {}, "no counts"),
        (-histograms(), {}, "no counts"),
        (histograms()[:, :, ::2] * np.array([1, 2]), {}, "not of one text"),
        (histograms(), {"n_experts": 8}, "has 16 experts in a layer, not 8"),
        ({"a": histograms(), "b": histograms()}, {}, "several of them: 'a', 'b'"),
        ("text", {}, "neither counts"),
        (np.zeros((1, 5_000_000, 1), np.int8), {}, "no counts"),
        (np.zeros((400, 20_000), np.bool_), {}, "neither counts"),
        ([np.zeros(5_000_000, np.bool_)], {}, "neither counts"),
        ([[0]] * 5000, {"n_experts": 8}, "neither counts"),
        ([[0, 1, 2**70]], {"n_experts": 8}, "neither counts"),
        ([[0, 1.5]], {"n_experts": 8}, "neither counts"),
        ([[[0, 1]]], {"n_experts": 8}, "neither counts"),
    ):
        with pytest.raises(coe.InputError, match=said):
            import_file(torch_save(tmp_path / "x.pt", value), **options)  # type: ignore[arg-type]


def imatrix(path: Path, counts: dict[int, NDArray[np.float32]], n_tokens: int, kind: str = "imatrix") -> Path:
    """As llama-imatrix writes it: two tensors a matrix, the experts' matrices with a count for each expert."""
    writer = GGUFWriter(path, "none")
    writer.add_type(kind)
    writer.add_uint32("imatrix.chunk_count", n_tokens // 10)
    writer.add_uint32("imatrix.chunk_size", 10)
    for block, of_layer in counts.items():
        for matrix in ("ffn_gate_up_exps", "ffn_down_exps"):
            writer.add_tensor(f"blk.{block}.{matrix}.weight.in_sum2", np.ones((len(of_layer), 8), np.float32))
            writer.add_tensor(f"blk.{block}.{matrix}.weight.counts", of_layer.reshape(-1, 1))
        writer.add_tensor(f"blk.{block}.ffn_gate_inp.weight.counts", np.full((1, 1), n_tokens, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_counts_of_imatrix_become_a_profile(tmp_path: Path, model_file: ModelFile) -> None:
    expected = histograms().sum(axis=2)
    path = imatrix(tmp_path / "i.gguf", {layer: row.astype(np.float32) for layer, row in enumerate(expected)}, 50)
    moe = coe.MoeModel(model_file("qwen3moe", "F32"))
    for model in (None, moe):
        profile = import_file(path, model=model)
        assert isinstance(profile, coe.RoutingProfile)
        profile.save(tmp_path / "p.gguf")
        profile = coe.RoutingProfile.load(tmp_path / "p.gguf")
        np.testing.assert_array_equal(profile.counts, expected)
        assert (profile.n_tokens, profile.top_k, profile.has_ranks, profile.has_weights) == (50, 4, False, False)
        np.testing.assert_array_equal(coe.score(profile, "frequency"), expected / 50)
        assert np.isinf(profile.mean_rank).all()
        for method in ("utility", "rank-weighted"):
            with pytest.raises(coe.InputError, match="use --method frequency"):
                coe.score(profile, method)
        mask = coe.build_mask(profile, 8, method="frequency")
        assert not mask.swaps
        assert (profile + profile).n_tokens == 100
        coe.prune(moe.path, mask, tmp_path / "out.gguf", force=True)


def test_bad_files_of_imatrix_are_refused(tmp_path: Path, model_file: ModelFile) -> None:
    good = {layer: row.astype(np.float32) for layer, row in enumerate(histograms().sum(axis=2))}
    for counts, options, said in (
        ({}, {}, "counts no experts"),
        ({**good, 2: good[2] / 2}, {}, r"\[2\] did not see all of its 50 tokens|no exact counts"),
        ({**good, 2: good[2] * 0}, {}, r"\[2\] did not see all"),
        ({**good, 2: np.append(good[2], np.zeros(16, np.float32))}, {}, "unlike numbers"),
        ({**good, 1: good[1] + 0.5}, {}, "no exact counts"),
        ({**good, 1: good[1] * np.nan}, {}, "no exact counts"),
        (good, {"n_experts": 8}, "not 8"),
        ({5: good[0]}, {"model": coe.MoeModel(model_file("qwen3moe", "F32"))}, "not those of"),
    ):
        with pytest.raises(coe.InputError, match=said):
            import_file(imatrix(tmp_path / "i.gguf", counts, 50), **options)  # type: ignore[arg-type]
    with pytest.raises(coe.InputError, match="no file of llama-imatrix"):
        import_file(imatrix(tmp_path / "i.gguf", good, 50, kind="model"))
    with pytest.raises(coe.InputError, match="how many tokens"):
        import_file(imatrix(tmp_path / "i.gguf", good, 0))


def test_an_old_file_of_torch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps(119547037146038801333356) + struct.pack("<I", 1))
    with pytest.raises(coe.InputError, match=r"from before PyTorch 1\.6"):
        import_file(tmp_path / "old.pt")
    with pytest.raises(coe.InputError, match="cannot be read"):
        import_file(tmp_path / "none.pt")
