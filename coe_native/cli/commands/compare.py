"""The command ``coe-native compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.command import Command
from coe_native.cli.options import json_option, load_profile, method_option
from coe_native.cli.output import print_json, print_table
from coe_native.cli.types import FILE

if TYPE_CHECKING:
    from coe_native.masks.expert_mask import ExpertMask


@click.command(name="compare", cls=Command)
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--keep", type=int, help="Experts that the masks of profiles keep; half if not given.")
@method_option
@json_option
def command(first: Path, second: Path, keep: int | None, method: str, as_json: bool) -> None:
    """Show how far two masks, or the masks of two profiles, overlap in each layer, compared with chance."""
    from coe_native.masks.overlap import compare

    overlaps = compare(_load(first, keep, method), _load(second, keep, method))
    shared = sum(overlap.shared for overlap in overlaps)
    chance = sum(overlap.by_chance for overlap in overlaps)
    jaccard = sum(overlap.jaccard for overlap in overlaps) / len(overlaps)
    if as_json:
        print_json(
            {
                "layers": [
                    {"layer": o.layer, "shared": o.shared, "by_chance": o.by_chance, "jaccard": o.jaccard}
                    for o in overlaps
                ],
                "shared": shared,
                "by_chance": chance,
                "mean_jaccard": jaccard,
            }
        )
        return
    rows = [
        [
            str(o.layer),
            str(o.shared),
            f"{o.by_chance:.1f}",
            f"{o.shared - o.by_chance:+.1f}",
            f"{o.jaccard:.2f}",
        ]
        for o in overlaps
    ]
    rows.append(["all", str(shared), f"{chance:.1f}", f"{shared - chance:+.1f}", f"{jaccard:.2f}"])
    print_table("", ["layer", "shared experts", "by chance", "above chance", "Jaccard"], rows)


def _load(path: Path, keep: int | None, method: str) -> ExpertMask:
    from coe_native.masks.build import build_mask
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.model.gguf_file import begins_like_gguf

    if not begins_like_gguf(path):
        return ExpertMask.load(path)
    profile = load_profile(path)
    mask = build_mask(profile, profile.router_shape.half if keep is None else keep, method=method)
    return replace(mask, place=str(path))
