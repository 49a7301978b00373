"""The report in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.pages import HOSTILE, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    return write_page(tmp_path / "page.html")


@pytest.mark.browser
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
