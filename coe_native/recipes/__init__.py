"""Pipelines made of the steps: a specialist in one go, the demo, how to use a model."""
