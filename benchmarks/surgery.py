"""Surgery beside plain copying: prune and `cp`, zero in place and `dd`, verify and reading. All is synced."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import coe_native as coe
from benchmarks.side_by_side import Comparison, Target, seconds


def comparisons(parent: Path, directory: Path) -> Iterator[Comparison]:
    mask = half_of(parent)
    out, kept, copy, victim = (directory / f"{name}.gguf" for name in ("out", "kept", "copy", "victim"))
    coe.prune(parent, mask, kept, force=True)  # what cp copies: as many bytes as prune writes
    n_bytes = coe.MoeModel(parent).expert_bytes // 2

    def prune() -> None:
        coe.prune(parent, mask, out, force=True)

    def verify() -> None:
        failed = [check for check in coe.verify(kept, parent, mask) if not check.passed]
        if failed:
            raise SystemExit(f"verify: {failed[0].detail}")

    def cp() -> None:
        subprocess.run(["cp", "--sparse=never", "--reflink=never", kept, copy], check=True)
        subprocess.run(["sync", copy], check=True)

    def cat() -> None:
        remember(parent, kept)

    def dd() -> None:
        blocks = ["bs=1M", f"count={n_bytes >> 20}", "conv=notrunc,fsync", "status=none"]
        subprocess.run(["dd", "if=/dev/zero", f"of={victim}", *blocks], check=True)

    def clean() -> None:
        for path in (out, copy, victim):
            path.unlink(missing_ok=True)
        os.sync()

    def fresh_victim() -> None:
        clean()
        shutil.copyfile(parent, victim)
        os.sync()

    for name, cache, verify_target in (("warm", remember, 3.0), ("cold", forget, 1.5)):

        def prepare(cache=cache) -> None:  # type: ignore[no-untyped-def]
            clean()
            cache(parent, kept)

        yield Comparison(
            f"prune to half, {name}",
            "s",
            seconds(prune, prepare),
            "cp of as many bytes",
            seconds(cp, prepare),
            Target(1.15, False),
        )
        yield Comparison(
            f"verify, {name}",
            "s",
            seconds(verify, prepare),
            "cat of both files",
            seconds(cat, prepare),
            Target(verify_target, False),
        )
    yield Comparison(
        "zero --in-place",
        "s",
        seconds(lambda: coe.zero_in_place(victim, mask), fresh_victim),
        "dd of the zeroed bytes",
        seconds(dd, fresh_victim),
        Target(1.1, False),
    )
    clean()
    kept.unlink()


def half_of(parent: Path) -> coe.ExpertMask:
    """A mask that keeps a random half of each layer's experts."""
    model = coe.MoeModel(parent)
    random = np.random.default_rng(0)
    keep = model.n_experts // 2
    kept = {
        block: tuple(sorted(random.choice(model.n_experts, keep, replace=False).tolist()))
        for block in model.blocks
    }
    return coe.ExpertMask(model.architecture, model.fingerprint, model.n_experts, keep, kept)


def forget(*paths: Path) -> None:
    """Takes files out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(*paths: Path) -> None:
    """Reads files as cat does."""
    for path in paths:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
