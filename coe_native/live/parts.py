"""The parts in which live tokens are counted."""

from __future__ import annotations

PROMPT, GENERATED, MASKED = 0, 1, 2
"""The parts in which tokens are counted."""
