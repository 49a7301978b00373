"""Which method keeps the right experts: specialists by every method, judged live on held-out text.

    python -m benchmarks.quality OUT [--model MODEL --domain NAME=PROFILE_TEXT,TEST_TEXT …]

Takes the demo's model and its three kinds of text, or a model and kinds that are given. For each kind, method and
number of experts kept (75, 50 and 25 %) it masks the parent live and takes perplexity and KL divergence on all
kinds: of masks from the whole profile text, and of masks from parts of it, drawn at random with several seeds, so
that the spread is seen. Masks are those of `mask` with its default passes. OUT gets results.json, table.md and
plot.html.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import coe_native as coe
from coe_native.corpus.batching import tokenize
from coe_native.corpus.documents import Document
from coe_native.profiling.run import DOCUMENTS_AT_ONCE
from coe_native.recipes import demo

SHARES = (0.75, 0.5, 0.25)
WHOLE = "all"


@dataclass(frozen=True)
class Domain:
    """One kind of text: what chooses experts, and what judges them."""

    name: str
    profile: coe.Corpus
    test: coe.Corpus


@dataclass(frozen=True)
class Finding:
    """What one mask makes of one kind of text. `size`: tokens of the text that chose the experts."""

    domain: str
    size: str
    seed: int
    method: str
    share: float
    text: str
    loss: float
    kl: float


class _Domain(click.ParamType["tuple[str, Path, Path]"]):
    name = "domain"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path, Path]:
        match = re.fullmatch(r"([^=]+)=([^,]+),([^,]+)", str(value))
        if match is None:
            self.fail(f"{value!r} must be written like python=profile.jsonl,test.jsonl", param, ctx)
        return match[1], Path(match[2]), Path(match[3])


def part(model: coe.Model, corpus: coe.Corpus, n_tokens: int, seed: int | None) -> coe.Corpus:
    """Documents of a corpus up to so many tokens, in random order if there is a seed; the last one is cut."""
    documents = list(corpus.documents)
    if seed is not None:
        random.Random(seed).shuffle(documents)
    taken: list[Document] = []
    for document in documents:
        tokens = tokenize(document, model)[:n_tokens]
        taken.append(Document(document.place, tuple(tokens.tolist())))
        n_tokens -= len(tokens)
        if n_tokens == 0:
            break
    return coe.Corpus(corpus.name, tuple(taken))


def findings(
    model: coe.Model,
    domains: Sequence[Domain],
    sizes: Sequence[int],
    seeds: int,
    test_tokens: int,
    passes: coe.PassOptions,
) -> Iterator[list[Finding]]:
    """What each text that chose experts led to: all text of each kind first, then parts of it."""
    keeps = {share: max(model.moe.top_k, round(share * model.moe.n_experts)) for share in SHARES}
    texts = {domain.name: part(model, domain.test, test_tokens, None) for domain in domains}
    runs = [(WHOLE, 0), *itertools.product(map(str, sizes), range(seeds))]
    for (size, seed), domain in itertools.product(runs, domains):
        corpus = domain.profile if size == WHOLE else part(model, domain.profile, int(size), seed)
        profile = coe.profile_corpora(model, [corpus], stats="contribution")
        if size != WHOLE and profile.n_tokens < int(size):
            raise SystemExit(f"{domain.name}: has {profile.n_tokens} tokens, fewer than --size {size}")
        swept = coe.sweep(model, profile, texts, keeps=list(keeps.values()), methods=coe.METHODS, passes=passes)
        yield [
            Finding(domain.name, size, seed, point.method, share, judged.text, loss, judged.kl_divergence)
            for share, point in itertools.product(SHARES, swept.points)
            if point.keep == keeps[share]
            for judged, loss in zip(point.evaluations, swept.losses(point), strict=True)
        ]


def spread(values: Sequence[float], percent: bool) -> str:
    """Mean, and standard deviation over seeds."""
    if not values:
        return ""
    mean, factor, digits = statistics.mean(values), 100 if percent else 1, 1 if percent else 3
    shown = f"{factor * mean:+.{digits}f}" if percent else f"{mean:.{digits}f}"
    return shown if len(values) < 2 else f"{shown} ± {factor * statistics.stdev(values):.{digits}f}"


def tables(found: Sequence[Finding], domains: Sequence[str]) -> str:
    """Markdown: for each size of the text that chose the experts, the rise of perplexity in per cent and KL
    divergence in nats, on the own kind of text and, as means over them, on the others."""
    lines = []
    for size in dict.fromkeys(finding.size for finding in found):
        for own, percent in itertools.product((True, False), (True, False)):
            what = "rise of perplexity, %" if percent else "KL divergence"
            lines += [f"{what}, on {'the own kind' if own else 'other kinds'}; experts by {size} tokens", ""]
            heads = [f"{share:.0%}: {name}" for share, name in itertools.product(SHARES, domains)]
            lines += [f"| method | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
            for method in coe.METHODS:
                cells = []
                for share, name in itertools.product(SHARES, domains):
                    of_cell = [
                        finding
                        for finding in found
                        if (finding.size, finding.method, finding.share) == (size, method, share)
                        and finding.domain == name
                        and (finding.text == name) == own
                    ]
                    by_seed: dict[int, list[float]] = {}
                    for finding in of_cell:
                        by_seed.setdefault(finding.seed, []).append(finding.loss if percent else finding.kl)
                    cells.append(spread([statistics.mean(values) for values in by_seed.values()], percent))
                lines.append(f"| {method} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def plot(found: Sequence[Finding], domains: Sequence[str]) -> go.Figure:
    """The rise of perplexity on the own kind against the size of the text that chose the experts, a panel for each
    kind and number of experts; bars are standard deviations over seeds."""
    figure = make_subplots(
        rows=len(SHARES),
        cols=len(domains),
        subplot_titles=[f"{name}, {share:.0%} kept" for share in SHARES for name in domains],
        shared_xaxes=True,
    )
    sizes = sorted({f.size for f in found}, key=lambda size: (size == WHOLE, len(size), size))
    colours = ["#1f77b4", "#9467bd", "#7f7f7f", "#d62728", "#ff7f0e", "#2ca02c", "#8c564b"]
    own = [f for f in found if f.text == f.domain]
    for (row, share), (column, name) in itertools.product(enumerate(SHARES, 1), enumerate(domains, 1)):
        of_panel = [f for f in own if f.domain == name and f.share == share]
        for method, colour in zip(coe.METHODS, itertools.cycle(colours)):
            by_size = {s: [f.loss for f in of_panel if f.method == method and f.size == s] for s in sizes}
            known = {size: losses for size, losses in by_size.items() if losses}
            figure.add_scatter(
                x=list(known),
                y=[statistics.mean(losses) for losses in known.values()],
                error_y={"array": [statistics.stdev(x) if len(x) > 1 else 0.0 for x in known.values()]},
                name=method,
                legendgroup=method,
                showlegend=row == column == 1,
                line={"color": colour},
                row=row,
                col=column,
            )
    figure.update_yaxes(tickformat="+.0%")
    figure.update_xaxes(type="category", title="tokens", row=len(SHARES))
    figure.update_layout(height=300 * len(SHARES), title="Rise of held-out perplexity on the own kind of text")
    return figure


def read_domains(given: Sequence[tuple[str, Path, Path]]) -> list[Domain]:
    if not given:
        return [Domain(kind, demo.corpus(kind, "profile"), demo.corpus(kind, "test")) for kind in demo.KINDS]
    return [Domain(name, coe.read_corpus(profile), coe.read_corpus(test)) for name, profile, test in given]


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=demo.MODEL)
@click.option("--domain", "given", type=_Domain(), multiple=True, metavar="NAME=PROFILE,TEST")
@click.option("--size", "sizes", type=int, multiple=True, default=(5_000, 20_000), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--test-tokens", default=1 << 30, help="Of each kind, at most; all if not given.")
@click.option("--structural/--no-structural", default=None, help="The structural pass with all methods, or none.")
@click.option("--threads", type=int)
def main(
    out: Path,
    model: Path,
    given: tuple[tuple[str, Path, Path], ...],
    sizes: tuple[int, ...],
    seeds: int,
    test_tokens: int,
    structural: bool | None,
    threads: int | None,
) -> None:
    domains = read_domains(given)
    names = [domain.name for domain in domains]
    out.mkdir(parents=True, exist_ok=True)
    found: list[Finding] = []
    with coe.Model(model, n_sequences=DOCUMENTS_AT_ONCE, n_threads=threads) as loaded:
        passes = coe.PassOptions(structural=structural)
        for more in findings(loaded, domains, sizes, seeds, test_tokens, passes):
            found += more
            write(out, model, found, names)
    click.echo(tables(found, names))


def write(out: Path, model: Path, found: Sequence[Finding], domains: Sequence[str]) -> None:
    """All that is known so far: the whole takes long."""
    document = {"model": model.name, "findings": [asdict(finding) for finding in found]}
    (out / "results.json").write_text(json.dumps(document, indent=1))
    (out / "table.md").write_text(tables(found, domains))
    plot(found, domains).write_html(out / "plot.html", include_plotlyjs=True)


if __name__ == "__main__":
    main()
