"""Evaluate models: perplexity, sweeps of masks, programming problems."""
