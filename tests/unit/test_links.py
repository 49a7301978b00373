"""Links of the Markdown files outside docs/ lead somewhere. The documentation's build checks those inside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("examples/*/*.md"), *ROOT.glob("third_party/*/*.md")]


def parse(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def targets(page: Path) -> list[str]:
    """Where a page's links and images lead."""
    inner = [child for token in parse(page) for child in token.children or ()]
    return [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inner if token.attrs]


def anchors(page: Path) -> set[str]:
    """What can stand behind the # of a link to a page."""
    tokens = parse(page)
    headings = (tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_has_links_to_check() -> None:
    assert len(targets(ROOT / "README.md")) > 10
