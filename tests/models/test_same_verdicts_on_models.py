"""The C library and Python accept the same models and cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.bare_host import CProfiler, load_c_library
from support.random_models import write_random_model
from support.verdicts import first_experts, python_refuses

import coe_native as coe
from coe_native._native import core


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
def test_c_and_python_accept_the_same_cuts(
    tmp_path: Path, family: str, sizes: dict[str, int], metadata: dict[str, Any]
) -> None:
    """All numbers of experts, also 128 of llama4's, which llama.cpp takes for another model."""
    path = tmp_path / "model.gguf"
    write_random_model(path, family, extra_metadata=metadata, **sizes)
    model = coe.MoeModel(path)
    profiler = CProfiler(path)
    verdicts = []
    for keep in range(1, model.n_experts + 1):
        first_experts(model, keep).save(tmp_path / "mask.json")
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
def test_c_and_python_accept_the_same_groups(tmp_path: Path, groups: int, used: int) -> None:
    """llama.cpp wants fewer groups used than there are."""
    path = tmp_path / "model.gguf"
    entries = {"llama.expert_group_count": groups, "llama.expert_group_used_count": used}
    write_random_model(path, "llama", extra_metadata=entries)
    expected = groups > 1 and not (16 % groups == 0 and 0 < used < groups)
    assert verdicts(path) == (expected, expected)


@pytest.mark.parametrize("n_blocks", [core.MOST_BLOCKS, core.MOST_BLOCKS + 1, 2**31, 2**32 - 1])
def test_c_and_python_accept_the_same_numbers_of_blocks(tmp_path: Path, n_blocks: int) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, "llama", extra_metadata={"llama.block_count": n_blocks})
    expected = n_blocks > core.MOST_BLOCKS
    assert verdicts(path) == (expected, expected)
