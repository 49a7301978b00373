"""Figures of profiles, masks and sweeps, for plotly."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from coe_native.evaluation.sweep import Sweep
from coe_native.masks.expert_mask import ExpertMask
from coe_native.masks.overlap import compare
from coe_native.routing.concentration import concentration, coverage
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import score

_GRID = "rgba(128,128,128,0.25)"
_SCALE = "Viridis"


class Picture(NamedTuple):
    """A figure and its title."""

    title: str
    figure: go.Figure


def _figure(x: str, y: str, height: int = 340) -> go.Figure:
    """Return an empty figure for light and dark pages; the page's style sets the colours of its texts."""
    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    figure.update_xaxes(title=x, gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    figure.update_yaxes(title=y, gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    return figure


def _height(n_layers: int) -> int:
    """Return the height of a heat map with a row for each layer, in pixels."""
    return 140 + max(160, 14 * n_layers)


def _heat_map(title: str, values: NDArray[np.float64], layers: Sequence[int], unit: str) -> Picture:
    """Return a heat map with layers from top to bottom and experts from left to right."""
    figure = _figure("expert", "layer", height=_height(len(layers)))
    figure.add_heatmap(
        z=values,
        y=[str(layer) for layer in layers],
        colorscale=_SCALE,
        colorbar={"thickness": 12, "title": {"text": unit, "side": "right"}},
        hovertemplate=f"layer %{{y}}, expert %{{x}}: %{{z:.4g}} {unit}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(showgrid=False)
    return Picture(title, figure)


def score_map(profile: RoutingProfile, method: str) -> Picture:
    """Return a heat map of all scores, as shares of the highest score in each layer.

    Layers differ in how many experts share the weight, so absolute scores would not compare.

    Args:
        profile: The profile.
        method: How experts are scored.
    """
    scores = score(profile, method)
    highest = scores.max(axis=1, keepdims=True)
    shares = np.divide(scores, highest, out=np.zeros_like(scores), where=highest > 0)
    return _heat_map(f"Scores by {method}", shares, profile.layers, "of the layer's highest score")


def rank_map(profile: RoutingProfile) -> Picture:
    """Return a heat map of mean ranks; experts that were never chosen have none."""
    ranks = np.where(np.isfinite(profile.mean_rank), profile.mean_rank, np.nan)
    return _heat_map("Mean rank (0: always first; blank: never chosen)", ranks, profile.layers, "rank")


def coverage_curves(profile: RoutingProfile) -> Picture:
    """Return curves of the share of routed weight that the best experts get, by their number."""
    curves = coverage(profile)
    what = "weight" if profile.has_weights else "choices"
    figure = _figure("experts kept in each layer", f"share of {what}")
    x = np.arange(1, profile.n_experts + 1)
    for layer, curve in zip(profile.layers, curves, strict=True):
        figure.add_scatter(
            x=x,
            y=curve,
            mode="lines",
            line={"width": 1, "color": "rgba(128,128,128,0.5)"},
            showlegend=False,
            hovertemplate=f"layer {layer}, keep %{{x}}: %{{y:.1%}}<extra></extra>",
        )
    figure.add_scatter(
        x=x,
        y=curves.mean(axis=0),
        mode="lines",
        name="all layers",
        line={"width": 3, "color": "#2a9d8f"},
        hovertemplate="all layers, keep %{x}: %{y:.1%}<extra></extra>",
    )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return Picture(f"Share of routed {what} that the best experts get", figure)


def concentration_lines(profiles: Mapping[str, RoutingProfile]) -> list[Picture]:
    """Return charts of entropy, Gini coefficient and experts for 80 % of the weight, by layer.

    Args:
        profiles: Profiles by name, one line for each.
    """
    titles = {
        "entropy": "Entropy of routing, as a share of the maximum",
        "gini": "Gini coefficient of routing",
        "experts_for_80": "Experts that together get 80 %",
    }
    figures = []
    for measure, title in titles.items():
        figure = _figure("layer", "")
        for name, profile in profiles.items():
            values = [getattr(layer, measure) for layer in concentration(profile)]
            figure.add_scatter(
                x=list(profile.layers), y=values, mode="lines+markers", name=html.escape(name), showlegend=True
            )
        figure.update_yaxes(rangemode="tozero")
        figures.append(Picture(title, figure))
    return figures


def mask_map(mask: ExpertMask) -> Picture:
    """Return a map of the kept experts, by the pass that added them."""
    layers = sorted(mask.kept)
    values = np.zeros((len(layers), mask.n_experts))
    came_in = {(swap.layer, swap.incoming): swap.stage for swap in mask.swaps}
    for row, layer in enumerate(layers):
        for expert in mask.kept[layer]:
            values[row, expert] = came_in.get((layer, expert), 1)
    figure = _figure("expert", "layer", height=_height(len(layers)))
    colours = ("rgba(128,128,128,0.15)", "#2a9d8f", "#e9c46a", "#e76f51")
    stages = ("dropped", "by score", "structural", "for reasoning")
    steps = [(edge, colour) for i, colour in enumerate(colours) for edge in (i / 4, (i + 1) / 4)]
    figure.add_heatmap(
        z=values,
        y=[str(layer) for layer in layers],
        zmin=-0.5,
        zmax=3.5,
        colorscale=steps,
        colorbar={"thickness": 12, "tickvals": [0, 1, 2, 3], "ticktext": stages},
        customdata=np.array(stages)[values.astype(int)],
        hovertemplate="layer %{y}, expert %{x}: %{customdata}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
    figure.update_xaxes(showgrid=False)
    return Picture(f"Kept experts: {mask.keep} of {mask.n_experts}", figure)


def overlap_map(masks: Mapping[str, ExpertMask]) -> Picture:
    """Return a heat map of the experts that two masks share, as a share of the smaller mask.

    Args:
        masks: Masks by name.
    """
    names = [html.escape(name) for name in masks]
    values = [[_shared(first, second) for second in masks.values()] for first in masks.values()]
    figure = _figure("", "", height=160 + 60 * len(masks))
    figure.add_heatmap(
        z=values,
        x=names,
        y=names,
        zmin=0,
        zmax=1,
        colorscale=_SCALE,
        texttemplate="%{z:.0%}",
        colorbar={"thickness": 12, "tickformat": ".0%"},
        hovertemplate="%{x} and %{y} share %{z:.1%}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    return Picture("Experts shared by two masks", figure)


def _shared(first: ExpertMask, second: ExpertMask) -> float:
    overlaps = compare(first, second)
    return sum(overlap.shared for overlap in overlaps) / (len(overlaps) * min(first.keep, second.keep))


def overlap_lines(masks: Mapping[str, ExpertMask]) -> Picture:
    """Return a chart of the experts that two masks share in each layer, and by chance.

    Args:
        masks: Masks by name.
    """
    figure = _figure("layer", "experts")
    names = list(masks)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    by_chance: set[float] = set()
    for first, second in pairs:
        overlaps = compare(masks[first], masks[second])
        x = [overlap.layer for overlap in overlaps]
        pair = html.escape(f"{first} and {second}")
        figure.add_scatter(x=x, y=[o.shared for o in overlaps], mode="lines+markers", name=pair)
        by_chance.add(overlaps[0].by_chance)
    for chance in sorted(by_chance):
        figure.add_scatter(
            x=x,
            y=[chance] * len(x),
            mode="lines",
            name=f"by chance: {chance:g}",
            line={"dash": "dash", "color": "rgba(128,128,128,0.9)"},
        )
    figure.update_yaxes(rangemode="tozero")
    return Picture("Shared experts by layer, and by chance", figure)


def sweep_lines(sweep: Sweep) -> list[Picture]:
    """Return the charts of a sweep."""
    return _lines_by_size(sweep) if sweep.has_several else _lines_by_experts(sweep)


def _lines_by_experts(sweep: Sweep) -> list[Picture]:
    """Return charts of perplexity and KL divergence by experts kept, for each text and method."""
    loss, divergence = (_figure("experts kept in each layer", unit) for unit in ("rise", "nats"))
    for method in sweep.methods:
        points = [point for point in sweep.points if point.method == method]
        for index, parent in enumerate(sweep.parent):
            name = html.escape(f"{parent.text}, {method}" if len(sweep.methods) > 1 else parent.text)
            keeps = [point.keep for point in points]
            loss.add_scatter(
                x=keeps, y=[sweep.losses(point)[index] for point in points], mode="lines+markers", name=name
            )
            of_text = [point.evaluations[index].kl_divergence for point in points]
            divergence.add_scatter(x=keeps, y=of_text, mode="lines+markers", name=name)
    loss.update_yaxes(tickformat="+.0%", rangemode="tozero")
    divergence.update_yaxes(rangemode="tozero")
    for figure in (loss, divergence):
        figure.update_layout(showlegend=True)
    return [
        Picture("Rise of perplexity over the parent's", loss),
        Picture("KL divergence to the parent", divergence),
    ]


def _lines_by_size(sweep: Sweep) -> list[Picture]:
    """Return a chart of perplexity by size for each text: a line for each model, and the frontier of all."""
    pictures = []
    for index, parent in enumerate(sweep.parent):
        figure = _figure("size in MB", "rise")
        for model in sweep.models:
            points = sorted((p for p in sweep.points if p.model == model), key=lambda p: p.n_bytes)
            figure.add_scatter(
                x=[point.n_bytes / 1e6 for point in points],
                y=[sweep.losses(point)[index] for point in points],
                text=[f"{point.keep} experts" for point in points],
                mode="lines+markers",
                name=html.escape(model),
            )
        if index == 0:
            best = sorted((point for point in sweep.points if point.frontier), key=lambda p: p.n_bytes)
            figure.add_scatter(
                x=[point.n_bytes / 1e6 for point in best],
                y=[sweep.losses(point)[0] for point in best],
                mode="lines",
                name="frontier",
                line={"dash": "dash", "color": "rgba(128,128,128,0.9)"},
            )
        figure.update_yaxes(tickformat="+.0%", rangemode="tozero")
        figure.update_layout(showlegend=True)
        pictures.append(Picture(f"Rise of perplexity by size, on {parent.text}", figure))
    return pictures
