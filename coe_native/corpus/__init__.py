"""Text to profile and to judge by: documents, readers, samples, batches of tokens."""
