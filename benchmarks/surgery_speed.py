"""Surgery beside plain copying: prune and `cp`, zero in place and `dd`, verify and reading.

    python -m benchmarks.surgery_speed PARENT.gguf MASK.json DIRECTORY

PARENT should have 2 GB or more, and DIRECTORY room for two copies of it. Everything is synced. Cold: none of the
files is in the page cache. Prints medians and the ratios of each run.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import click

import coe_native as coe

Step = Callable[[], object]


def timed(step: Step) -> float:
    started = time.monotonic()
    step()
    return time.monotonic() - started


def forget(*paths: Path) -> None:
    """Takes files out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(*paths: Path) -> None:
    for path in paths:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def copy_synced(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=never", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", target], check=True)


def compare(name: str, runs: int, prepare: Step, ours: Step, theirs: Step, target: float) -> None:
    """Alternating runs of both, and the ratio of each pair."""
    pairs = []
    for _ in range(runs):
        prepare()
        mine = timed(ours)
        prepare()
        pairs.append((mine, timed(theirs)))
    ratios = [mine / other for mine, other in pairs]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{name:<28} {mine:6.2f} s  {other:6.2f} s  ratio {statistics.median(ratios):5.2f}"
        f"  ({min(ratios):.2f} to {max(ratios):.2f}; target {target})",
        flush=True,
    )


@click.command()
@click.argument("parent", type=click.Path(path_type=Path, exists=True))
@click.argument("mask_path", type=click.Path(path_type=Path, exists=True))
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--runs", default=5, show_default=True)
def main(parent: Path, mask_path: Path, directory: Path, runs: int) -> None:
    """Compare surgery on PARENT with copying of as many bytes."""
    mask = coe.ExpertMask.load(mask_path)
    out, copy, victim = (directory / name for name in ("out.gguf", "copy.gguf", "victim.gguf"))
    coe.prune(parent, mask, out, force=True)
    kept = directory / "kept.gguf"
    out.replace(kept)  # what cp copies: as many bytes as prune writes
    print(f"{'':<28} {'ours':>8}  {'theirs':>8}")

    def prune() -> None:
        coe.prune(parent, mask, out, force=True)

    def prepare(cold: bool) -> None:
        out.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        os.sync()
        (forget if cold else remember)(parent, kept)

    compare("prune, warm: cp", runs, lambda: prepare(False), prune, lambda: copy_synced(kept, copy), 1.15)
    compare("prune, cold: cp", runs, lambda: prepare(True), prune, lambda: copy_synced(kept, copy), 1.15)

    def read_both() -> None:
        remember(parent, kept)

    def check() -> None:
        failed = [c for c in coe.verify(kept, parent, mask) if not c.passed]
        if failed:
            raise SystemExit(f"verify: {failed[0].detail}")

    compare("verify, warm: cat both", runs, lambda: prepare(False), check, read_both, 1.5)
    compare("verify, cold: cat both", runs, lambda: prepare(True), check, read_both, 1.5)

    def fresh_victim() -> None:
        victim.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        shutil.copyfile(parent, victim)
        os.sync()

    n_bytes = coe.MoeModel(parent).expert_bytes * len(mask.dropped(min(mask.kept))) // mask.n_experts

    def write_zeros() -> None:
        blocks = ["bs=1M", f"count={n_bytes >> 20}", "conv=notrunc,fsync", "status=none"]
        subprocess.run(["dd", "if=/dev/zero", f"of={victim}", *blocks], check=True)

    compare("zero --in-place: dd", runs, fresh_victim, lambda: coe.zero_in_place(victim, mask), write_zeros, 1.1)
    for path in (out, copy, victim, kept):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
