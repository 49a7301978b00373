"""The C library and Python accept the same masks, models and profiles, and refuse the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.bare_host import CProfiler
from support.verdicts import first_experts, python_refuses

import coe_native as coe
from coe_native.masks.expert_mask import Swap
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]
SWAP = {"layer": 0, "incoming": 1, "outgoing": 20, "stage": 2, "incoming_score": 0.5, "outgoing_score": 0.1}


@pytest.fixture(scope="module")
def profiler() -> Iterator[CProfiler]:
    opened = CProfiler(demo.MODEL)
    yield opened
    opened.close()


def good() -> dict[str, Any]:
    model = coe.MoeModel(demo.MODEL)
    mask = first_experts(model, 16)
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


@pytest.mark.parametrize("what", MASKS)
def test_c_and_python_accept_the_same_masks(tmp_path: Path, profiler: CProfiler, what: str) -> None:
    path = tmp_path / "mask.json"
    path.write_bytes(MASKS[what])
    refused = python_refuses(path, coe.MoeModel(demo.MODEL))
    assert (profiler.library.coe_profiler_load_mask(profiler.pointer, str(path).encode()) != 0) == refused
    if what in ("nothing", "one more", "blanks around it", "no swaps", "no unplaced", "no provenance"):
        assert not refused


def test_masks_written_by_python_are_accepted_by_c(tmp_path: Path, profiler: CProfiler) -> None:
    model = coe.MoeModel(demo.MODEL)
    mask = first_experts(model, 16)
    mask = replace(mask, swaps=(Swap(0, 1, 20, 2, 0.5, 0.1), Swap(0, 2, 21, 3, 1.0, 0.0)))
    mask = replace(mask, unplaced=((0, 1),))
    mask.save(tmp_path / "mask.json")
    assert not python_refuses(tmp_path / "mask.json", model)
    profiler.mask(tmp_path / "mask.json")
