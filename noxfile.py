"""What is run on this project: ``nox -s NAME``. All sessions share one environment; ``nox --no-venv`` uses yours."""

from __future__ import annotations

import re
from pathlib import Path

import nox

ROOT = Path(__file__).parent
SHARED = ".nox/shared"
PINNED = re.compile(r"(?<=llama-cpp-python==)[\d.]*\d")

SCHEMAS = {
    "citation-file-format": ["CITATION.cff"],
    "github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"],
    "github-issue-forms": [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/model.yml"],
    "github-workflows": [".github/workflows/ci.yml"],
}

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "unit"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, *extras: str) -> None:
    """Install the package in place with extras, unless the environment is the caller's."""
    if session.venv_backend != "none":
        session.install("-e", f".[{','.join(extras)}]")


@nox.session(venv_location=SHARED)
def unit(session: nox.Session) -> None:
    """Run the tests that need no model and no subprocess."""
    install(session, "test")
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session(venv_location=SHARED)
def tests(session: nox.Session) -> None:
    """Run all tests but the slow groups."""
    install(session, "test")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session(venv_location=SHARED)
def slow(session: nox.Session) -> None:
    """Run the slow groups: tests that take long, compile C++ or change files at random."""
    install(session, "test")
    session.run("pytest", "-m", "slow or cpp or fuzz", *session.posargs)


@nox.session(venv_location=SHARED)
def cpp(session: nox.Session) -> None:
    """Compile and run the C++ tests, also under sanitizers."""
    install(session, "test")
    session.run("pytest", "-m", "cpp", *session.posargs)


@nox.session(venv_location=SHARED)
def fuzz(session: nox.Session) -> None:
    """Change files at random and read them."""
    install(session, "test")
    session.run("pytest", "-m", "fuzz", *session.posargs)


@nox.session(venv_location=SHARED)
def lint(session: nox.Session) -> None:
    """Check style, types, import rules, known vulnerabilities, and files that have a schema."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    listed = str(session.run("git", "ls-files", "*.cpp", "*.h", "*.c", external=True, silent=True))
    session.run("clang-format", "--dry-run", "--Werror", *listed.split())
    session.run("python", ".ci/audit.py")
    for schema, files in SCHEMAS.items():
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@nox.session(venv_location=SHARED)
def docs(session: nox.Session) -> None:
    """Build the site without warnings and run its commands; --update-docs writes what they print into the pages."""
    install(session, "test", "docs")
    session.run("zensical", "build", "--clean", "--strict")
    session.run("pytest", "-m", "docs", *session.posargs)


@nox.session(venv_location=SHARED)
def cross(session: nox.Session) -> None:
    """Compile the core and the C library for Windows and macOS."""
    install(session, "test", "cross")
    session.run("python", "tools/cross_compile.py", *session.posargs)


@nox.session(venv_location=SHARED)
def bench(session: nox.Session) -> None:
    """Measure coe-native beside other tools: ``nox -s bench -- DIRECTORY [--llama-cpp BIN]``."""
    install(session, "test")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="none")
def pin(session: nox.Session) -> None:
    """Move to another release of llama-cpp-python, wherever it is named: ``nox -s pin -- VERSION``."""
    (version,) = session.posargs
    listed = str(session.run("git", "ls-files", "*.md", "pyproject.toml", external=True, silent=True))
    for path in (ROOT / name for name in listed.splitlines() if name != "CHANGELOG.md"):
        text = path.read_text(encoding="utf-8")
        changed = PINNED.sub(version, text)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            session.log(f"{path.relative_to(ROOT)}: llama-cpp-python=={version}")
