"""Measurements beside the tools that users would take instead; never part of the tests."""
