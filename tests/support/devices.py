"""What hides GPUs from llama.cpp."""

RUNTIMES = ("CUDA", "HIP", "GGML_VK")
"""Runtimes whose ``…_VISIBLE_DEVICES`` hides GPUs."""
