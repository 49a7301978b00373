"""HTML pages with figures, tables and provenance, each one self-contained file."""

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
from coe_native.routing.scores import default_method
from coe_native.surgery.notice import safety_notice
from coe_native.units import gigabytes

MOST_SWAPS = 300
"""Maximum rows of the table of swaps. The mask file has all of them."""


@dataclass(frozen=True)
class Table:
    """A table of texts and numbers.

    Attributes:
        columns: Names of the columns.
        rows: Texts of the cells, row by row.
        left: Number of leading columns that hold texts; the others hold numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: Its heading.
        lead: A line on how to read what follows.
        pictures: Its figures.
        tables: Its tables.
    """

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
    method: str | None = None,
) -> None:
    """Write a page about profiles of one model, their masks and a sweep.

    It shows scores, coverage and concentration of the profiles, and the overlap of the masks. The file is
    written whole or not at all.

    Args:
        path: The HTML file to write.
        profiles: Profiles by name.
        keep: Experts that the masks of the profiles keep.
        masks: Masks by name, to show instead of those.
        sweep: A sweep to show too.
        method: How experts are scored: one of METHODS; None: the default for the profiles.

    Raises:
        InputError: Profiles or masks are of different models, or `score` or `build_mask` refuses a profile.
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
    method = method or default_method(profiles.values())
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
    """Write a page about a sweep alone, whole or not at all.

    Args:
        path: The HTML file to write.
        sweep: The sweep.
    """
    _write(Path(path), sweep.model, [_of_sweep(sweep)])


def _of_profile(name: str, profile: RoutingProfile, method: str, *, alone: bool) -> Section:
    pictures = [figures.score_map(profile, method)]
    if profile.has_ranks:
        pictures.append(figures.rank_map(profile))
    pictures.append(figures.coverage_curves(profile))
    return Section(
        "What the text needs" if alone else f"What {name} needs",
        f"{profile.n_tokens:,} tokens through {len(profile.layers)} MoE layers of {profile.n_experts} experts, "
        f"{profile.top_k} chosen for a token. Experts of different layers are unrelated: read each row by itself."
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
    columns = ["layer", "pass", "in", "out", "score in", "score out"]
    return Section(
        f"Mask: {name}",
        f"{len(swaps)} experts replaced others with a higher score; {len(mask.unplaced)} structural experts could "
        f"not be added: no replaceable expert was left.{more}",
        [figures.mask_map(mask)],
        [Table(columns, swaps[:MOST_SWAPS], left=2)] if swaps else [],
    )


def _of_overlap(masks: Mapping[str, ExpertMask]) -> Section:
    largest = max(masks.values(), key=lambda mask: mask.keep)
    by_chance = largest.keep / largest.n_experts
    return Section(
        "How far domains overlap",
        f"By chance, a mask shares {by_chance:.0%} of its experts with one that keeps {largest.keep} of "
        f"{largest.n_experts}. Only a larger share shows that two domains need the same experts.",
        [figures.overlap_map(masks), figures.overlap_lines(masks)],
    )


def _of_sweep(sweep: Sweep) -> Section:
    rows = []
    for point in sweep.points:
        for found, loss in zip(point.evaluations, sweep.losses(point), strict=True):
            rows.append(
                [
                    found.text,
                    *([point.model] if sweep.has_several else []),
                    point.method,
                    str(point.keep),
                    gigabytes(point.n_bytes),
                    f"{found.perplexity:.3f}",
                    f"{loss:+.1%}",
                    "" if found.kl_divergence is None else f"{found.kl_divergence:.4f}",
                    "" if found.top1_agreement is None else f"{found.top1_agreement:.1%}",
                ]
            )
    models = ["model"] if sweep.has_several else []
    columns = ["text", *models, "method", "keep", "size", "perplexity", "rise", "KL", "same top token"]
    parent = f"{len(sweep.models)} files of the parent" if sweep.has_several else "The parent"
    return Section(
        "How small a specialist can be",
        f"{parent} ({sweep.n_experts} experts, {gigabytes(sweep.n_bytes)}) under live masks, on held-out "
        "text: how specialists of these sizes would perform, before any is written.",
        figures.sweep_lines(sweep),
        [Table(columns, rows, left=2 + len(models))],
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
        "Provenance",
        "The model, masks and texts that are needed to make this page again.",
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
    """Return a figure as HTML, without the plotly library, which the page has already."""
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False}
    )
