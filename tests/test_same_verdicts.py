"""The C library and Python accept the same masks, models and profiles, and refuse the same."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bare_host import CProfiler, load_c_library
from random_models import write_random_model

import coe_native as coe
from coe_native._native import core
from coe_native.masks.check import check_cut
from coe_native.masks.expert_mask import Swap
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]
SWAP = {"layer": 0, "incoming": 1, "outgoing": 20, "stage": 2, "incoming_score": 0.5, "outgoing_score": 0.1}


@pytest.fixture(scope="module")
def profiler() -> Iterator[CProfiler]:
    opened = CProfiler(demo.MODEL)
    yield opened
    opened.close()


def mask_of(model: coe.MoeModel, keep: int) -> coe.ExpertMask:
    """A mask that keeps the first experts of each group."""
    shape = model.router_shape
    kept = tuple(sorted(itertools.islice(itertools.chain(*zip(*shape.groups(), strict=True)), keep)))
    return coe.ExpertMask(
        model.architecture, model.fingerprint, model.n_experts, keep, dict.fromkeys(model.blocks, kept)
    )


def good() -> dict[str, Any]:
    model = coe.MoeModel(demo.MODEL)
    mask = mask_of(model, 16)
    return {
        "format": "coe-native.expert-mask",
        "version": 1,
        "architecture": mask.architecture,
        "fingerprint": mask.fingerprint,
        "expert_count": mask.n_experts,
        "keep": mask.keep,
        "layers": {str(block): list(kept) for block, kept in mask.kept.items()},
        "swaps": [SWAP],
        "unplaced": [[0, 1]],
        "provenance": {"method": "utility"},
    }


def changed_masks() -> dict[str, bytes]:
    """Masks with one thing changed in each, by what that is."""
    base = good()
    documents: dict[str, Any] = {"nothing": base, "one more": base | {"more": 1}}
    values = (None, [], {}, "x", 1.5, -1, True, 0, 2**63)
    for key in base:
        documents[f"no {key}"] = {name: value for name, value in base.items() if name != key}
        documents |= {f"{key} is {value!r}": base | {key: value} for value in values}
    for key in SWAP:
        without = {name: value for name, value in SWAP.items() if name != key}
        documents[f"a swap without {key}"] = base | {"swaps": [without]}
        documents |= {f"a swap's {key} is {value!r}": base | {"swaps": [SWAP | {key: value}]} for value in values}
    for pair in ([0], [0, 1, 2], [-1, 1], [0, 1.5], None, "ab"):
        documents[f"unplaced {pair}"] = base | {"unplaced": [pair]}
    for name in ("00", "-1", "1.0", "", "a", "\u0663", "4095", "4096", "65536", "1000000"):
        documents[f"layer {name!r}"] = copy.deepcopy(base)
        documents[f"layer {name!r}"]["layers"][name] = list(range(16))
    for experts in ([*range(15), 15.0], [*range(15), True], [*range(15), 14], [*range(15), 40], [-1, *range(15)]):
        documents[f"experts {experts[-2:]}"] = copy.deepcopy(base)
        documents[f"experts {experts[-2:]}"]["layers"]["0"] = experts
    texts = {what: json.dumps(document).encode() for what, document in documents.items()}
    text = texts["nothing"]
    provenance = b'"provenance": {"method": "utility"}'
    assert provenance in text
    for what, value in {
        "NaN": b"NaN",
        "a large number": b"1e999",
        "no UTF-8": b'"\xe4"',
        "half a pair": b'"\\ud800"',
        "a deep list": b"[" * 20_000 + b"]" * 20_000,
    }.items():
        texts[f"{what} in its provenance"] = text.replace(provenance, b'"provenance": {"a": ' + value + b"}")
    return texts | {
        "a byte order mark": b"\xef\xbb\xbf" + text,
        "a comment": b"/* x */" + text,
        "more behind it": text + b"x",
        "a zero byte behind it": text + b"\0",
        "blanks around it": b" \n" + text + b"\n ",
        "a key twice": text.replace(b'"keep": 16', b'"keep": 15, "keep": 16'),
        "another key twice": text.replace(b'"keep": 16', b'"keep": 16, "keep": 15'),
        "nothing at all": b"",
        "half of it": text[: len(text) // 2],
    }


MASKS = changed_masks()


def python_refuses(path: Path, model: coe.MoeModel) -> bool:
    try:
        check_cut(coe.ExpertMask.load(path), model)
    except coe.InputError:
        return True
    return False


@pytest.mark.parametrize("what", MASKS)
def test_masks(tmp_path: Path, profiler: CProfiler, what: str) -> None:
    path = tmp_path / "mask.json"
    path.write_bytes(MASKS[what])
    refused = python_refuses(path, coe.MoeModel(demo.MODEL))
    assert (profiler.library.coe_profiler_load_mask(profiler.pointer, str(path).encode()) != 0) == refused
    if what in ("nothing", "one more", "blanks around it", "no swaps", "no unplaced", "no provenance"):
        assert not refused


def test_what_python_writes_is_accepted(tmp_path: Path, profiler: CProfiler) -> None:
    model = coe.MoeModel(demo.MODEL)
    mask = mask_of(model, 16)
    object.__setattr__(mask, "swaps", (Swap(0, 1, 20, 2, 0.5, 0.1), Swap(0, 2, 21, 3, 1.0, 0.0)))
    object.__setattr__(mask, "unplaced", ((0, 1),))
    mask.save(tmp_path / "mask.json")
    assert not python_refuses(tmp_path / "mask.json", model)
    profiler.mask(tmp_path / "mask.json")


@pytest.mark.parametrize(
    ("family", "sizes", "metadata"),
    [
        ("llama", {}, {}),
        ("llama", {}, {"llama.expert_group_count": 1}),
        ("llama", {"top_k": 1}, {"llama.expert_group_count": 1}),
        ("deepseek2, groups", {}, {}),
        ("bailingmoe2, groups", {}, {}),
        ("llama4", {"n_experts": 160, "n_layers": 2, "n_ff_expert": 32}, {}),
        ("llama4", {"n_experts": 128, "n_layers": 2, "n_ff_expert": 32}, {}),
    ],
)
def test_cuts(tmp_path: Path, family: str, sizes: dict[str, int], metadata: dict[str, Any]) -> None:
    """All numbers of experts, also 128 of llama4's, which llama.cpp takes for another model."""
    path = tmp_path / "model.gguf"
    write_random_model(path, family, extra_metadata=metadata, **sizes)
    model = coe.MoeModel(path)
    profiler = CProfiler(path)
    verdicts = []
    for keep in range(1, model.n_experts + 1):
        mask_of(model, keep).save(tmp_path / "mask.json")
        refused = python_refuses(tmp_path / "mask.json", model)
        status = profiler.library.coe_profiler_load_mask(profiler.pointer, str(tmp_path / "mask.json").encode())
        assert (status != 0) == refused, (keep, profiler.error)
        verdicts.append(refused)
    profiler.close()
    assert not verdicts[-1]
    if family == "llama4" and model.n_experts == 160:
        assert verdicts[127]
        assert not verdicts[126]


