"""Helpers of the tests. A test imports from here, and never from another test."""

import os

# Before llama.cpp loads OpenMP: threads that spin at barriers slow down tests that run beside each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
