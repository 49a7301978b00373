"""The checks and tools of this project: ``nox -s NAME``, each in an environment of its own.

``nox --no-venv --no-install -s NAME`` uses the active environment instead, as ``.ci/run`` does.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PINNED = re.compile(r"(?:(?<=llama-cpp-python==)|(?<=built for llama-cpp-python ))[0-9a-z.]*[0-9a-z]")

SCHEMAS = {
    "citation-file-format": "CITATION.cff",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-workflows": ".github/workflows/*.yml",
}

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "unit"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def unit(session: nox.Session) -> None:
    """Run the tests that need no model and no subprocess."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests but the slow groups."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow groups: tests that take long, compile C++ or change files at random."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "slow or cpp or fuzz", *session.posargs)


@nox.session
def cpp(session: nox.Session) -> None:
    """Compile and run the C++ tests, also under sanitizers."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "cpp", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Change files at random and read them."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "fuzz", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, import rules, known vulnerabilities, and files that have a schema."""
    session.install("-e", ".[lint,serve]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    listed = str(session.run("git", "ls-files", "*.cpp", "*.h", "*.c", external=True, silent=True))
    session.run("clang-format", "--dry-run", "--Werror", *listed.split())
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure")
    session.run("python", ".ci/audit.py")
    for schema, pattern in SCHEMAS.items():
        files = map(str, ROOT.glob(pattern))
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site without warnings and run its commands; --update-docs writes what they print."""
    session.install("-e", ".[test,docs]")
    session.run("zensical", "build", "--clean", "--strict")
    session.run("pytest", "-m", "docs", *session.posargs)


@nox.session
def rest(session: nox.Session) -> None:
    """Do at once what `docs` and `slow` do, side by side."""
    session.install("-e", ".[test,docs]")
    session.run("zensical", "build", "--clean", "--strict")
    marks = "docs or slow or cpp or fuzz"
    session.run("pytest", "-n", "auto", "--dist", "loadfile", "-m", marks, *session.posargs)


@nox.session
def cross(session: nox.Session) -> None:
    """Compile the core and the C library for Windows and macOS."""
    session.install("-e", ".[cross]")
    session.run("python", "tools/cross_compile.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare coe-native with other tools: ``nox -s bench -- DIRECTORY [--llama-cpp BIN]``."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="none")
def pin(session: nox.Session) -> None:
    """Move to another release of llama-cpp-python, wherever it is named: ``nox -s pin -- VERSION``."""
    if len(session.posargs) != 1:
        session.error("name one release: nox -s pin -- VERSION")
    (version,) = session.posargs
    listed = str(session.run("git", "ls-files", "*.md", "pyproject.toml", external=True, silent=True))
    for path in (ROOT / name for name in listed.splitlines() if name != "CHANGELOG.md"):
        text = path.read_text(encoding="utf-8")
        changed = PINNED.sub(version, text)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            session.log(f"{path.relative_to(ROOT)}: llama-cpp-python=={version}")
