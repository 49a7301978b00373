"""The report in a browser, and the numbers that it shows against brute force."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, sync_playwright
from test_masking import make_profile
from test_sweep import made

import coe_native as coe
from coe_native.report.page import report, sweep_page
from coe_native.routing.concentration import concentration, coverage, routed_shares

ProfileOf = Callable[..., coe.RoutingProfile]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>alert(1)</script><b>x"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


# The contrast of two colours, by WCAG 2's definition of relative luminance.
CONTRAST = """([one, other]) => {
    const luminance = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => {
            v /= 255;
            return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [a, b] = [luminance(one), luminance(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""


@pytest.fixture
def page_file(tmp_path: Path, profile_of: ProfileOf) -> Path:
    """All that a page can show, of names that are no good."""
    profile = profile_of("qwen3moe", "F32")
    hostile = replace(profile, model_name=HOSTILE)
    mask = coe.build_mask(profile, 8, structural_rank=1.5, structural_min=1)
    assert mask.swaps
    sweep = made({4: 0.5, 8: 0.1, 16: 0.0})
    page = tmp_path / "page.html"
    report(
        page,
        {HOSTILE: hostile, "other": profile},
        keep=8,
        masks={HOSTILE: mask, "other": coe.build_mask(profile, 8, method="frequency")},
        sweep=replace(
            sweep, fingerprint=profile.fingerprint, parent=tuple(replace(e, text=HOSTILE) for e in sweep.parent)
        ),
    )
    return page


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_picture(browser: Browser, page_file: Path, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    wrong: list[str] = []
    asked: list[str] = []
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    pictures = page.locator("figure")
    n_pictures = pictures.count()
    assert n_pictures == 2 * 3 + 3 + 2 + 2 + 2
    for i in range(n_pictures):
        picture = pictures.nth(i)
        drawn = picture.locator(".heatmaplayer image, .scatterlayer path.js-line, .scatterlayer .points path")
        drawn.first.wait_for(state="attached", timeout=10_000)
        box = picture.locator("svg.main-svg").first.bounding_box()
        assert box is not None
        assert box["width"] > 0.8 * (min(width, 1152) - 60)
        assert box["height"] > 150
        label = picture.locator("svg text.xtitle, svg .xtick text").first
        colours = [label.evaluate("e => getComputedStyle(e).fill"), _background(picture)]
        assert page.evaluate(CONTRAST, colours) > 7
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page moves sideways"
    texts = page.locator("h1, h2, p, td, th, figcaption")
    assert HOSTILE in page.locator("h1").inner_text()
    for i in range(0, texts.count(), 7):
        colours = [texts.nth(i).evaluate("e => getComputedStyle(e).color"), _background(texts.nth(i))]
        assert page.evaluate(CONTRAST, colours) > 4.5
    assert not wrong
    assert asked == [page_file.as_uri()], "it needs no network"
    page.close()


def _background(element: object) -> str:
    """The colour behind an element: its own, or that of the nearest one around it that has any."""
    colour = element.evaluate(  # type: ignore[attr-defined]
        """e => {
            for (; e; e = e.parentElement) {
                const colour = getComputedStyle(e).backgroundColor;
                if (!/, 0\\)$|transparent/.test(colour)) return colour;
            }
            return getComputedStyle(document.documentElement).backgroundColor;
        }"""
    )
    return str(colour)


def test_the_page_says_where_it_comes_from_and_warns(page_file: Path) -> None:
    text = page_file.read_text()
    assert "safety or alignment" in text
    assert "<script>alert" not in text


def test_a_profile_without_weights_or_ranks_has_a_page(tmp_path: Path) -> None:
    profile = make_profile(1)
    counts = profile.histograms.sum(axis=2, keepdims=True)
    bare = replace(
        profile,
        histograms=counts,
        weight_sum=np.zeros(counts.shape),
        weight_sum_rest=np.zeros(counts.shape),
        has_weights=False,
        n_chosen=profile.top_k,
    )
    report(tmp_path / "page.html", {"bare": bare}, keep=bare.router_shape.half, method="frequency")
    text = (tmp_path / "page.html").read_text()
    assert "share of choices" in text
    assert "Mean rank" not in text
    with pytest.raises(coe.InputError, match="choices without their weights"):
        report(tmp_path / "page.html", {"bare": bare}, keep=bare.router_shape.half)


def test_a_sweep_alone_has_a_page(tmp_path: Path) -> None:
    sweep_page(tmp_path / "page.html", made({4: 0.5, 8: 0.1}))
    assert "How small it can be" in (tmp_path / "page.html").read_text()


def test_other_models_are_refused(tmp_path: Path, profile_of: ProfileOf) -> None:
    ours, theirs = profile_of("qwen3moe", "F32"), profile_of("olmoe", "F32")
    with pytest.raises(coe.InputError, match="is of another model"):
        report(tmp_path / "page.html", {"a": ours, "b": theirs}, keep=8)
    with pytest.raises(coe.InputError, match="is of another model"):
        report(tmp_path / "page.html", {"a": ours}, keep=8, masks={"b": coe.build_mask(theirs, 8)})
    with pytest.raises(coe.InputError, match="the sweep: is of another model"):
        report(tmp_path / "page.html", {"a": ours}, keep=8, sweep=made({4: 0.5}))
    untied = replace(coe.build_mask(ours, 8), fingerprint="unknown")
    with pytest.raises(coe.InputError, match="of no model in particular: import it with --model"):
        report(tmp_path / "page.html", {"a": ours}, keep=8, masks={"b": untied})
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 2**32 - 1))
def test_concentration_equals_brute_force(seed: int) -> None:
    profile = make_profile(seed)
    for shares, found in zip(routed_shares(profile).tolist(), concentration(profile), strict=True):
        n = len(shares)
        assert sum(shares) == pytest.approx(1)
        entropy = -sum(p * math.log(p) for p in shares if p > 0) / math.log(n)
        gini = sum(abs(a - b) for a in shares for b in shares) / (2 * n * n * (sum(shares) / n))
        best = sorted(shares, reverse=True)
        needed = next(k for k in range(1, n + 1) if sum(best[:k]) >= 0.8 - 1e-9)
        assert found.entropy == pytest.approx(entropy)
        assert found.gini == pytest.approx(gini)
        assert found.experts_for_80 == needed
    assert (np.diff(coverage(profile), axis=1) >= -1e-12).all()
    np.testing.assert_allclose(coverage(profile)[:, -1], 1)


def test_concentration_at_its_ends() -> None:
    n_tokens, n = 10, 8
    one = np.zeros((2, n, 1), np.int64)
    one[0, 3, 0] = n_tokens
    one[1, :, 0] = [2, 2, 1, 1, 1, 1, 1, 1]
    profile = coe.RoutingProfile("a", "m", "0" * 64, (0, 1), n_tokens, one, one.astype(float))
    alone, spread = concentration(profile)
    assert (alone.entropy, alone.gini, alone.experts_for_80) == (0, 1 - 1 / n, 1)
    assert spread.entropy > 0.95
    assert spread.experts_for_80 == 6
