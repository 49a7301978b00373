"""What a GPU makes of profiling: batch sizes, memory, statistics, hosts and sweeps, with the card's name.

    python -m benchmarks.gpu DIRECTORY [--llama-cpp PATH/TO/llama.cpp/build/bin]

DIRECTORY gets a Q4_K_M of Gemma 4 26B-A4B's shape with random weights and the demo's tokenizer (16.8 GB with all
30 layers), and for a while a specialist of it; it needs 30 GB. The model is loaded once for each batch size. Needs
an NVIDIA GPU with room for two copies of the model. `benchmarks/gpu.sh` builds all that is needed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import coe_native as coe
from benchmarks import generating, profiling, random_gemma4, side_by_side
from benchmarks.profiling import WINDOW
from benchmarks.side_by_side import Comparison, Measure, Result, Target
from coe_native._native import core
from coe_native.corpus.batching import batches
from coe_native.corpus.corpora import Corpus
from coe_native.corpus.in_memory import corpus_of
from coe_native.llama.memory import simulated_memory
from coe_native.profiling.imatrix import InputWatcher
from coe_native.profiling.run import DOCUMENTS_AT_ONCE, Progress

DEMO = Path(coe.__file__).parent / "demo_data" / "demo-Q8_0.gguf"
EXISTING = click.Path(path_type=Path, exists=True, file_okay=False)
PARTS = ("model", "profile", "hosts", "fit", "sweep")
PROFILING = coe.ModelOptions(n_batch=WINDOW, n_sequences=DOCUMENTS_AT_ONCE)
IN_USE = coe.ModelOptions(n_ctx=8192, n_batch=WINDOW)
"""How a specialist is loaded to be used: the defaults of ``--fit``."""

SHARE_TO_FIT = 0.7
"""Of the parent's memory, for a specialist."""

LEAST_OF_THE_SAME_BATCH = Target(0.98, True)
LEAST_OF_SMALL_BATCHES = Target(1.3, True)
LEAST_WITH_NORMS = Target(0.95, True)
MOST_OF_A_HOST = Target(1.1, False)
LEAST_OF_A_HOST = Target(1 / 1.1, True)


@dataclass
class Report:
    """All that was measured. It is written anew after each row, so that an interrupted run leaves what it has."""

    path: Path | None
    facts: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", file=sys.stderr, flush=True)

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.say(" | ".join(result.cells()))
        self.save()

    def add_memory(self, what: str, predicted: coe.Memory, really: int) -> None:
        row = {"what": what, **asdict(predicted), "predicted": predicted.total, "allocated": really}
        self.memory.append(row)
        gib = f"{predicted.total / 2**30:.2f} GiB predicted, {really / 2**30:.2f} GiB allocated"
        self.say(f"memory | {what} | {gib} | {predicted.total / really:.3f}")
        self.save()

    def save(self) -> None:
        if self.path is not None:
            rows = [
                {
                    "what": result.comparison.what,
                    "against": result.comparison.against,
                    "unit": result.comparison.unit,
                    "ours": result.ours,
                    "theirs": result.theirs,
                    "ratio": result.ratio if result.theirs else None,
                    "target": str(result.comparison.target or ""),
                }
                for result in self.results
            ]
            text = json.dumps({**self.facts, "rows": rows, "memory": self.memory}, indent=1)
            self.path.write_text(text + "\n", encoding="utf-8")


def nvidia_smi(query: str) -> list[str]:
    """What nvidia-smi says of each card."""
    line = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return profiling.output_of(line).strip().splitlines()


def used_memory() -> int:
    """Bytes of all cards that are in use."""
    gc.collect()
    return sum(int(line) for line in nvidia_smi("memory.used")) << 20


@contextlib.contextmanager
def loaded(path: Path, options: coe.ModelOptions) -> Iterator[tuple[coe.Model, Callable[[], int]]]:
    """A model, and a function that returns the bytes of GPU memory that are in use since before it was loaded."""
    before = used_memory()
    with coe.Model(path, options) as model:
        yield model, lambda: used_memory() - before


def profiling_speed(model: coe.Model, corpus: Corpus, stats: str, *, with_imatrix: bool = False) -> Measure:
    """Tokens a second, as ``coe-native profile`` prints them."""

    def measure() -> float:
        last = Progress(0, 0, 0.0)

        def follow(progress: Progress) -> None:
            nonlocal last
            last = progress

        inputs = InputWatcher() if with_imatrix else None
        coe.profile_corpora(model, [corpus], stats=stats, inputs=inputs, progress=follow)
        return last.tokens / last.seconds

    return measure


def decoding_speed(model: coe.Model, documents: NDArray[np.int32]) -> Measure:
    """Tokens a second of the same batches in the same context, while no router is watched. As in llama-bench, the
    last token alone has logits."""
    packed = list(batches(documents, model.n_batch, model.n_sequences))

    def measure() -> float:
        started = time.monotonic()
        for batch in packed:
            model.decode(batch, len(batch.tokens) - 1)
        model.session.logits(len(packed[-1].tokens) - 1, 1)  # waits for the GPU
        return documents.size / (time.monotonic() - started)

    return measure


