"""Models loaded in llama.cpp."""
