"""The experts and routers of a Hugging Face checkpoint, by names and shapes."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coe_native.errors import InputError, printable
from coe_native.model.hf_checkpoint import HfCheckpoint, HfTensor

_LAYER = re.compile(r"(?P<prefix>(?:.*\.)?(?:layers|blocks|h)\.)(?P<index>0|[1-9][0-9]{0,5})\.(?P<rest>.+)")
_NUMBERED = re.compile(r"(?P<module>(?:.*\.)?)experts\.(?P<expert>0|[1-9][0-9]{0,5})\.(?P<rest>.+)")
_STACKED = re.compile(r"(?P<module>(?:.*\.)?)(?:experts|switch_mlp)\.(?P<rest>.+)")
_ROUTER = re.compile(r"(?:^|\.)(?:gate|router|[a-z_]*router)\.")
_OF_EXPERTS = re.compile(r"expert|router|score_correction|(?:^|\.)gate\.")
_SHARED = re.compile("shared")

FLOATS = ("BF16", "F16", "F32")
"""Types whose values are numbers by themselves. Others need scales."""


@dataclass(frozen=True)
class HfMoeLayer:
    """A layer with experts.

    Attributes:
        index: Its number, which the GGUF's block has too. Layers that predict further tokens come last.
        router: The name of the router's matrix, [n_experts, n_embd].
        stacked: Names of all tensors whose first dimension is the expert, the router among them. Dimensions
            of 1 may come before it.
        numbered: Expert of each tensor that belongs to one, by name.
    """

    index: int
    router: str
    stacked: tuple[str, ...]
    numbered: Mapping[str, int]


def find_moe_layers(checkpoint: HfCheckpoint) -> list[HfMoeLayer]:
    """Return the layers with experts, in order.

    Raises:
        InputError: There are none, or a tensor may or may not have a dimension of experts; names it.
    """
    groups: dict[tuple[str, int], dict[str, HfTensor]] = defaultdict(dict)
    for name, tensor in checkpoint.tensors.items():
        if match := _LAYER.fullmatch(name):
            groups[match["prefix"], int(match["index"])][match["rest"]] = tensor
    layers = []
    for (prefix, number), tensors in groups.items():
        extra = checkpoint.n_layers if re.search(r"(?:^|\.)mtp\.", prefix) else 0
        found = _Layer(checkpoint, f"{prefix}{number}.", tensors).find(number + extra)
        if found is not None:
            layers.append(found)
    layers.sort(key=lambda layer: layer.index)
    _check_all_found(checkpoint, layers)
    for before, after in itertools.pairwise(layers):
        if before.index == after.index:
            raise InputError(
                f"{checkpoint.path}: has two layers {after.index}: {before.router} and {after.router}"
            )
    if not layers:
        raise InputError(f"{checkpoint.path}: no layer has experts whose tensors could be recognised")
    return layers


def _check_all_found(checkpoint: HfCheckpoint, layers: Sequence[HfMoeLayer]) -> None:
    """Check that no other tensor belongs to experts, or holds their numbers as DeepSeek V4's `tid2eid` does."""
    found = {name for layer in layers for name in (*layer.stacked, *layer.numbered)}
    for name, tensor in checkpoint.tensors.items():
        if name in found or math.prod(tensor.shape) == 1:
            continue
        parts = [part for part in name.split(".") if not _SHARED.search(part)]
        of_experts = any(re.search("expert|switch_mlp|score_correction", part) for part in parts)
        holds_numbers = tensor.stored.dtype[0] in "IU" and _OF_EXPERTS.search(".".join(parts))
        if of_experts or holds_numbers:
            raise InputError(
                f"{checkpoint.path}: cannot be pruned because of {printable(name, 200)}, which may belong to "
                "experts or hold their numbers"
            )