def verdicts(path: Path) -> tuple[bool, bool]:
    """Whether C refuses a model, and whether Python does."""
    library = load_c_library()
    pointer = library.coe_profiler_open(str(path).encode())
    if pointer:
        library.coe_profiler_free(pointer)
    try:
        coe.MoeModel(path)
    except coe.InputError:
        return not pointer, True
    return not pointer, False


@pytest.mark.parametrize(
    ("groups", "used"), [(0, 0), (1, 1), (4, 2), (4, 3), (4, 4), (4, 5), (4, 0), (3, 1), (16, 15), (2, 2)]
)
def test_groups(tmp_path: Path, groups: int, used: int) -> None:
    """llama.cpp wants fewer groups used than there are."""
    path = tmp_path / "model.gguf"
    entries = {"llama.expert_group_count": groups, "llama.expert_group_used_count": used}
    write_random_model(path, "llama", extra_metadata=entries)
    expected = groups > 1 and not (16 % groups == 0 and 0 < used < groups)
    assert verdicts(path) == (expected, expected)


@pytest.mark.parametrize("n_blocks", [core.MOST_BLOCKS, core.MOST_BLOCKS + 1, 2**31, 2**32 - 1])
def test_numbers_of_blocks(tmp_path: Path, n_blocks: int) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, "llama", extra_metadata={"llama.block_count": n_blocks})
    expected = n_blocks > core.MOST_BLOCKS
    assert verdicts(path) == (expected, expected)
