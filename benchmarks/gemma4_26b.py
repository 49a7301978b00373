"""A file of Gemma 4 26B-A4B's exact shape, made on the spot, through inspect, profile, mask, prune and verify.

    python -m benchmarks.gemma4_26b VOCABULARY.gguf DIRECTORY

VOCABULARY.gguf is llama.cpp's `models/ggml-vocab-gemma-4.gguf`: the real model's metadata and tokenizer, without
a tensor. The tensors are random blocks, in the types that llama.cpp's own quantiser gives a small twin with as
many layers. DIRECTORY needs 27 GB. Prints sizes, and each command's time and peak memory: of its own, and with
the pages of the file that it has mapped. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.random_gemma4 import GEMMA4_26B, write

KEEP = 64
PROFILE_WORDS = 300


def run(*arguments: object) -> dict[str, Any]:
    """One command of coe-native: what it says, and what it took."""
    command = [str(Path(sys.executable).with_name("coe-native")), *map(str, arguments), "--json"]
    started = time.monotonic()
    own = resident = 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        while process.poll() is None:
            now = _memory(process.pid)
            own, resident = max(own, now.get("RssAnon", 0)), max(resident, now.get("VmRSS", 0))
            time.sleep(0.02)
        out.seek(0)
        said = out.read()
    seconds = time.monotonic() - started
    print(
        f"{arguments[0]:<8} {seconds:7.1f} s   own memory {own / 1e9:5.2f} GB,",
        f"with mapped files {resident / 1e9:5.2f} GB",
        flush=True,
    )
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    result: dict[str, Any] = json.loads(said)
    return result


def _memory(pid: int) -> dict[str, int]:
    """The process's memory in bytes, by the kernel's names; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in pairs}


@click.command()
@click.argument("vocabulary", type=click.Path(path_type=Path, exists=True))
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(vocabulary: Path, directory: Path) -> None:
    """Make the model in DIRECTORY, if it is not there, and take it through all commands."""
    parent, out = directory / "parent-Q4_K_M.gguf", directory / "specialist.gguf"
    profile, mask, text = directory / "profile.gguf", directory / "mask.json", directory / "text.txt"
    if not parent.exists():
        write(directory / "making.gguf", GEMMA4_26B, vocabulary)
        (directory / "making.gguf").rename(parent)
    text.write_text(" ".join(f"word {number}" for number in range(PROFILE_WORDS)), encoding="utf-8")
    facts = run("inspect", parent, "--keep", KEEP, "--ctx", 16384)
    profiled = run("profile", parent, "-c", text, "-o", profile, "--force")
    run("mask", profile, "--keep", KEEP, "-o", mask, "--force")
    run("prune", parent, "--mask", mask, "-o", out, "--force")
    verified = run("verify", out, "--parent", parent, "--mask", mask)
    smaller = run("inspect", out, "--ctx", 16384)
    print(f"\nprofiled {profiled['tokens']} tokens at {profiled['tokens_per_second']:.0f} tokens/s")
    for check in verified["checks"]:
        print(f"{'ok' if check['passed'] else 'FAILED'} {check['name']}: {check['detail']}")
    for name, found in (("parent", facts), (f"keep {KEEP}", smaller)):
        context = found["memory"]["context"]
        print(
            f"{name:<8} {found['bytes'] / 1e9:6.2f} GB = {found['bytes'] / 2**30:6.2f} GiB on disk, of which",
            end=" ",
        )
        print(f"{found['expert_bytes'] / 1e9:.2f} GB in experts; context of 16384: {context / 2**30:.2f} GiB")
    saved = facts["bytes"] - smaller["bytes"]
    print(f"saved {saved / 1e9:.2f} GB = {saved / 2**30:.2f} GiB")
    print(f"inspect --keep {KEEP} foretold {facts['specialist']['bytes']} bytes of {smaller['bytes']}")


if __name__ == "__main__":
    main()
