"""Which method keeps the right experts: specialists by every method, judged live on held-out text.

    python -m benchmarks.quality OUT [--model MODEL --domain NAME=PROFILE_TEXT,TEST_TEXT …]

Takes the demo's model and its three kinds of text, or a model and kinds that are given. For each kind, method and
number of experts kept (75, 50 and 25 %) it masks the parent live and takes perplexity and KL divergence on all
kinds: of masks from the whole profile text, and of masks from parts of it, drawn at random with several seeds, so
that the spread is seen. OUT gets results.json, table.md and plot.html.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import coe_native as coe
from coe_native import demo
from coe_native.batching import tokenize
from coe_native.corpus import Document
from coe_native.profiler import DOCUMENTS_AT_ONCE

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
            self.fail(f"{value!r} is no kind of text; write it like python=profile.jsonl,test.jsonl", param, ctx)
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
    model: coe.Model, domains: Sequence[Domain], sizes: Sequence[int], seeds: int, test_tokens: int
) -> Iterator[Finding]:
    n_experts = model.moe.n_experts
    keeps = {max(model.moe.top_k, round(share * n_experts)): share for share in SHARES}
    texts = {domain.name: part(model, domain.test, test_tokens, None) for domain in domains}
    runs = [(WHOLE, 0), *itertools.product(map(str, sizes), range(seeds))]
    for domain, (size, seed) in itertools.product(domains, runs):
        corpus = domain.profile if size == WHOLE else part(model, domain.profile, int(size), seed)
        profile = coe.profile_corpora(model, [corpus], stats="contribution")
        swept = coe.sweep(model, profile, texts, keeps=list(keeps), methods=coe.METHODS)
        for point in swept.points:
            for judged, loss in zip(point.evaluations, swept.losses(point), strict=True):
                share = keeps[point.keep]
                yield Finding(
                    domain.name, size, seed, point.method, share, judged.text, loss, judged.kl_divergence
                )


def spread(values: Sequence[float], unit: str) -> str:
    """Mean and standard deviation."""
    mean = statistics.mean(values)
    shown = f"{mean:+.1%}" if unit == "%" else f"{mean:.3f}"
    if len(values) < 2:
        return shown
    deviation = statistics.stdev(values)
    return f"{shown} ± {100 * deviation:.1f}" if unit == "%" else f"{shown} ± {deviation:.3f}"


def tables(found: Sequence[Finding], domains: Sequence[str]) -> str:
    """Markdown: one table for each size of the text that chose the experts."""
    lines = []
    sizes = list(dict.fromkeys(finding.size for finding in found))
    for size in sizes:
        of_size = [finding for finding in found if finding.size == size]
        lines += [f"Experts chosen by {size} tokens of a kind", ""]
        heads = [f"{share:.0%}: {name}" for share in SHARES for name in domains]
        lines += [f"| method | {' | '.join(heads)} | other kinds at 50% | KL at 50%: own | other |"]
        lines += ["| --- |" + " --- |" * (len(heads) + 3)]
        for method in coe.METHODS:
            by = [finding for finding in of_size if finding.method == method]
            cells = [
                spread([f.loss for f in by if f.share == share and f.domain == f.text == name], "%")
                for share in SHARES
                for name in domains
            ]
            half = [f for f in by if f.share == 0.5]
            own, other = ([f for f in half if (f.text == f.domain) == same] for same in (True, False))
            cells += [
                f"{statistics.mean(f.loss for f in other):+.1%}",
                f"{statistics.mean(f.kl for f in own):.3f}",
                f"{statistics.mean(f.kl for f in other):.3f}",
            ]
            lines += [f"| {method} | {' | '.join(cells)} |"]
        lines += [""]
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
            losses = [[f.loss for f in of_panel if f.method == method and f.size == size] for size in sizes]
            figure.add_scatter(
                x=sizes,
                y=[statistics.mean(values) for values in losses],
                error_y={"array": [statistics.stdev(v) if len(v) > 1 else 0.0 for v in losses]},
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
@click.option("--threads", type=int)
def main(
    out: Path,
    model: Path,
    given: tuple[tuple[str, Path, Path], ...],
    sizes: tuple[int, ...],
    seeds: int,
    test_tokens: int,
    threads: int | None,
) -> None:
    domains = read_domains(given)
    names = [domain.name for domain in domains]
    out.mkdir(parents=True, exist_ok=True)
    found = []
    with coe.Model(model, n_sequences=DOCUMENTS_AT_ONCE, n_threads=threads) as loaded:
        for finding in findings(loaded, domains, sizes, seeds, test_tokens):
            found.append(finding)
    document: Mapping[str, Any] = {"model": str(model), "findings": [vars(finding) for finding in found]}
    (out / "results.json").write_text(json.dumps(document, indent=1))
    (out / "table.md").write_text(tables(found, names))
    plot(found, names).write_html(out / "plot.html")
    click.echo(tables(found, names))


if __name__ == "__main__":
    main()
