"""How a model's routers choose, and how many experts of a layer may be dropped."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from coe_native._native import core
from coe_native.errors import InputError


@dataclass(frozen=True)
class RouterShape:
    """The numbers that describe a router's choice.

    For each token, the router chooses the best `top_k` of `n_experts`. With more than one group (DeepSeek-V3),
    experts lie in groups of neighbours, and only those of the best `n_groups_used` groups are candidates.

    Attributes:
        n_experts: Routed experts of a layer.
        top_k: Experts chosen for a token; the largest number where layers differ.
        n_groups: Groups of experts.
        n_groups_used: Groups from which experts are chosen for a token.
    """

    n_experts: int
    top_k: int
    n_groups: int = 1
    n_groups_used: int = 1

    @property
    def group_size(self) -> int:
        """Return the number of experts of a group."""
        return self.n_experts // self.n_groups

    @property
    def half(self) -> int:
        """Return half the number of experts, rounded down to a multiple of the groups."""
        return self.n_experts // 2 // self.n_groups * self.n_groups

    def groups(self) -> list[range]:
        """Return the experts of each group."""
        return [range(start, start + self.group_size) for start in range(0, self.n_experts, self.group_size)]

    def check_keep(self, keep: int) -> None:
        """Check that llama.cpp can run `keep` experts a layer.

        Raises:
            InputError: It cannot; says which numbers are possible.
        """
        try:
            core.RouterShape(*astuple(self)).check_keep(keep)
        except TypeError as error:  # beyond 64 bits
            raise InputError(f"keep must be at most {self.n_experts}, not {keep}") from error
        except ValueError as error:
            raise InputError(str(error)) from error

    def best(self, scores: NDArray[np.float64], keep: int) -> list[int]:
        """Return the `keep` experts with the highest scores, the same number in each group, ascending.

        Ties go to the lower index.
        """
        in_group = keep // self.n_groups
        best = [
            expert
            for group in self.groups()
            for expert in group.start + np.argsort(-scores[group.start : group.stop], kind="stable")[:in_group]
        ]
        return sorted(map(int, best))
