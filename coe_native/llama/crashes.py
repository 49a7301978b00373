"""Crashes inside llama.cpp, reported in one line."""

from __future__ import annotations

from coe_native._native import core


def report_crashes(prefix: str) -> None:
    """From now on, print one line that begins with `prefix` where llama.cpp crashes, instead of nothing."""
    core.report_crashes(prefix)
