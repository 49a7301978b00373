"""What the documentation shows is what happens: its commands run, and print what it says they print."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.documentation import blocks, run_page, update
from support.random_models import write_random_model
from support.texts import write_texts

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if page != TUTORIAL and any(not block.skipped for block in blocks(page.read_text(encoding="utf-8")))
)

pytestmark = pytest.mark.docs


def check(page: Path, directory: Path, home: Path, config: pytest.Config) -> None:
    differences = run_page(page, directory, home)
    if config.getoption("--update-docs"):
        update(page, differences)
    else:
        assert not differences, "\n".join(f"{page.relative_to(ROOT)}:{d.command.line}: {d}" for d in differences)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory, home: Path, request: pytest.FixtureRequest) -> Path:
    """The directory in which a reader has followed the tutorial. The other pages go on from there."""
    directory = tmp_path_factory.mktemp("tutorial")
    check(TUTORIAL, directory, home, request.config)
    return directory / "tutorial"


def test_the_tutorial_says_what_happens(after_tutorial: Path) -> None:
    assert (after_tutorial / "specialist.gguf").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_say_what_happens(
    page: Path, after_tutorial: Path, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    directory = tmp_path / "tutorial"
    shutil.copytree(after_tutorial, directory)
    check(page, directory, home, request.config)
