"""What the documentation shows is what happens: its commands run, and print what it says they print."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from support.documentation import blocks, run_page, update

from coe_native._native import core

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = sorted(
    page
    for page in (ROOT / "docs").rglob("*.md")
    if page != TUTORIAL and any(not block.skipped for block in blocks(page.read_text(encoding="utf-8")))
)

pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]


def check(page: Path, directory: Path, home: Path, config: pytest.Config) -> None:
    differences = run_page(page, directory, home)
    if config.getoption("--update-docs"):
        update(page, differences)
    else:
        assert not differences, "\n".join(f"{page.relative_to(ROOT)}:{d.command.line}: {d}" for d in differences)


def take_pictures(directory: Path) -> None:
    """Save the pictures of the tutorial's pages that the documentation shows."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in ("sweep", "report"):
            page = browser.new_page(viewport={"width": 900, "height": 700}, color_scheme="light")
            page.goto((directory / f"{name}.html").as_uri())
            page.locator("figure").first.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")
        browser.close()


def _amx_is_unused() -> bool:
    return core.WeightPlacement(devices=[], n_cpu_moe=0).repack


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory, home: Path, request: pytest.FixtureRequest) -> Path:
    """The directory in which a reader has followed the tutorial. The other pages go on from there."""
    directory = tmp_path_factory.mktemp("tutorial")
    check(TUTORIAL, directory, home, request.config)
    if request.config.getoption("--update-docs"):
        take_pictures(directory / "tutorial")
    return directory / "tutorial"


def test_commands_of_the_tutorial_print_what_it_shows(after_tutorial: Path) -> None:
    assert (after_tutorial / "specialist.gguf").exists()


def test_guides_have_commands_that_run() -> None:
    guides = {page.name for page in (ROOT / "docs" / "guides").glob("*.md")}
    without = {"import.md", "shell-completion.md"}
    assert guides - {page.name for page in PAGES} == without


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_print_what_the_page_shows(
    page: Path, after_tutorial: Path, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "$ curl" in page.read_text(encoding="utf-8") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if "llama_cpp.Llama(" in page.read_text(encoding="utf-8") and not _amx_is_unused():
        pytest.skip("llama.cpp's own code for AMX, which a plain Llama uses, ends the process")
    directory = tmp_path / "tutorial"
    shutil.copytree(after_tutorial, directory)
    check(page, directory, home, request.config)
