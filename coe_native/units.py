"""Numbers in the form in which people read them."""

from __future__ import annotations


def gigabytes(n_bytes: int) -> str:
    """Return a size of files as text, in powers of ten: ``1.50 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes} B"


def gibibytes(n_bytes: int) -> str:
    """Return a size of memory as text, in powers of two: ``1.50 GiB``."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def counted(number: int, what: str) -> str:
    """Return a number with its noun in singular or plural: ``1 layer``, ``2 layers``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
