"""Fewer experts or fewer bits: what is best at a size, for each kind of text.

    python -m benchmarks.frontier OUT [--model Q8_0.gguf] [--tokens 8192]

Takes the demo's model or another 8-bit one, and the demo's kinds of text. For each kind: a profile and an
importance matrix of its profile text, the model in each type with that matrix, and for each size as many experts
as fit into it. The first half of the test text chooses between types, as `specialise --fit` does with its text.
The second half, and the other kinds' test text, say what was chosen. Each size compares

* (a) the 8-bit file with as many experts as fit,
* (b) all experts, in the type that loses least of those that fit,
* the best of all types, each with as many experts as fit.

It also quantises to small types with the importance matrix and without. OUT gets results.json and table.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

import coe_native as coe
from coe_native.cli.commands.specialise import DEFAULT_TYPES
from coe_native.corpus.batching import tokenize
from coe_native.corpus.in_memory import corpus_of
from coe_native.errors import CoeError
from coe_native.llama.options import ModelOptions
from coe_native.model.header import ModelHeader
from coe_native.profiling.imatrix import InputWatcher
from coe_native.profiling.run import DOCUMENTS_AT_ONCE
from coe_native.recipes import demo
from coe_native.surgery.fit import size_of_specialist

SHARES = (0.75, 0.5, 0.4, 0.3)
"""Sizes, as shares of the 8-bit file's."""

SMALL_TYPES = ("Q3_K_M", "Q2_K")
"""Types that can be had without an importance matrix too."""

PARENT = "Q8_0"


@dataclass(frozen=True)
class Point:
    """A type with a number of experts. `losses`: by text; `chosen_by`: the loss on the text that chooses."""

    kind: str
    share: float
    file_type: str
    keep: int
    n_bytes: int
    chosen_by: float
    losses: dict[str, float]


@dataclass(frozen=True)
class Rounding:
    """What a type loses with all experts, with an importance matrix of a kind of text and without."""

    kind: str
    file_type: str
    with_imatrix: dict[str, float]
    without: dict[str, float]


def halves(model: coe.Model, corpus: coe.Corpus, n_tokens: int) -> tuple[coe.Corpus, coe.Corpus]:
    """Two parts of a text with equally many windows, one after the other."""
    stream = np.concatenate([tokenize(document, model.text) for document in corpus.documents])[: 2 * n_tokens]
    middle = len(stream) // 2 // model.n_ctx * model.n_ctx
    parts = stream[:middle], stream[middle : 2 * middle]
    return corpus_of([parts[0].tolist()], corpus.name), corpus_of([parts[1].tolist()], corpus.name)


class Judge:
    """Perplexities of a model's files relative to the 8-bit one's."""

    def __init__(self, model: Path, options: ModelOptions, n_tokens: int) -> None:
        self.options = options
        self.choosing, self.judging = {}, {}
        with coe.Model(model, options) as parent:
            for kind in demo.KINDS:
                self.choosing[kind], self.judging[kind] = halves(parent, demo.corpus(kind, "test"), n_tokens)
            self.parent = {
                part: {kind: coe.evaluate(parent, text).perplexity for kind, text in texts.items()}
                for part, texts in (("choosing", self.choosing), ("judging", self.judging))
            }

    def on_choosing(self, model: coe.Model, kind: str) -> float:
        return coe.evaluate(model, self.choosing[kind]).perplexity / self.parent["choosing"][kind] - 1

    def losses(self, model: coe.Model) -> dict[str, float]:
        return {
            kind: coe.evaluate(model, text).perplexity / self.parent["judging"][kind] - 1
            for kind, text in self.judging.items()
        }


def points(
    path: Path, kind: str, file_type: str, profile: coe.RoutingProfile, judge: Judge, whole: int
) -> Iterator[Point]:
    """One file at each size."""
    header = ModelHeader(path)
    with coe.Model(path, judge.options) as model:
        judged: dict[int, tuple[float, dict[str, float]]] = {}
        for share in SHARES:
            sizes = {keep: size_of_specialist(header, keep) for keep in header.possible_keeps}
            fitting = [keep for keep, size in sizes.items() if size <= share * whole]
            if not fitting:
                continue
            keep = max(fitting)
            if keep not in judged:
                if keep < header.n_experts:
                    model.apply(coe.build_mask(profile, keep))
                judged[keep] = judge.on_choosing(model, kind), judge.losses(model)
                model.clear_mask()
            yield Point(kind, share, file_type, keep, sizes[keep], *judged[keep])