def in_turns(measures: dict[str, Measure], n_runs: int) -> dict[str, list[float]]:
    """Figures of several measures, one after the other, after a warm-up of each."""
    for measure in measures.values():
        measure()
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(n_runs):
        for name, measure in measures.items():
            taken[name].append(measure())
    return taken


def llama_bench(
    tools: Path, parent: Path, sizes: Sequence[int], n_runs: int
) -> dict[tuple[int, int], list[float]]:
    """Tokens a second of each run, by prompt and ubatch, all from one load."""
    listed = ",".join(map(str, sizes))
    line = [
        *(tools / "llama-bench", "-m", parent, "-n", 0, "-p", listed, "-ub", listed, "-b", max(sizes)),
        *("-r", n_runs, "-o", "json", *profiling.repacking("--repack", 0)),
    ]
    found = json.loads(profiling.output_of(list(map(str, line))))
    return {(row["n_prompt"], row["n_ubatch"]): row["samples_ts"] for row in found}


def speeds(
    what: str, ours: list[float], against: str = "", theirs: Sequence[float] = (), target: Target | None = None
) -> Result:
    """A row of figures that were taken before."""
    return Result(Comparison(what, "tokens/s", lambda: ours[-1], against, None, target), ours, list(theirs))


def profile_rows(
    report: Report,
    parent: Path,
    documents: NDArray[np.int32],
    tools: Path | None,
    sizes: Sequence[int],
    n_runs: int,
) -> None:
    """Profiling at each batch size, beside llama-bench at the same ubatch and at the smallest, and beside the same
    batches while no router is watched; and with activation norms."""
    bench = {} if tools is None else llama_bench(tools, parent, sizes, n_runs)
    names = {(prompt, ubatch): f"llama-bench -p {prompt} -ub {ubatch}" for prompt, ubatch in bench}
    first = sizes[0], sizes[0]
    for key, found in bench.items():
        report.add(speeds(names[key], found))
    corpus = corpus_of(documents.tolist())
    smallest: list[float] = []
    for n_batch in sizes:
        with loaded(parent, replace(PROFILING, n_batch=n_batch)) as (model, in_use):
            predicted = simulated_memory(parent, model.options)
            taken = in_turns(
                {
                    "routing": profiling_speed(model, corpus, "routing"),
                    "unwatched": decoding_speed(model, documents),
                    "contribution": profiling_speed(model, corpus, "contribution"),
                    "imatrix": profiling_speed(model, corpus, "routing", with_imatrix=True),
                },
                n_runs,
            )
            allocated = in_use()
        what, ours = f"profile --batch {n_batch}", taken["routing"]
        if bench:
            same = n_batch, n_batch
            report.add(speeds(what, ours, names[same], bench[same], LEAST_OF_THE_SAME_BATCH))
            if same != first:
                report.add(speeds(what, ours, names[first], bench[first], LEAST_OF_SMALL_BATCHES))
        report.add(speeds(what, ours, "the same batches, unwatched", taken["unwatched"]))
        if smallest:
            report.add(speeds(what, ours, f"profile --batch {sizes[0]}", smallest))
        norms = f"{what} --stats contribution"
        report.add(speeds(norms, taken["contribution"], "--stats routing", ours, LEAST_WITH_NORMS))
        report.add(speeds(f"imatrix --batch {n_batch}", taken["imatrix"], what, ours))
        report.add_memory(what, predicted, allocated)
        smallest = smallest or ours


def host_rows(report: Report, parent: Path, documents: NDArray[np.int32], threads: int, n_runs: int) -> None:
    """Programs that compute everything for their own ends, watched and not."""
    with profiling.bare_contexts(parent, threads) as (plain, tapped):
        tap = Comparison(
            "the tap in a host that computes everything",
            "s",
            lambda: profiling.decode(tapped, documents),
            "no callback",
            lambda: profiling.decode(plain, documents),
            MOST_OF_A_HOST,
        )
        report.add(side_by_side.run(tap, n_runs))
    for comparison in generating.comparisons(parent, None, threads):
        side_by_side.run(comparison, 1)  # a warm-up
        what = comparison.what.replace("the same", f"generate {generating.N_TOKENS} tokens, watched")
        report.add(side_by_side.run(replace(comparison, what=what, target=LEAST_OF_A_HOST), n_runs))


