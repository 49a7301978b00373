"""Entry point of the command line: ``coe-native``, or ``python -m coe_native``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line. While it is being imported, Ctrl-C ends the process without a traceback."""
    # GNU's OpenMP reads it when llama.cpp is loaded: how often a thread that waits for others looks before it
    # sleeps. See docs/benchmarks/speed.md, "Beside other programs".
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from coe_native.cli import main as run

    run()


if __name__ == "__main__":
    main()
