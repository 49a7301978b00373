"""Sizes that no model exceeds. A file that claims more is refused before memory is allocated for it."""

from __future__ import annotations

from coe_native._native import core

MOST_BLOCKS: int = core.MOST_BLOCKS
"""Blocks of a model; the block indices of files are less than this."""

MOST_EXPERTS: int = core.MOST_EXPERTS
"""Experts of a layer."""
