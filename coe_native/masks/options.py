"""The options by which a mask is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from coe_native.errors import InputError
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import COMBINATIONS, DEFAULT_METHOD


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """How domains are combined, and which passes follow the choice by score.

    Attributes:
        combine: How the scores of several domains become one: ``sum`` or ``max`` of their shares.
        structural: Keep structural experts (the second pass).
        structural_rank: Structural experts have a mean rank below this; 0 is always the first choice.
        structural_min: Structural experts were chosen at least this often.
        reasoning: The profile of reasoning text, for the third pass; None: no such pass.
        reasoning_swaps: Largest number of swaps in a layer in that pass.

    Raises:
        InputError: A value is out of range.
    """

    combine: str = "sum"
    structural: bool = True
    structural_rank: float = 2.0
    structural_min: int = 10
    reasoning: RoutingProfile | None = None
    reasoning_swaps: int = 3

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise InputError(f"domains are combined by {' or '.join(COMBINATIONS)}, not by {self.combine!r}")
        if not 0 <= self.structural_rank < float("inf"):
            raise InputError(f"the structural rank must be 0 or more, not {self.structural_rank}")


@dataclass(frozen=True, kw_only=True)
class MaskOptions(PassOptions):
    """Everything that `build_mask` needs beside the profiles.

    Attributes:
        keep: Experts to keep in each layer.
        method: How experts are scored: one of METHODS.
    """

    keep: int
    method: str = DEFAULT_METHOD

    def recorded(self) -> Mapping[str, Any]:
        """Return the options that a checkpoint compares: `keep`, `method`, and others that are not the default."""
        changed = {
            option.name: getattr(self, option.name)
            for option in fields(PassOptions)
            if option.name != "reasoning" and getattr(self, option.name) != option.default
        }
        return {"keep": self.keep, "method": self.method, **changed}