class _Layer:
    """The tensors of one layer, by their names in it."""

    def __init__(self, checkpoint: HfCheckpoint, prefix: str, tensors: Mapping[str, HfTensor]) -> None:
        self._where = checkpoint.path
        self._n_experts = checkpoint.n_experts
        self._prefix = prefix
        self._tensors = tensors

    def find(self, index: int) -> HfMoeLayer | None:
        """Return the layer's experts; None: it has none."""
        numbered: dict[str, int] = {}
        stacked: list[str] = []
        modules: set[str] = set()
        for name in self._tensors:
            if _SHARED.search(name):
                continue
            if match := _NUMBERED.fullmatch(name):
                numbered[name] = int(match["expert"])
                modules.add(match["module"])
            elif (match := _STACKED.fullmatch(name)) or self._is_stack(name):
                if self._has_experts(name):
                    stacked.append(name)
                modules.add(match["module"] if match else name.split(".")[0] + ".")
        if not modules:
            return None
        if len(modules) > 1:
            raise self._refusal(sorted(modules)[0], f"there are also experts in {sorted(modules)[1]}")
        self._check_numbers(numbered)
        module = modules.pop()
        routers, others = self._beside(module, {*numbered, *stacked})
        if len(routers) != 1:
            named = printable(", ".join(self._prefix + name for name in routers), 300) if routers else "none"
            raise InputError(f"{self._where}: the router of {self._prefix}{module}experts is not clear: {named}")
        self._check_beside(routers[0], others)
        return HfMoeLayer(
            index=index,
            router=self._prefix + routers[0],
            stacked=tuple(self._prefix + name for name in (*stacked, *routers, *others)),
            numbered={self._prefix + name: expert for name, expert in numbered.items()},
        )

    def _is_stack(self, name: str) -> bool:
        shape = self._tensors[name].shape
        return len(shape) >= 3 and shape[0] == self._n_experts and "conv" not in name and "attn" not in name

    def _has_experts(self, name: str) -> bool:
        """Return whether a tensor of all experts has a dimension for them: one value for all has none."""
        shape = self._tensors[name].shape
        if shape and shape[0] == self._n_experts:
            return True
        if math.prod(shape) == 1:
            return False
        raise self._refusal(name, f"its first dimension is not that of the {self._n_experts} experts")

    def _check_numbers(self, numbered: Mapping[str, int]) -> None:
        found: dict[str, set[int]] = defaultdict(set)
        for name, expert in numbered.items():
            found[_without_number(name)].add(expert)
        for name, experts in found.items():
            missing = sorted(set(range(self._n_experts)) ^ experts)
            if missing:
                raise self._refusal(
                    name, f"expert {missing[0]} is missing, or is not among the {self._n_experts} of the config"
                )

    def _beside(self, module: str, taken: set[str]) -> tuple[list[str], list[str]]:
        """Return the router's matrix, and other tensors with a number for each expert, such as biases."""
        routers: list[str] = []
        others: list[str] = []
        for name, tensor in self._tensors.items():
            if name in taken or not name.startswith(module) or _SHARED.search(name):
                continue
            rest = name[len(module) :]
            if self._n_experts not in tensor.shape:
                continue
            if without_ones(tensor.shape)[0] != self._n_experts:
                if module and _OF_EXPERTS.search(rest):
                    raise self._refusal(name, "its first dimension is not that of the experts, but another may be")
                continue
            if not _OF_EXPERTS.search(rest):
                if module:
                    raise self._refusal(name, "it may or may not have a dimension of experts")
                continue
            is_router = len(tensor.shape) == 2 and rest.endswith("weight") and _ROUTER.search(rest)
            (routers if is_router else others).append(name)
        return routers, others

    def _check_beside(self, router: str, others: Sequence[str]) -> None:
        """Check that what is beside a router can be cut with it."""
        tensor = self._tensors[router]
        if tensor.stored.dtype in FLOATS:
            for name in others:
                # Gemma 4 has a number for each value of the hidden state there, and one for each expert.
                if tensor.shape[1] == self._n_experts and not re.search("expert|bias|_score", name):
                    raise self._refusal(name, "the model is as wide as it has experts")
            return
        for name, beside in self._tensors.items():
            is_scale = name.startswith(router.removesuffix("weight")) and name not in (router, *others)
            if is_scale and math.prod(beside.shape) != 1:
                raise self._refusal(name, "it belongs to a quantised router, but has no number for each expert")

    def _refusal(self, name: str, why: str) -> InputError:
        return InputError(
            f"{self._where}: cannot be pruned because of {printable(self._prefix + name, 200)}: {why}"
        )


def without_ones(shape: Sequence[int]) -> Sequence[int]:
    """Return a shape without the dimensions of 1 that it begins with."""
    return shape[next((at for at, size in enumerate(shape) if size != 1), len(shape)) :]


def _without_number(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return f"{match['module']}experts.*.{match['rest']}"


def renumbered(name: str, expert: int) -> str:
    """Return the name that a tensor of one expert has if that expert gets another number."""
    match = _LAYER.fullmatch(name)
    assert match is not None
    start = match.start("rest")
    within = _NUMBERED.fullmatch(match["rest"])
    assert within is not None
    return f"{name[: start + within.start('expert')]}{expert}{name[start + within.end('expert') :]}"


def kept_ranges(kept: Sequence[int]) -> list[range]:
    """Return neighbouring experts as ranges."""
    ranges: list[range] = []
    for expert in kept:
        if ranges and ranges[-1].stop == expert:
            ranges[-1] = range(ranges[-1].start, expert + 1)
        else:
            ranges.append(range(expert, expert + 1))
    return ranges
