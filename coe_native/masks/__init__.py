"""Expert masks: which experts of a model stay."""
