"""Where the command line begins: ``coe-native``, or ``python -m coe_native``."""

from __future__ import annotations

import signal


def main() -> None:
    """Runs it. Until it can say in one line what has happened, Ctrl-C just ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from coe_native.cli import main as run

    run()


if __name__ == "__main__":
    main()
