"""How a model's routers choose, and so how many experts of a layer may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError


@dataclass(frozen=True)
class RouterShape:
    """Each token gets the best `top_k` of `n_experts`. With `n_groups` above 1 (DeepSeek-V3), experts lie in
    groups of neighbours, and only those of the best `n_groups_used` groups are candidates."""

    n_experts: int
    top_k: int
    n_groups: int = 1
    n_groups_used: int = 1

    @property
    def group_size(self) -> int:
        return self.n_experts // self.n_groups

    @property
    def half(self) -> int:
        """Half the experts, as many in each group."""
        return self.n_experts // 2 // self.n_groups * self.n_groups

    def groups(self) -> list[range]:
        """The experts of each group."""
        return [range(start, start + self.group_size) for start in range(0, self.n_experts, self.group_size)]

    def check_keep(self, keep: int) -> None:
        """Raises InputError, saying what is possible, unless llama.cpp can run `keep` experts a layer."""
        if self.n_groups == 1:
            if not self.top_k <= keep <= self.n_experts:
                raise InputError(
                    f"keep must be from {self.top_k} (experts that a token needs) to {self.n_experts}, not {keep}"
                )
            return
        # llama.cpp scores a group by its two best experts, and cuts all groups at one size.
        in_group = max(2, -(-self.top_k // self.n_groups_used))
        least = in_group * self.n_groups
        if keep % self.n_groups or not least <= keep <= self.n_experts:
            raise InputError(
                f"keep must be a multiple of {self.n_groups}, the groups of experts, from {least} (a group needs "
                f"{in_group}) to {self.n_experts}, not {keep}"
            )

    def is_even(self, kept: Sequence[int]) -> bool:
        """Whether every group keeps the same number of experts."""
        return len(set(np.bincount(np.asarray(kept) // self.group_size, minlength=self.n_groups))) == 1

    def best(self, scores: NDArray[np.float64], keep: int) -> list[int]:
        """The `keep` experts of the highest scores, as many in each group; ties go to the lower index."""
        in_group = keep // self.n_groups
        best = [
            expert
            for group in self.groups()
            for expert in group.start + np.argsort(-scores[group.start : group.stop], kind="stable")[:in_group]
        ]
        return sorted(map(int, best))
