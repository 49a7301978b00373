"""Changed files through the real command line: whatever is in a file, a command ends with 0, 1 or 2, soon and in
little memory, says at most one line where it fails, and leaves nothing behind.

    cd tests && python -m support.fuzz.command_line gguf 10000

Each runs in a process of its own, forked from one that has everything imported: some thousands a minute.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from support.fuzz.mutation import Mutator
from support.fuzz.targets import SEEDS
from support.random_models import write_random_model

import coe_native as coe
from coe_native import cli
from coe_native.cli import commands
from coe_native.model.gguf_file import MAGIC

SECONDS = 10
MEGABYTES = 1000

_SIZES = {"n_layers": 2, "n_experts": 8, "top_k": 2, "n_embd": 64, "n_ff_expert": 32}
_RUN = "--threads 1 --ctx 32 --batch 32 --gpu-layers 0"
_JSONL_SEED = SEEDS / "corpus" / "records.jsonl"

LINES: dict[str, tuple[str, ...]] = {
    "gguf": (
        "inspect FILE --keep 4 --ctx 4096",
        "inspect FILE --json",
        f"profile FILE -c tokens.jsonl -o out.gguf {_RUN}",
        f"eval FILE --text tokens.jsonl {_RUN}",
        f"eval FILE --text tokens.jsonl --mask mask.json {_RUN}",
        "prune FILE --mask mask.json -o out.gguf",
        "zero FILE --mask mask.json -o out.gguf",
        "zero FILE --mask mask.json --in-place --yes",
        "verify FILE --parent parent.gguf --mask mask.json",
        "verify pruned.gguf --parent FILE --mask mask.json",
        f"specialise FILE -c tokens.jsonl --keep 4 -o out.gguf {_RUN}",
    ),
    "profile": (
        "score FILE --json",
        "mask FILE --keep 4 -o out.json",
        "score FILE --method contribution",
        "mask profile.gguf --keep 4 --reasoning FILE -o out.json",
        "merge FILE profile.gguf -o out.gguf",
        "compare FILE profile.gguf --keep 4",
        "report FILE --keep 4 -o out.html",
        f"profile parent.gguf -c tokens.jsonl -o FILE --force {_RUN}",
    ),
    "checkpoint": (f"profile parent.gguf -c tokens.jsonl -o out.gguf --resume {_RUN}",),
    "mask": (
        "prune parent.gguf --mask FILE -o out.gguf",
        "compare FILE mask.json",
        "verify pruned.gguf --parent parent.gguf --mask FILE",
        f"eval parent.gguf --text tokens.jsonl --mask FILE {_RUN}",
    ),
    "jsonl": (
        f"profile parent.gguf -c FILE -o out.gguf {_RUN}",
        f"profile parent.gguf -c FILE -o out.gguf --skip-bad {_RUN}",
        f"eval parent.gguf --text FILE {_RUN}",
    ),
    "torch": ("import FILE --experts 8 -o out.any", "import FILE --model parent.gguf -o out.any"),
    "imatrix": ("import FILE -o out.gguf", "import FILE --model parent.gguf -o out.gguf"),
    "sweep": ("report profile.gguf --sweep FILE -o out.html",),
    "npy": (
        f"profile parent.gguf -c FILE -o out.gguf {_RUN}",
        f"eval parent.gguf --text FILE {_RUN}",
    ),
}
"""By kind of file, the lines that read one. FILE is the changed one."""

_NAMES = {
    "gguf": "changed.gguf",
    "profile": "changed.gguf",
    "checkpoint": "out.gguf.checkpoint",
    "mask": "changed.json",
    "jsonl": "changed.jsonl",
    "npy": "changed.npy",
    "torch": "changed.pt",
    "imatrix": "changed.gguf",
    "sweep": "changed.json",
}
_MUTATIONS = {"profile": "gguf", "checkpoint": "gguf", "mask": "json", "imatrix": "gguf", "sweep": "json"}


def prepare(directory: Path) -> dict[str, list[bytes]]:
    """Good files, and the seeds of each kind."""
    parents = []
    for name, family, quantization in (
        ("parent.gguf", "qwen3moe", "F32"),
        ("gemma.gguf", "gemma4", "Q8_0"),
        ("groups.gguf", "deepseek2", "Q4_0"),
        ("bias.gguf", "gpt-oss", "Q8_0"),
    ):
        write_random_model(directory / name, family, quantization=quantization, **_SIZES)
        parents.append((directory / name).read_bytes())
    parent = directory / "parent.gguf"
    tokens = np.random.default_rng(0).integers(0, 256, (3, 40)).astype(np.int32)
    (directory / "tokens.jsonl").write_text("".join(f'{{"tokens": {row}}}\n' for row in tokens.tolist()))
    np.save(directory / "tokens.npy", tokens)
    profile = coe.profile(parent, tokens.tolist(), n_ctx=32, n_batch=32, n_threads=1, stats="contribution")
    profile.save(directory / "profile.gguf")
    mask = coe.build_mask(profile, 4, reasoning=profile)
    mask.save(directory / "mask.json")
    coe.prune(parent, mask, directory / "pruned.gguf")
    zeroed = Path(shutil.copy(parent, directory / "zeroed.gguf"))
    coe.zero_in_place(zeroed, mask)
    with contextlib.suppress(KeyboardInterrupt):
        _interrupted(parent, directory)
    interrupted = directory / "interrupted.gguf.checkpoint"
    return {
        "gguf": [*parents, zeroed.read_bytes(), (directory / "pruned.gguf").read_bytes()],
        "profile": [(directory / "profile.gguf").read_bytes()],
        "checkpoint": [interrupted.read_bytes()],
        "mask": [(directory / "mask.json").read_bytes()],
        "jsonl": [(directory / "tokens.jsonl").read_bytes(), _JSONL_SEED.read_bytes()[1:]],
        "npy": [(directory / "tokens.npy").read_bytes()],
        "torch": [path.read_bytes()[1:] for path in sorted((SEEDS / "imported").glob("*.pt"))],
        "imatrix": [(SEEDS / "imported" / "imatrix.gguf").read_bytes()[1:]],
        # Of the profile's model.
        "sweep": [(SEEDS / "judged" / "sweep.json").read_bytes().replace(b"0" * 64, profile.fingerprint.encode())],
    }


def _interrupted(parent: Path, directory: Path) -> None:
    """A checkpoint of the very run that its command line goes on with."""
    from coe_native.corpus.read import read_corpus
    from coe_native.profiling.checkpoint import Checkpoint
    from coe_native.profiling.run import DOCUMENTS_AT_ONCE, Progress

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 40:
            raise KeyboardInterrupt

    options = {"n_ctx": 32, "n_batch": 32, "n_threads": 1, "n_gpu_layers": 0, "n_sequences": DOCUMENTS_AT_ONCE}
    checkpoint = Checkpoint(directory / "interrupted.gguf")
    corpora = [read_corpus(directory / "tokens.jsonl")]
    with coe.Model(parent, **options) as model:  # type: ignore[arg-type]
        coe.profile_corpora(model, corpora, checkpoint=checkpoint, progress=interrupt)


@dataclass
class Outcome:
    """What became of one command."""

    status: int
    out: str
    err: str
    seconds: float
    megabytes: float

    def complaint(self) -> str | None:
        """What is wrong with it, or None."""
        told = "".join(line for line in self.err.splitlines(True) if not line.startswith("left out: "))
        failed_check = self.status == 1 and not told
        one_line = self.status == 0 or failed_check or re.fullmatch(r"coe-native: [^\n]+\n", told)
        wrong = {
            f"ended with {self.status}": self.status not in (0, 1, 2),
            f"took {self.seconds:.1f} s": self.seconds > SECONDS,
            f"took {self.megabytes:.0f} MB": self.megabytes > MEGABYTES,
            "shows a defect": "Traceback" in self.err + self.out or "internal error" in self.err,
            "writes control characters": re.search(r"[^\n\x20-\x7e\x80-\U0010ffff]", self.err),
            "says more or less than one line": not one_line,
        }
        return next((what for what, is_so in wrong.items() if is_so), None)


def run_forked(line: list[str], directory: Path) -> Outcome:
    """A command in a fork of this process, which must have no threads of its own."""

    def start(out: int, err: int) -> int:
        child = os.fork()
        if child == 0:
            _run_command(line, directory, out, err)
        return child

    return _watch(start)


def run_measured(line: list[str], directory: Path) -> Outcome:
    """A command as a user runs it."""
    whole = [sys.executable, "-m", "coe_native", *line]
    processes = []

    def start(out: int, err: int) -> int:
        processes.append(subprocess.Popen(whole, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err))
        return processes[0].pid

    outcome = _watch(start)
    processes[0].returncode = outcome.status  # it has been waited for
    return outcome


def _watch(start: Callable[[int, int], int]) -> Outcome:
    """What becomes of a process that `start` starts, with these for its stdout and stderr."""
    reading, writing = os.pipe()
    reading_out, writing_out = os.pipe()
    started = time.monotonic()
    child = start(writing_out, writing)
    os.close(writing)
    os.close(writing_out)
    texts = {reading: b"", reading_out: b""}
    open_ends = set(texts)
    while open_ends:
        left = started + 2 * SECONDS - time.monotonic()
        ready = select.select(list(open_ends), [], [], max(0.0, left))[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
            break
        for end in ready:
            data = os.read(end, 65536)
            texts[end] += data[: 1 << 20]
            if not data:
                open_ends.remove(end)
    _, status, usage = os.wait4(child, 0)
    for end in texts:
        os.close(end)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        texts[reading_out].decode(errors="replace"),
        texts[reading].decode(errors="replace"),
        time.monotonic() - started,
        usage.ru_maxrss / 1000,
    )


def _run_command(line: list[str], directory: Path, out: int, err: int) -> None:
    status = 70
    try:
        os.chdir(directory)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = ["coe-native", *line]
        cli.main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 71
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)


@dataclass
class Result:
    """How many commands were run, how each ended, and what was wrong: a line and the file that it was given."""

    statuses: Counter[int] = field(default_factory=Counter)
    complaints: list[tuple[str, str, str]] = field(default_factory=list)
    slowest: float = 0.0
    largest: float = 0.0


def run_changed(kind: str, n_files: int, seed: int, keep: Path, progress: Callable[[int], None]) -> Result:
    """`n_files` changed files of a kind through the lines that read one. What was wrong is kept in `keep`."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="changed-") as temporary:
        directory = Path(temporary)
        seeds = prepare(directory)[kind]
        for module in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
            importlib.import_module(module.name)
        before = _listing(directory)
        mutator = Mutator(seed)
        changed = directory / _NAMES[kind]
        for number in range(n_files):
            data = mutator.change(seeds, _MUTATIONS.get(kind, kind))
            changed.write_bytes(data)
            line = mutator.random.choice(LINES[kind]).replace("FILE", changed.name)
            outcome = run_forked(line.split(), directory)
            result.statuses[outcome.status] += 1
            result.slowest = max(result.slowest, outcome.seconds)
            result.largest = max(result.largest, outcome.megabytes)
            complaint = outcome.complaint() or _left_behind(directory, before, changed, outcome, data)
            if complaint:
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{kind}-{seed}-{number}{changed.suffix}"
                kept.write_bytes(data)
                result.complaints.append((f"{line}: {complaint}: {outcome.err[-600:]}", line, str(kept)))
            for path in _listing(directory).keys() - before.keys():
                path.unlink()
            progress(number + 1)
    return result


