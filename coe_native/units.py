"""Numbers as people read them."""

from __future__ import annotations


def gigabytes(n_bytes: int) -> str:
    """Bytes of files, in powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes} B"


def gibibytes(n_bytes: int) -> str:
    """Bytes of memory, in powers of two."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def counted(number: int, what: str) -> str:
    """1 layer, 2 layers."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
