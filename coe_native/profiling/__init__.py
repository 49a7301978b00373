"""Run a corpus through a model, and count what its routers choose."""
