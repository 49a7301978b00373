"""The documentation as text: its links, what may be shown as a command, and what it lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from support.architectures import ARCHITECTURES, COVERED

import coe_native as coe

ROOT = Path(__file__).parents[2]
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*SITE, *ROOT.glob("*.md"), *ROOT.glob("examples/*/*.md"), *ROOT.glob("third_party/*/*.md")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def read(page: Path) -> str:
    """A page's text, with that of the files that it includes."""
    text = page.read_text(encoding="utf-8")
    for line, file in re.findall(r'^(--8<-- "([\w.]+\.md)(?::page)?")$', text, re.MULTILINE):
        included = (ROOT / file).read_text(encoding="utf-8")
        text = text.replace(line, included.partition("[start:page] -->")[2].partition("<!--")[0] or included)
    return text


def parse(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(read(page))


def targets(page: Path) -> list[str]:
    """Where a page's links and images lead."""
    inner = [child for token in parse(page) for child in token.children or ()]
    return [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inner if token.attrs]


def anchors(page: Path) -> set[str]:
    """What can stand after the # of a link to a page."""
    tokens = parse(page)
    headings = (tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert page not in SITE or file.resolve().is_relative_to(ROOT / "docs"), f"{target} is not on the site"
        assert not anchor or anchor in anchors(file), target


@each_page
def test_commands_are_in_blocks_that_run(page: Path) -> None:
    """A block with a prompt is a console block at the left margin, which tests/documentation runs."""
    for token in parse(page):
        if token.type in ("fence", "code_block") and re.search(r"^\s*\$ ", token.content, re.MULTILINE):
            assert token.type == "fence", token.content
            assert token.info.startswith("console"), token.content


def test_the_readme_has_at_most_800_words() -> None:
    assert len(read(ROOT / "README.md").split()) <= 800


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^ +- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in SITE)


def test_the_python_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(\w+)`", text, re.MULTILINE)) | set(
        re.findall(r"^::: coe_native\.(\w+)$", text, re.MULTILINE)
    ) == set(coe.__all__) - {"__version__"}


@pytest.mark.parametrize("name", ["README.md", "docs/guides/gpu.md", "docs/concepts/supported-models.md"])
def test_the_number_of_tested_architectures_is_right(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert set(re.findall(r"(\d+) architectures", text)) == {str(len(COVERED))}
    assert set(re.findall(r"(\d+) variants", text)) <= {str(len(ARCHITECTURES))}


@pytest.mark.parametrize("method", coe.METHODS)
def test_every_scoring_method_is_explained(method: str) -> None:
    assert f"| `{method}`" in (ROOT / "docs" / "concepts" / "scores.md").read_text(encoding="utf-8")
