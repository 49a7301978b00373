"""Read and write files: whole or not at all, and never somebody else's."""
