"""The options by which a mask is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from coe_native.errors import InputError
from coe_native.masks.published import PUBLISHED
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import COMBINATIONS, default_method, needs_outputs


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """How domains are combined, and which passes follow the choice by score.

    Attributes:
        combine: How the scores of several domains become one: ``sum`` or ``max`` of their shares.
        weights: What each domain's shares are multiplied with before; empty: 1 for all.
        structural: Keep structural experts (the second pass); None: with methods that score by choices alone,
            which it improves (benchmarks/quality.py has the figures).
        structural_rank: Structural experts have a mean rank below this; 0 is always the first choice.
        structural_min: Structural experts were chosen at least this often.
        reasoning: The profile of reasoning text, for the third pass; None: no such pass.
        reasoning_swaps: Largest number of swaps in a layer in that pass.

    Raises:
        InputError: A value is out of range.
    """

    combine: str = "sum"
    weights: tuple[float, ...] = ()
    structural: bool | None = None
    structural_rank: float = 2.0
    structural_min: int = 10
    reasoning: RoutingProfile | None = None
    reasoning_swaps: int = 3

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise InputError(f"domains are combined by {' or '.join(COMBINATIONS)}, not by {self.combine!r}")
        if not all(0 <= weight < float("inf") for weight in self.weights) or (
            self.weights and not any(self.weights)
        ):
            raise InputError("the weights of domains must be 0 or more, and not all 0")
        if not 0 <= self.structural_rank < float("inf"):
            raise InputError(f"the structural rank must be 0 or more, not {self.structural_rank}")


@dataclass(frozen=True, kw_only=True)
class MaskOptions(PassOptions):
    """Everything that `build_mask` needs beside the profiles.

    Attributes:
        keep: Experts to keep in each layer.
        method: How experts are scored: one of METHODS; None: `default_method`.
    """

    keep: int
    method: str | None = None

    def for_profiles(self, profiles: Iterable[RoutingProfile]) -> MaskOptions:
        """Return the options with what is None replaced by the default for profiles."""
        reasoning = [] if self.reasoning is None else [self.reasoning]
        method = self.method or default_method([*profiles, *reasoning])
        structural = not needs_outputs(method) if self.structural is None else self.structural
        return replace(self, method=method, structural=structural)

    @property
    def is_published(self) -> bool:
        """Return whether these are the options of the published recipe."""
        compared = set(PUBLISHED) - (set() if self.reasoning else {"reasoning_swaps"})
        return all(getattr(self, name) == PUBLISHED[name] for name in compared)

    def recorded(self) -> Mapping[str, Any]:
        """Return the options that a checkpoint compares: `keep`, `method`, and others that differ from these.

        The defaults are those of version 0.1.0, whose checkpoints have nothing else.
        """
        usual = {option.name: option.default for option in fields(PassOptions)} | {"structural": True}
        changed = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        changed.pop("reasoning", None)
        return {"keep": self.keep, "method": self.method, **changed}
