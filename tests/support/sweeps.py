"""Sweeps that need no model."""

from __future__ import annotations

from dataclasses import replace

from coe_native.evaluation.perplexity import Evaluation
from coe_native.evaluation.sweep import Sweep, SweepPoint


def make_sweep(losses: dict[int, float]) -> Sweep:
    """Make a sweep of one method with these losses by keep."""
    parent = Evaluation("own", 100, 10.0, 0.1)
    points = tuple(
        SweepPoint(
            "utility",
            keep,
            "d" * 64,
            keep,
            (replace(parent, perplexity=10.0 * (1 + loss), kl_divergence=abs(loss), top1_agreement=0.5),),
        )
        for keep, loss in losses.items()
    )
    return Sweep("m", "0" * 64, 32, 32, (parent,), points)
