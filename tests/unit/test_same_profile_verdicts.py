"""The C library, the C++ core and Python accept the same profile files, and refuse the same."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from support.bare_host import load_c_library

import coe_native as coe
from coe_native._native import core
from coe_native.model.gguf_file import GgufFile

Entries = dict[str, Any]
Tensors = dict[str, Any]
CORPUS = {"name": "text", "documents": 1, "tokens": 4, "sha256": "abc"}
SHARD = CORPUS | {"shards": [1], "n_shards": 3, "run": "def"}
U32_KEYS = ("version", "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count")


def entries() -> Entries:
    return {
        "general.architecture": "olmoe",
        "general.type": "routing-profile",
        "general.name": "a model",
        "coe.profile.version": np.uint32(1),
        "coe.profile.fingerprint": "f00d",
        "coe.profile.expert_count": np.uint32(3),
        "coe.profile.expert_used_count": np.uint32(2),
        "coe.profile.layer_expert_used_count": [2, 2],
        "coe.profile.expert_group_count": np.uint32(1),
        "coe.profile.expert_group_used_count": np.uint32(1),
        "coe.profile.tokens": np.uint64(4),
        "coe.profile.corpora": json.dumps([CORPUS]),
    }


def tensors() -> Tensors:
    histogram = np.array([[4, 0], [0, 3], [0, 1]], np.int64)
    return {
        f"blk.{block}.router.{part}": values.copy()
        for block in (0, 3)
        for part, values in (
            ("histogram", histogram),
            ("weight_sum", histogram * 0.25),
            ("weight_sum_rest", np.zeros((3, 2))),
        )
    }


def write(path: Path, metadata: Entries, data: Tensors) -> None:
    writer = GGUFWriter(path, metadata.get("general.architecture", "x"))
    writer.kv_data[0].clear()
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_key_value(key, value, GGUFValueType.STRING)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, np.uint64):
            writer.add_uint64(key, int(value))
        elif isinstance(value, np.uint32):
            writer.add_uint32(key, int(value))
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_int32(key, value)
        else:
            writer.add_array(key, value)
    for name, values in data.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def changed() -> dict[str, tuple[Entries, Tensors, bool]]:
    """Files with one change each, and whether they are good."""
    cases: dict[str, tuple[Entries, Tensors, bool]] = {"nothing": (entries(), tensors(), True)}

    def entry(what: str, good: bool, **values: Any) -> None:
        made = entries()
        for name, value in values.items():
            key = name.replace("general_", "general.") if name.startswith("general_") else f"coe.profile.{name}"
            if value is None:
                made.pop(key)
            else:
                made[key] = value
        cases[what] = (made, tensors(), good)

    def tensor(what: str, good: bool, change: Callable[[Tensors], None]) -> None:
        made = tensors()
        change(made)
        cases[what] = (entries(), made, good)

    entry("another kind of file", False, general_type="model")
    entry("no name", True, general_name=None)
    for key in ("fingerprint", "tokens", "corpora", "version"):
        entry(f"no {key}", False, **{key: None})
    for key in ("expert_count", "layer_expert_used_count", "expert_group_count", "expert_group_used_count"):
        entry(f"no {key}", True, **{key: None})
    for version, good in ((0, False), (1, True), (2, True), (3, False), (4, False), (-1, False)):
        entry(f"version {version}", good, version=version if version < 0 else np.uint32(version))
    entry("a version that is true", False, version=True)
    entry("version 1.0", False, version=1.0)
    entry("version 3", True, version=np.uint32(3), layer_tokens=[4, 4])
    entry("layers that saw more", False, version=np.uint32(3), layer_tokens=[4, 5])
    entry("layers that saw less than nothing", False, version=np.uint32(3), layer_tokens=[4, -4])
    entry("layers that saw other numbers", False, version=np.uint32(3), layer_tokens=[4, 3])
    entry("too few layers", False, version=np.uint32(3), layer_tokens=[4])
    entry("other choices", False, layer_expert_used_count=[2, 1])
    entry("too few choices", False, layer_expert_used_count=[2])
    for tokens in (np.uint64(5), np.uint64(2**46), -4, 4.0, "4", True):
        entry(f"{tokens!r} tokens", False, tokens=tokens)
    entry("4 tokens of another type", True, tokens=4)
    for groups, used, good in ((3, 2, True), (3, 3, False), (3, 1, True), (2, 1, False), (0, 0, False)):
        entry(
            f"{used} of {groups} groups",
            good,
            expert_group_count=np.uint32(groups),
            expert_group_used_count=np.uint32(used),
        )
    entry("weights that are not known", False, version=np.uint32(2), has_weights=False)
    entry("ranks that are not known", False, version=np.uint32(2), has_ranks=False)
    corpora: dict[str, tuple[Any, bool]] = {
        "no corpus": ([], True),
        "two corpora": ([CORPUS, CORPUS], True),
        "a shard": ([SHARD], True),
        "one more field": ([CORPUS | {"more": 1}], True),
        "an object": (CORPUS, False),
        "a number": ([1], False),
        "a shard beyond the last": ([SHARD | {"shards": [4]}], False),
        "shard 0": ([SHARD | {"shards": [0]}], False),
        "a shard twice": ([SHARD | {"shards": [1, 1]}], False),
        "descending shards": ([SHARD | {"shards": [2, 1]}], False),
        "no shards": ([SHARD | {"shards": []}], False),
        "very many shards": ([SHARD | {"n_shards": 10**9}], False),
    }
    for key in CORPUS:
        corpora[f"no {key}"] = ([{name: value for name, value in CORPUS.items() if name != key}], False)
        corpora[f"{key} is null"] = ([CORPUS | {key: None}], False)
        corpora[f"{key} is a list"] = ([CORPUS | {key: [1]}], False)
    for key in ("documents", "tokens"):
        corpora[f"{key} is negative"] = ([CORPUS | {key: -1}], False)
        corpora[f"{key} is a fraction"] = ([CORPUS | {key: 1.5}], False)
    for what, (value, good) in corpora.items():
        entry(f"corpora: {what}", good, corpora=json.dumps(value))
    entry("corpora: not JSON", False, corpora="{")
    entry("corpora: deep", False, corpora="[" * 10_000)

    tensor("no rests", True, lambda t: [t.pop(name) for name in list(t) if name.endswith("_rest")])
    tensor("no histogram of a layer", False, lambda t: t.pop("blk.3.router.histogram"))
    tensor("no weights of a layer", False, lambda t: t.pop("blk.3.router.weight_sum"))
    tensor("one rest only", False, lambda t: t.pop("blk.3.router.weight_sum_rest"))
    tensor("no tensors", False, lambda t: t.clear())
    tensor("more tensors", True, lambda t: t.update(more=np.zeros(3)))
    tensor("a layer far away", False, lambda t: [t.update({f"blk.5000.{n[6:]}": t.pop(n)}) for n in list(t)[3:]])
    tensor("another shape", False, lambda t: t.update({"blk.3.router.histogram": np.zeros((3, 3), np.int64)}))
    tensor("another type", False, lambda t: t.update({"blk.3.router.histogram": np.zeros((3, 2), np.int32)}))

    def number(part: str, value: float) -> Callable[[Tensors], None]:
        def change(made: Tensors) -> None:
            made[f"blk.3.router.{part}"][0, 0] = value

        return change

    for part, value in (
        ("histogram", 3),
        ("histogram", -4),
        ("histogram", 5),
        ("weight_sum", np.nan),
        ("weight_sum", np.inf),
        ("weight_sum", 1e40),
        ("weight_sum_rest", 0.5),
        ("weight_sum_rest", np.nan),
    ):
        tensor(f"{part} {value}", False, number(part, value))
    sums = {
        f"blk.{block}.expert.{part}": np.zeros(3) for block in (0, 3) for part in ("norm_sum", "weighted_norm_sum")
    }
    tensor("norms", True, lambda t: t.update(sums))
    tensor("norms of one kind", False, lambda t: t.update({n: v for n, v in sums.items() if ".norm_sum" in n}))
    tensor(
        "norms of experts never chosen",
        False,
        lambda t: t.update(
            sums
            | {
                "blk.0.expert.norm_sum": np.array([0.0, 0.0, 1.0]),
                "blk.0.router.histogram": np.array([[4, 0], [0, 4], [0, 0]], np.int64),
            }
        ),
    )
    tensor(
        "negative norms", False, lambda t: t.update(sums | {"blk.0.expert.norm_sum": np.array([-1.0, 0.0, 0.0])})
    )
    return cases


CASES = changed()


def verdicts(path: Path) -> tuple[bool, bool, bool]:
    """Return whether C, the core and Python accept a file."""
    library = load_c_library()
    library.coe_profile_load.restype = ctypes.c_void_p
    library.coe_profile_load.argtypes = (ctypes.c_char_p,)
    library.coe_profile_free.argtypes = (ctypes.c_void_p,)
    pointer = library.coe_profile_load(str(path).encode())
    library.coe_profile_free(pointer)
    try:
        core.decode_profile(GgufFile(path).native)
        by_core = True
    except ValueError:
        by_core = False
    try:
        coe.RoutingProfile.load(path)
        by_python = True
    except coe.InputError:
        by_python = False
    return bool(pointer), by_core, by_python


@pytest.mark.parametrize("what", CASES)
def test_profiles_get_the_same_verdict(tmp_path: Path, what: str) -> None:
    metadata, data, good = CASES[what]
    path = tmp_path / "profile.gguf"
    write(path, metadata, data)
    assert verdicts(path) == (good, good, good)
