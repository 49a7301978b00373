"""coe-native: domain specialists from quantised mixture-of-experts GGUFs.

Profile which experts a kind of text needs, mask the others, write a smaller model, verify and judge it. See
the README for the command line; every public function's docstring gives shapes, units, errors and sources.

Nothing is imported until it is used, so that ``coe-native --help`` does not wait for llama.cpp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from coe_native.comparison import Overlap, compare
    from coe_native.corpus import Corpus, Shard, read_corpus
    from coe_native.errors import CoeError, InputError
    from coe_native.evaluation import Evaluation, evaluate, evaluate_masks
    from coe_native.fitting import Fit, Memory, Placement, fit, memory_of
    from coe_native.live import Capture, attach
    from coe_native.masking import ExpertMask, build_mask
    from coe_native.moe_model import MoeModel
    from coe_native.profiler import profile, profile_corpora
    from coe_native.routing_profile import STATS, OutputNorms, RoutingProfile, merge
    from coe_native.runtime import Model
    from coe_native.scoring import METHODS, score
    from coe_native.stability import Agreement, Stability
    from coe_native.surgery import prune, zero, zero_in_place
    from coe_native.sweeping import Sweep, SweepPoint, sweep
    from coe_native.verification import Check, verify

_HOME = {
    "Overlap": "comparison",
    "compare": "comparison",
    "Corpus": "corpus",
    "Shard": "corpus",
    "read_corpus": "corpus",
    "CoeError": "errors",
    "InputError": "errors",
    "Evaluation": "evaluation",
    "evaluate": "evaluation",
    "evaluate_masks": "evaluation",
    "Fit": "fitting",
    "Memory": "fitting",
    "Placement": "fitting",
    "fit": "fitting",
    "memory_of": "fitting",
    "Capture": "live",
    "attach": "live",
    "ExpertMask": "masking",
    "build_mask": "masking",
    "MoeModel": "moe_model",
    "STATS": "routing_profile",
    "OutputNorms": "routing_profile",
    "RoutingProfile": "routing_profile",
    "merge": "routing_profile",
    "profile": "profiler",
    "profile_corpora": "profiler",
    "Model": "runtime",
    "METHODS": "scoring",
    "score": "scoring",
    "Agreement": "stability",
    "Stability": "stability",
    "prune": "surgery",
    "zero": "surgery",
    "zero_in_place": "surgery",
    "Sweep": "sweeping",
    "SweepPoint": "sweeping",
    "sweep": "sweeping",
    "Check": "verification",
    "verify": "verification",
}

__all__ = [
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
    "Memory",
    "Model",
    "MoeModel",
    "OutputNorms",
    "Overlap",
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
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"coe_native.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'coe_native' has no attribute {name!r}")
