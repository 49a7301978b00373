"""Overlap of two masks, layer by layer, beside the overlap that chance would give."""

from __future__ import annotations

from dataclasses import dataclass

from coe_native.errors import InputError
from coe_native.masks.expert_mask import ExpertMask


@dataclass(frozen=True)
class Overlap:
    """One block: experts that both masks keep, those that either keeps, and how many chance would share."""

    layer: int
    shared: int
    union: int
    by_chance: float

    @property
    def jaccard(self) -> float:
        return self.shared / self.union


def compare(first: ExpertMask, second: ExpertMask) -> list[Overlap]:
    """Overlaps of two masks of one model, by block.

    Two random masks that keep a and b of n experts share ``a * b / n`` on average (the mean of the
    hypergeometric distribution). Raises InputError for masks of different models.
    """
    for what, ours, theirs in (
        ("architecture", first.architecture, second.architecture),
        ("number of experts", first.n_experts, second.n_experts),
        ("list of MoE layers", sorted(first.kept), sorted(second.kept)),
        ("router weights", first.fingerprint, second.fingerprint),
    ):
        if ours != theirs:
            raise InputError(
                f"{second.place}: is of another model than {first.place}: not the same {what}; "
                "only masks of one model can be compared"
            )
    return [
        Overlap(
            block,
            len(set(first.kept[block]) & set(second.kept[block])),
            len(set(first.kept[block]) | set(second.kept[block])),
            first.keep * second.keep / first.n_experts,
        )
        for block in sorted(first.kept)
    ]
