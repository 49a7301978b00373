"""Runs one of the targets under atheris: see `targets.py`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["coe_native"]):
    from support.fuzz.targets import TARGETS

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m support.fuzz {{{','.join(TARGETS)}}} [CORPUS_DIRECTORY] [libFuzzer's options]")
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(target.seed_files()[0].parent)], target.run)
    atheris.Fuzz()
