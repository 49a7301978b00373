"""Pipelines of several steps: a specialist in one call, the demo, how to use a model."""
