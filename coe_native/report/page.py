"""The page: figures, tables and provenance in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import plotly.offline

from coe_native import __version__
from coe_native.errors import InputError, printable
from coe_native.evaluation.sweep import Sweep
from coe_native.files.atomic import replacing
from coe_native.masks.build import build_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.report import figures
from coe_native.routing.concentration import concentration
from coe_native.routing.profile import RoutingProfile, not_of_one_model
from coe_native.surgery.plan import safety_notice
from coe_native.units import gigabytes

MOST_SWAPS = 300
"""Rows of the table of swaps; the mask file has them all."""


@dataclass(frozen=True)
class Table:
    """Texts by rows; `left`: so many first columns hold texts, the others numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A heading, a line on how to read what follows, pictures and tables."""

    title: str
    lead: str
    pictures: Sequence[figures.Picture] = ()
    tables: Sequence[Table] = ()


def report(
    path: str | Path,
    profiles: Mapping[str, RoutingProfile],
    *,
    keep: int,
    masks: Mapping[str, ExpertMask] | None = None,
    sweep: Sweep | None = None,
    method: str = "utility",
) -> None:
    """Writes a page about named profiles of one model: their scores, coverage and concentration, the overlap of
    their masks of `keep` experts (or of `masks`, if given), and a sweep. Whole or not at all.

    Raises InputError for profiles or masks of different models, and for what `score` and `build_mask` refuse.
    """
    first = next(iter(profiles.values()))
    sources = [
        *((profile.place, profile.fingerprint, list(profile.layers)) for profile in profiles.values()),
        *((mask.place, mask.fingerprint, sorted(mask.kept)) for mask in (masks or {}).values()),
        *([] if sweep is None else [("the sweep", sweep.fingerprint, list(first.layers))]),
    ]
    for place, fingerprint, layers in sources:
        if (fingerprint, layers) != (first.fingerprint, list(first.layers)):
            raise InputError(f"{place}: {not_of_one_model(first.place, first.fingerprint, fingerprint)}")
    shown = masks or {name: build_mask(profile, keep, method=method) for name, profile in profiles.items()}
    sections = [
        *(_of_profile(name, profile, method, alone=len(profiles) == 1) for name, profile in profiles.items()),
        _of_concentration(profiles),
        *(_of_mask(name, mask) for name, mask in shown.items()),
        *([_of_overlap(shown)] if len(shown) > 1 else []),
        *([_of_sweep(sweep)] if sweep is not None else []),
        _provenance(profiles, shown, sweep),
    ]
    _write(Path(path), first.model_name or first.architecture, sections)


def sweep_page(path: str | Path, sweep: Sweep) -> None:
    """Writes a page about a sweep alone, whole or not at all."""
    _write(Path(path), sweep.model, [_of_sweep(sweep)])


def _of_profile(name: str, profile: RoutingProfile, method: str, *, alone: bool) -> Section:
    pictures = [figures.score_map(profile, method)]
    if profile.has_ranks:
        pictures.append(figures.rank_map(profile))
    pictures.append(figures.coverage_curves(profile))
    return Section(
        "What the text needs" if alone else f"What {name} needs",
        f"{profile.n_tokens:,} tokens through {len(profile.layers)} MoE layers of {profile.n_experts} experts, "
        f"{profile.top_k} chosen for a token. Expert numbers mean nothing across layers: read each row by itself."
        + (f" Note: {profile.shortfall}." if not profile.is_whole else ""),
        pictures,
    )


def _of_concentration(profiles: Mapping[str, RoutingProfile]) -> Section:
    rows = []
    for name, profile in profiles.items():
        layers = concentration(profile)
        n = len(layers)
        rows.append(
            [
                name,
                f"{sum(layer.entropy for layer in layers) / n:.3f}",
                f"{sum(layer.gini for layer in layers) / n:.3f}",
                f"{sum(layer.experts_for_80 for layer in layers) / n:.1f}",
                f"{max(layer.experts_for_80 for layer in layers)}",
            ]
        )
    return Section(
        "How concentrated routing is",
        "The lower the entropy, and the higher the Gini coefficient, the fewer experts do the work.",
        figures.concentration_lines(profiles),
        [Table(["text", "entropy", "Gini", "experts for 80 %, mean", "in the worst layer"], rows)],
    )


def _of_mask(name: str, mask: ExpertMask) -> Section:
    swaps = [
        [
            str(swap.layer),
            {2: "structural", 3: "reasoning"}.get(swap.stage, str(swap.stage)),
            str(swap.incoming),
            str(swap.outgoing),
            f"{swap.incoming_score:.4g}",
            f"{swap.outgoing_score:.4g}",
        ]
        for swap in mask.swaps
    ]
    more = f" The first {MOST_SWAPS} are listed." if len(swaps) > MOST_SWAPS else ""
    columns = ["layer", "pass", "in", "out", "its score", "the other's"]
    return Section(
        f"Mask: {name}",
        f"{len(swaps)} experts came in for others with a higher score; {len(mask.unplaced)} structural experts "
        f"found nobody to replace.{more}",
        [figures.mask_map(mask)],
        [Table(columns, swaps[:MOST_SWAPS], left=2)] if swaps else [],
    )


def _of_overlap(masks: Mapping[str, ExpertMask]) -> Section:
    largest = max(masks.values(), key=lambda mask: mask.keep)
    by_chance = largest.keep / largest.n_experts
    return Section(
        "How far domains overlap",
        f"Of what it keeps, a mask shares {by_chance:.0%} by chance with one that keeps {largest.keep} of "
        f"{largest.n_experts} experts: only what is above says that two domains need the same.",
        [figures.overlap_map(masks), figures.overlap_lines(masks)],
    )


def _of_sweep(sweep: Sweep) -> Section:
    rows = []
    for point in sweep.points:
        for found, loss in zip(point.evaluations, sweep.losses(point), strict=True):
            rows.append(
                [
                    found.text,
                    point.method,
                    str(point.keep),
                    gigabytes(point.n_bytes),
                    f"{found.perplexity:.3f}",
                    f"{loss:+.1%}",
                    "" if found.kl_divergence is None else f"{found.kl_divergence:.4f}",
                    "" if found.top1_agreement is None else f"{found.top1_agreement:.1%}",
                ]
            )
    columns = ["text", "method", "keep", "size", "perplexity", "rise", "KL", "same top token"]
    return Section(
        "How small it can be",
        f"The parent ({sweep.n_experts} experts, {gigabytes(sweep.n_bytes)}) under live masks, on held-out "
        "text: what specialists of these sizes would say, before any is written.",
        figures.sweep_lines(sweep),
        [Table(columns, rows, left=2)],
    )


def _provenance(
    profiles: Mapping[str, RoutingProfile], masks: Mapping[str, ExpertMask], sweep: Sweep | None
) -> Section:
    first = next(iter(profiles.values()))
    facts = [
        ["model", first.model_name],
        ["architecture", first.architecture],
        ["fingerprint", first.fingerprint],
        *([f"mask {name}", f"keep {mask.keep}, digest {mask.digest}"] for name, mask in masks.items()),
        *([["sweep", f"{len(sweep.points)} masks on {len(sweep.parent)} texts"]] if sweep else []),
        ["made by", f"coe-native {__version__}"],
    ]
    corpora = [
        [name, corpus.name, f"{corpus.documents:,}", f"{corpus.tokens:,}", corpus.sha256]
        for name, profile in profiles.items()
        for corpus in profile.corpora
    ]
    return Section(
        "Where it comes from",
        "Which file, which text: what one needs to make it again.",
        tables=[
            Table(["", ""], facts, left=2),
            Table(["profile", "corpus", "documents", "tokens", "SHA-256 of its documents"], corpora, left=2),
        ],
    )


def _write(path: Path, model: str, sections: Sequence[Section]) -> None:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["printable"] = printable
    template = environment.from_string(files("coe_native.report").joinpath("page.html.j2").read_text("utf-8"))
    page = template.render(
        model=model,
        sections=sections,
        notice=safety_notice(),
        plotly=plotly.offline.get_plotlyjs(),
        draw=_draw,
    )
    with replacing(path) as file:
        file.write(page.encode())


def _draw(figure: go.Figure) -> Any:
    """A figure as HTML; the library that draws it is in the page already."""
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False}
    )
