"""A report page with hostile names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import coe_native as coe
from coe_native.report.page import report
from support.profiles import make_profile
from support.sweeps import make_sweep

HOSTILE = "</script><script>alert(1)</script><b>x"


def write_page(path: Path) -> Path:
    """Write a page with every picture, about names that try to break it."""
    profile = make_profile(1, n_layers=3, n_experts=16, n_tokens=400)
    hostile = replace(profile, model_name=HOSTILE)
    mask = coe.build_mask(profile, 8, method="utility", structural_rank=1.0, structural_min=1)
    assert mask.swaps
    sweep = make_sweep({4: 0.5, 8: 0.1, 16: 0.0})
    report(
        path,
        {HOSTILE: hostile, "other": profile},
        keep=8,
        masks={HOSTILE: mask, "other": coe.build_mask(profile, 8, method="frequency")},
        sweep=replace(
            sweep, fingerprint=profile.fingerprint, parent=tuple(replace(e, text=HOSTILE) for e in sweep.parent)
        ),
    )
    return path
