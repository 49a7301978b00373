"""Speed beside the tools that one would take instead, in one run: ``python -m benchmarks DIRECTORY``."""
