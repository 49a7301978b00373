"""The public names of the package."""

from __future__ import annotations

import coe_native as coe


def test_public_names_are_those_of_the_interface() -> None:
    assert set(coe.__all__) == {
        "METHODS",
        "STATS",
        "Agreement",
        "Capture",
        "Check",
        "CoeError",
        "Corpus",
        "Evaluation",
        "ExpertMask",
        "Fit",
        "InputError",
        "MaskOptions",
        "Memory",
        "Model",
        "ModelOptions",
        "MoeModel",
        "OutputNorms",
        "Overlap",
        "PassOptions",
        "Placement",
        "RoutingProfile",
        "Shard",
        "Stability",
        "Sweep",
        "SweepPoint",
        "__version__",
        "attach",
        "build_mask",
        "compare",
        "evaluate",
        "evaluate_masks",
        "fit",
        "largest_keep_that_fits",
        "memory_of",
        "merge",
        "profile",
        "profile_corpora",
        "prune",
        "read_corpus",
        "score",
        "sweep",
        "verify",
        "zero",
        "zero_in_place",
    }
    assert all(getattr(coe, name) is not None for name in coe.__all__)