def _listing(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.iterdir()}


def _left_behind(
    directory: Path, before: dict[Path, bytes], changed: Path, outcome: Outcome, data: bytes
) -> str | None:
    """What a command should not have left, or changed: a failed one leaves all as it was."""
    after = _listing(directory)
    if any(after.get(path) != content for path, content in before.items()):
        return "changed a file of others"
    new = after.keys() - before.keys() - {changed}
    if any(path.name.endswith(".coe-tmp") for path in new):
        # A crash inside llama.cpp may leave one; the next run removes it.
        return None if "llama.cpp" in outcome.err else "left a temporary file"
    outputs = {path for path in new if path.name.startswith("out.") and "profile" not in path.name}
    if outcome.status == 2 and outputs - {directory / "out.gguf.checkpoint"}:
        return f"failed, but left {', '.join(path.name for path in outputs)}"
    for path in outputs:
        if path.suffix == ".gguf" and after[path][:4] != MAGIC:
            return f"left half of {path.name}"
    if outcome.status == 2 and after.get(changed) != data:
        return "failed, but changed its input"
    return None


def _main(kind: str, n_files: int, seed: int) -> Iterator[str]:
    def progress(number: int) -> None:
        if number % 500 == 0:
            print(number, file=sys.stderr, flush=True)

    result = run_changed(kind, n_files, seed, Path("found"), progress)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield f"{kind}: {n_files} files, statuses {dict(sorted(result.statuses.items()))}"
    yield f"slowest {result.slowest:.2f} s, largest {result.largest:.0f} MB, {usage.ru_utime:.0f} s of CPU"
    for complaint, _, path in result.complaints:
        yield f"{path}: {complaint}"


if __name__ == "__main__":
    for text in _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0):
        print(text)