def run(model: Path, options: ModelOptions, n_tokens: int, types: Sequence[str]) -> Iterator[Point | Rounding]:
    judge = Judge(model, options, n_tokens)
    whole = model.stat().st_size
    with tempfile.TemporaryDirectory() as work:
        plain = {}
        for file_type in SMALL_TYPES:
            path = coe.quantize(model, coe.QuantizeOptions(file_type), Path(work) / "plain.gguf", force=True)
            with coe.Model(path, options) as loaded:
                plain[file_type] = judge.losses(loaded)
        for kind in demo.KINDS:
            inputs = InputWatcher()
            with coe.Model(model, options, n_sequences=DOCUMENTS_AT_ONCE) as parent:
                profile = coe.profile_corpora(parent, [demo.corpus(kind, "profile")], inputs=inputs)
            inputs.imatrix.save(Path(work) / "imatrix.gguf")
            yield from points(model, kind, PARENT, profile, judge, whole)
            for file_type in types:
                path = Path(work) / "typed.gguf"
                try:
                    quantise = coe.QuantizeOptions(file_type)
                    coe.quantize(model, quantise, path, imatrix=Path(work) / "imatrix.gguf", force=True)
                except CoeError as error:
                    click.echo(f"{file_type}: {error}", err=True)
                    continue
                yield from points(path, kind, file_type, profile, judge, whole)
                if file_type in SMALL_TYPES:
                    with coe.Model(path, options) as loaded:
                        yield Rounding(kind, file_type, judge.losses(loaded), plain[file_type])


def others(point: Point) -> float:
    return float(np.mean([loss for kind, loss in point.losses.items() if kind != point.kind]))


def cell(point: Point | None, n_experts: int) -> str:
    if point is None:
        return "none fits"
    kept = f", {point.keep} of {n_experts}" if point.keep < n_experts else ""
    return f"{point.losses[point.kind]:+.1%} ({others(point):+.1%}) {point.file_type}{kept}"


def table(found: Sequence[Point | Rounding], n_experts: int, whole: int) -> str:
    """Markdown: the loss on the own kind, and in parentheses the mean of the others'."""
    lines = ["| text | size | (a) 8 bits, fewer experts | (b) all experts, fewer bits | best of both |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for kind in demo.KINDS:
        for share in SHARES:
            here = [p for p in found if isinstance(p, Point) and (p.kind, p.share) == (kind, share)]
            cut = next((p for p in here if p.file_type == PARENT), None)
            uncut = min((p for p in here if p.keep == n_experts), key=lambda p: p.chosen_by, default=None)
            best = min(here, key=lambda p: p.chosen_by, default=None)
            cells = " | ".join(cell(point, n_experts) for point in (cut, uncut, best))
            lines.append(f"| {kind} | {share * whole / 1e6:.2f} MB, {share:.0%} | {cells} |")
    lines += ["", "| type, all experts | text of the matrix | with | without | others, with | others, without |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for of_type in (r for r in found if isinstance(r, Rounding)):
        own = [losses[of_type.kind] for losses in (of_type.with_imatrix, of_type.without)]
        rest = [
            float(np.mean([loss for kind, loss in losses.items() if kind != of_type.kind]))
            for losses in (of_type.with_imatrix, of_type.without)
        ]
        shown = " | ".join(f"{loss:+.1%}" for loss in (*own, *rest))
        lines.append(f"| {of_type.file_type} | {of_type.kind} | {shown} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=demo.MODEL)
@click.option("--tokens", "n_tokens", default=8192, show_default=True, help="Of each half of each test text.")
@click.option("--types", default=",".join(DEFAULT_TYPES), show_default=True)
@click.option("--threads", type=int)
def main(out: Path, model: Path, n_tokens: int, types: str, threads: int | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    header = ModelHeader(model)
    found: list[Point | Rounding] = []
    for result in run(model, ModelOptions(n_threads=threads), n_tokens, types.split(",")):
        found.append(result)
        (out / "results.json").write_text(json.dumps([asdict(one) for one in found], indent=1))
    text = table(found, header.n_experts, header.n_bytes)
    (out / "table.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
