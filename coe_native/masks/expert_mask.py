"""ExpertMask: which experts stay. The value and its file."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from coe_native._native import core
from coe_native.errors import InputError
from coe_native.files.atomic import check_target, replacing
from coe_native.files.regular import read_regular
from coe_native.routing.profile import UNKNOWN

FORMAT: str = core.MASK_FORMAT
VERSION: int = core.MASK_VERSION
MOST_BYTES: int = core.MOST_MASK_BYTES
"""Size of the largest file that is read as a mask."""


class Pass(enum.IntEnum):
    """The passes of `build_mask` that swap experts. A mask's file records their numbers."""

    STRUCTURAL = 2
    REASONING = 3


@dataclass(frozen=True)
class Swap:
    """One expert that replaced another.

    Attributes:
        layer: The block index.
        incoming: The expert that came in.
        outgoing: The expert that it replaced.
        stage: The pass.
        incoming_score: Its score; in the reasoning pass, by the reasoning profile.
        outgoing_score: The same for the other one.
    """

    layer: int
    incoming: int
    outgoing: int
    stage: Pass
    incoming_score: float
    outgoing_score: float

    def __post_init__(self) -> None:
        if self.stage not in tuple(Pass):
            raise InputError(f"a swap belongs to pass 2 or 3, not {self.stage}")


@dataclass(frozen=True)
class ExpertMask:
    """Which experts stay in each layer.

    Attributes:
        architecture: The model's architecture; UNKNOWN for a mask that belongs to no model in particular.
        fingerprint: The model's fingerprint (`ModelHeader.fingerprint`), or UNKNOWN.
        n_experts: Experts of a layer.
        keep: Experts that stay in each layer.
        kept: Block index to kept experts, ascending.
        swaps: Experts that passes have exchanged.
        unplaced: Structural experts (block, expert) that no replaceable expert was left for.
        provenance: How the mask was made.
        place: Where it was read from, for messages.

    Raises:
        InputError: No model can have such a mask.
    """

    architecture: str
    fingerprint: str
    n_experts: int
    keep: int
    kept: Mapping[int, tuple[int, ...]]
    swaps: tuple[Swap, ...] = ()
    unplaced: tuple[tuple[int, int], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="the mask", compare=False)

    def __post_init__(self) -> None:
        try:
            self.native.check()
        except TypeError as error:
            raise InputError("a mask's blocks, experts and their numbers must be those of a model") from error
        except ValueError as error:
            raise InputError(str(error)) from error

    @property
    def native(self) -> core.Mask:
        """Return the mask as the C++ core has it."""
        return core.Mask(self.architecture, self.fingerprint, self.n_experts, self.keep, dict(self.kept))

    @property
    def is_tied(self) -> bool:
        """Return whether it belongs to one model. Masks imported from other tools may not."""
        return self.fingerprint != UNKNOWN

    @property
    def digest(self) -> str:
        """Return the SHA-256 digest (hex) of what the mask keeps: see docs/formats.md."""
        kept = {str(block): list(experts) for block, experts in sorted(self.kept.items())}
        content = [self.architecture, self.n_experts, self.keep, kept]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def dropped(self, block: int) -> list[int]:
        """Return the dropped experts of a block, ascending."""
        return sorted(set(range(self.n_experts)) - set(self.kept[block]))

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Write the mask as JSON, whole or not at all.

        Raises:
            InputError: `path` cannot be an output, or exists and `force` is false.
            CoeError: The system cannot write it.
        """
        path = Path(path)
        check_target(path, force=force)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.architecture,
            "fingerprint": self.fingerprint,
            "expert_count": self.n_experts,
            "keep": self.keep,
            "layers": {str(block): list(experts) for block, experts in sorted(self.kept.items())},
            "swaps": self.swaps,
            "unplaced": self.unplaced,
            "provenance": dict(self.provenance),
        }
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> ExpertMask:
        """Read a mask's file.

        Raises:
            InputError: It is not a mask, of a newer version, or damaged.
        """
        path = Path(path)
        try:
            data = read_regular(path, MOST_BYTES)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, place: str = "the mask") -> ExpertMask:
        """Return the mask in a file's bytes. Raises as `load`; messages begin with `place`."""
        try:
            file = core.parse_mask(data)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from error
        mask = file.mask
        return cls(
            architecture=mask.architecture,
            fingerprint=mask.fingerprint,
            n_experts=mask.n_experts,
            keep=mask.keep,
            kept={block: tuple(experts) for block, experts in mask.kept.items()},
            swaps=tuple(
                Swap(layer, incoming, outgoing, Pass(stage), incoming_score, outgoing_score)
                for layer, incoming, outgoing, stage, incoming_score, outgoing_score in file.swaps
            ),
            unplaced=tuple(file.unplaced),
            provenance=json.loads(file.provenance),
            place=place,
        )
