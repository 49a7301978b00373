"""What a profile counts."""

from __future__ import annotations

STATS = ("routing", "contribution")
"""``routing``: which experts the router chooses, at which rank and with what weight. ``contribution``: also the
activation norms of the chosen experts (OutputNorms)."""
