"""ExpertMask, and the three passes that make one from a profile."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from coe_native.errors import InputError
from coe_native.files import typed_json
from coe_native.model.limits import MOST_BLOCKS, MOST_EXPERTS
from coe_native.routing.profile import UNKNOWN

FORMAT = "coe-native.expert-mask"
VERSION = 1

MOST_BYTES = 16 << 20
"""Of a mask's file: that of 256 layers with 4096 experts has some 6 MB."""

_KIND = typed_json.Kind(FORMAT, VERSION, MOST_BYTES, "mask", "make one with `coe-native mask`")


@dataclass(frozen=True)
class Swap:
    """One expert that came in for another: its block, the pass (2: structural, 3: reasoning) and the scores
    that decided. In pass 2 both are domain scores; in pass 3 both are reasoning scores."""

    layer: int
    incoming: int
    outgoing: int
    stage: int
    incoming_score: float
    outgoing_score: float


@dataclass(frozen=True)
class ExpertMask:
    """Which experts stay: `kept` maps a block index to the kept experts, ascending, `keep` of `n_experts` in
    every block. `unplaced` lists structural experts (block, expert) for whom nobody was left to replace."""

    architecture: str
    fingerprint: str
    n_experts: int
    keep: int
    kept: Mapping[int, tuple[int, ...]]
    swaps: tuple[Swap, ...] = ()
    unplaced: tuple[tuple[int, int], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="the mask", compare=False)
    """Where it was read from, for messages about it."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= self.n_experts <= MOST_EXPERTS or not self.kept:
            raise InputError(f"a mask cannot keep {self.keep} of {self.n_experts} experts")
        if any(swap.stage not in (2, 3) for swap in self.swaps):
            raise InputError("a mask's swaps are of the second pass or the third")
        for block, experts in self.kept.items():
            if list(experts) != sorted(set(experts)) or len(experts) != self.keep:
                raise InputError(f"a mask must keep {self.keep} different experts in block {block}, ascending")
            if experts[0] < 0 or experts[-1] >= self.n_experts:
                raise InputError(f"a mask keeps an expert outside 0 to {self.n_experts - 1} in block {block}")

    @property
    def is_tied(self) -> bool:
        """Whether it says of which model it is. What other tools have made may not."""
        return self.fingerprint != UNKNOWN

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what the mask keeps, whatever its history."""
        kept = {str(block): list(experts) for block, experts in sorted(self.kept.items())}
        content = [self.architecture, self.n_experts, self.keep, kept]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def dropped(self, block: int) -> list[int]:
        """The experts of a block that go, ascending."""
        return sorted(set(range(self.n_experts)) - set(self.kept[block]))

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Writes the mask as JSON, whole or not at all."""
        from coe_native.files.atomic import check_target, replacing

        path = Path(path)
        check_target(path, force=force)
        document = _Document(
            architecture=self.architecture,
            fingerprint=self.fingerprint,
            expert_count=self.n_experts,
            keep=self.keep,
            layers={str(block): tuple(experts) for block, experts in sorted(self.kept.items())},
            swaps=self.swaps,
            unplaced=self.unplaced,
            provenance=dict(self.provenance),
        )
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> ExpertMask:
        """Reads a mask back. Raises InputError for another kind of file, a newer version, or damage."""
        path = Path(path)
        return cls._decoded(_KIND.read(path), str(path))

    @classmethod
    def parse(cls, data: bytes, place: str = "the mask") -> ExpertMask:
        """The same from a file's bytes, which came from `place`."""
        if len(data) > MOST_BYTES:
            raise InputError(f"{place}: is of no mask's size")
        _KIND.check(data, place)
        return cls._decoded(data, place)

    @classmethod
    def _decoded(cls, data: bytes, place: str) -> ExpertMask:
        try:
            document = typed_json.decode(data, _Document)
            return cls(
                document.architecture,
                document.fingerprint,
                document.expert_count,
                document.keep,
                {_block(block): experts for block, experts in document.layers.items()},
                document.swaps,
                document.unplaced,
                document.provenance,
                place,
            )
        except InputError as error:
            raise InputError(f"{place}: is a damaged mask ({error}); make it again") from error


class _Document(msgspec.Struct, kw_only=True):
    """A mask file, by the public interface."""

    format: str = FORMAT
    version: int = VERSION
    architecture: str
    fingerprint: str
    expert_count: int
    keep: int
    layers: dict[str, tuple[int, ...]]
    swaps: tuple[Swap, ...] = ()
    unplaced: tuple[tuple[int, int], ...] = ()
    provenance: dict[str, Any] = {}


def _block(text: str) -> int:
    if not re.fullmatch(r"0|[1-9]\d{0,8}", text, re.ASCII) or int(text) >= MOST_BLOCKS:
        raise InputError(f"{text!r} is no block index")
    return int(text)
