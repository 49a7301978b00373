"""What a model does: perplexity, sweeps of masks, programming problems."""
