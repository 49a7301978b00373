"""Compare two masks, layer by layer, with the overlap that is expected by chance."""

from __future__ import annotations

from dataclasses import dataclass

from coe_native.errors import InputError
from coe_native.masks.expert_mask import ExpertMask


@dataclass(frozen=True)
class Overlap:
    """The overlap of two masks in one layer.

    Attributes:
        layer: The block.
        shared: Experts that both masks keep.
        union: Experts that at least one mask keeps.
        by_chance: Experts that two random masks would share on average.
    """

    layer: int
    shared: int
    union: int
    by_chance: float

    @property
    def jaccard(self) -> float:
        """Return the Jaccard index: shared experts, by experts that at least one mask keeps."""
        return self.shared / self.union


def compare(first: ExpertMask, second: ExpertMask) -> list[Overlap]:
    """Return the overlaps of two masks of one model, by block.

    Two random masks that keep a and b of n experts share ``a * b / n`` on average (the mean of the
    hypergeometric distribution).

    Raises:
        InputError: The masks are of different models.
    """
    for what, ours, theirs in (
        ("architecture", first.architecture, second.architecture),
        ("number of experts", first.n_experts, second.n_experts),
        ("list of MoE layers", sorted(first.kept), sorted(second.kept)),
        ("router weights", first.fingerprint, second.fingerprint),
    ):
        if ours != theirs:
            raise InputError(
                f"{second.place}: is of another model than {first.place} (different {what}); "
                "compare masks of one model"
            )
    return [
        Overlap(
            layer=block,
            shared=len(set(first.kept[block]) & set(second.kept[block])),
            union=len(set(first.kept[block]) | set(second.kept[block])),
            by_chance=first.keep * second.keep / first.n_experts,
        )
        for block in sorted(first.kept)
    ]