def fit_rows(report: Report, parent: Path, directory: Path, documents: NDArray[np.int32]) -> None:
    """The memory of the parent and of a specialist for ``--fit``, as predicted, and as allocated once a whole
    context has run."""
    moe = coe.MoeModel(parent)
    whole = coe.memory_of(moe, moe.n_experts, IN_USE)
    window = np.resize(documents, IN_USE.n_ctx)
    with loaded(parent, PROFILING) as (model, _):
        profile = coe.profile(model, documents.tolist())
    goal = int(whole.total * SHARE_TO_FIT) >> 20 << 20
    fit = coe.largest_keep_that_fits(moe, goal, IN_USE)
    specialist = directory / "specialist.gguf"
    started = time.monotonic()
    coe.prune(parent, coe.build_mask(profile, fit.keep), specialist, force=True)
    report.say(f"pruned to {fit.keep} of {moe.n_experts} experts in {time.monotonic() - started:.1f} s")
    cases = (
        (f"the parent, context of {IN_USE.n_ctx}", parent, whole),
        (f"--fit {goal >> 20}MiB: keeps {fit.keep} of {moe.n_experts}", specialist, fit.memory),
    )
    try:
        for what, path, predicted in cases:
            with loaded(path, IN_USE) as (model, in_use):
                started = time.monotonic()
                for batch in model.decode_window(window, len(window) - 1):
                    last = len(batch.tokens) - 1
                model.session.logits(last, 1)  # waits for the GPU
                report.say(f"{len(window)} tokens in {time.monotonic() - started:.2f} s")
                report.add_memory(what, predicted, in_use())
    finally:
        specialist.unlink()


def sweep_rows(report: Report, parent: Path, documents: NDArray[np.int32], n_runs: int) -> None:
    """One loaded parent under live masks of three sizes."""
    with loaded(parent, PROFILING) as (model, _):
        profile = coe.profile(model, documents.tolist())
    n_experts = profile.n_experts
    keeps = [n_experts // 4, n_experts // 2, n_experts * 3 // 4]
    text = documents[:4]
    with loaded(parent, coe.ModelOptions(n_batch=WINDOW)) as (model, _):

        def measure() -> float:
            started = time.monotonic()
            coe.sweep(model, profile, {"text": corpus_of(text.tolist())}, keeps=keeps)
            return text.size * (1 + len(keeps)) / (time.monotonic() - started)

        measure()
        what = f"sweep: parent and {len(keeps)} masks, {len(text)} windows of {WINDOW}"
        report.add(side_by_side.run(Comparison(what, "tokens/s", measure), n_runs))


def start_cuda() -> None:
    """Lets CUDA and its libraries take the memory that every program takes there, whatever it loads."""
    with coe.Model(DEMO, n_batch=WINDOW) as model:
        coe.profile(model, [list(range(3, 300))])


@click.command(help=__doc__)
@click.argument("directory", type=EXISTING)
@click.option(
    "--llama-cpp", "tools", type=click.Path(path_type=Path, exists=True), help="Directory of llama-bench."
)
@click.option("--layers", default=30, show_default=True, help="Layers of the model; 30 has the real one.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Parts (repeatable); `model` only makes it.")
@click.option("--batches", "sizes", default="512,1024,2048,4096", show_default=True, help="Batch sizes.")
@click.option("--runs", default=5, show_default=True)
@click.option("--windows", default=16, show_default=True, help="Documents of 512 tokens in each run.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    directory: Path,
    tools: Path | None,
    layers: int,
    only: tuple[str, ...],
    sizes: str,
    runs: int,
    windows: int,
    threads: int,
    output: Path | None,
) -> None:
    parent = directory / f"gemma4-26b-{layers}-layers.gguf"
    parts = only or PARTS
    if not parent.exists():
        making = directory / "making.gguf"
        random_gemma4.write(making, replace(random_gemma4.GEMMA4_26B, n_layers=layers), DEMO)
        making.rename(parent)
    if parts == ("model",):
        return
    cards = nvidia_smi("name,memory.total,driver_version")
    if not core.free_gpu_memory():
        raise SystemExit(f"llama.cpp sees no GPU; nvidia-smi has {'; '.join(cards) or 'none'}")
    size = parent.stat().st_size
    report = Report(
        output,
        {
            "cards": cards,
            "layers": layers,
            "model_bytes": size,
            "runs": runs,
            "windows": windows,
            "command": " ".join(sys.argv[1:]),
        },
    )
    start_cuda()
    profiling.write_text(parent, windows, directory / "text.txt", directory / "tokens.npy")
    documents: NDArray[np.int32] = np.load(directory / "tokens.npy")
    steps: dict[str, Callable[[], None]] = {
        "profile": lambda: profile_rows(
            report, parent, documents, tools, [int(n) for n in sizes.split(",")], runs
        ),
        "hosts": lambda: host_rows(report, parent, documents, threads, runs),
        "fit": lambda: fit_rows(report, parent, directory, documents),
        "sweep": lambda: sweep_rows(report, parent, documents, min(runs, 3)),
    }
    failed = []
    for name, step in steps.items():
        if name in parts:
            report.say(f"-- {name}")
            try:
                step()
            except (coe.CoeError, OSError, subprocess.CalledProcessError) as error:
                failed.append(name)
                report.say(f"{name} failed: {error}")
    title = f"{'; '.join(cards)}; {layers} layers, {size / 1e9:.1f} GB; medians of {runs} runs"
    side_by_side.show(report.results, title)
    for row in report.memory:
        parts_of = ", ".join(f"{part} {row[part] / 2**30:.2f}" for part in ("weights", "context", "compute"))
        print(
            f"{row['what']:<44} predicted {row['predicted'] / 2**30:6.2f} GiB ({parts_of}), "
            f"allocated {row['allocated'] / 2**30:6.2f} GiB, ratio {row['predicted'] / row['allocated']:.3f}"
        )
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
