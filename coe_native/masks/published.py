"""The published recipe for masks: see docs/concepts/masks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PUBLISHED: Mapping[str, Any] = {
    "method": "utility",
    "structural": True,
    "structural_rank": 2.0,
    "structural_min": 10,
    "reasoning_swaps": 3,
}
"""Options of MaskOptions by name."""
