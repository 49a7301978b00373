"""Which files of a directory are text that somebody wrote: not hidden, not ignored, not generated, each once."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pathspec

from coe_native.corpus.readers.columnar_helper import ARROW, PARQUET
from coe_native.corpus.readers.opening import inner_suffix
from coe_native.errors import InputError
from coe_native.files.regular import open_regular

STRUCTURED = (".jsonl", ".ndjson", ".jsonlines", ".jl", ".json", ".csv", ".tsv", *PARQUET, *ARROW, ".npy")

GENERATED_FOLDERS = (
    *("node_modules", "bower_components", "site-packages", "__pycache__"),
    *("venv", "virtualenv", "env", "build", "dist", "target"),
)
"""Folders of dependencies and of what a build writes."""

_GENERATED_FILES = re.compile(
    r"(package-lock\.json|npm-shrinkwrap\.json|yarn\.lock|pnpm-lock\.yaml|poetry\.lock|uv\.lock|pdm\.lock|Pipfile\.lock"
    r"|Cargo\.lock|composer\.lock|Gemfile\.lock|go\.sum|.*\.min\.(js|css)|.*\.(js|css)\.map)"
)
_DATASET_METADATA = frozenset(("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"))
"""What Hugging Face's datasets writes beside data."""

_CACHED = re.compile(r"(cache-.*|tmp\w{8})\.arrow")
"""Results that Hugging Face's datasets has kept beside the data that they were made from."""

_CARD = re.compile(rb"---[ \t]*\r?\n(?:(?!---).*\n)*?(dataset_info|configs|task_categories|size_categories):")
"""The beginning of a dataset's README."""

_DATA = (*PARQUET, *ARROW)


@dataclass(frozen=True)
class DirectoryRules:
    """Which files of a directory are left out.

    Attributes:
        exclude: Patterns of files to leave out, as in ``.gitignore``.
        include_ignored: Read what ``.gitignore`` names, and folders of dependencies and builds.
    """

    exclude: tuple[str, ...] = ()
    include_ignored: bool = False


def files_of(directory: Path, rules: DirectoryRules, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the files of a directory to read, in the order of their names.

    Args:
        directory: The directory.
        rules: What is left out.
        skipped: Counts the files that are left out, by reason.

    Raises:
        InputError: A pattern of `rules` is not valid.
    """
    inside = directory.resolve()
    prefix = f"{directory.as_posix().removeprefix('./')}/"
    patterns = [pattern.removeprefix("./").removeprefix(prefix) for pattern in rules.exclude]
    if not all(patterns):
        raise InputError("--exclude: a pattern is empty")
    excluded = _patterns(patterns, "--exclude")
    found: dict[tuple[int, int], Path] = {}
    is_dataset = False
    for path in sorted(_walk(directory, rules, skipped), key=lambda path: path.relative_to(directory).as_posix()):
        reason = _reason_to_skip(path, path.relative_to(directory), inside, excluded, rules)
        if reason == "":
            state = path.stat()
            twin = found.get((state.st_dev, state.st_ino))
            if twin is not None:
                skipped["another name of a file that is read"] += 1
                if _rank(path) >= _rank(twin):
                    continue
            found[state.st_dev, state.st_ino] = path
            is_dataset = is_dataset or inner_suffix(path) in _DATA
        elif reason is not None:
            skipped[reason] += 1
    for path in sorted(found.values(), key=lambda path: path.relative_to(directory).as_posix()):
        if path.name in _DATASET_METADATA or (path.name == "README.md" and (is_dataset or _is_card(path))):
            skipped["description of a dataset"] += 1
        elif _CACHED.fullmatch(path.name):
            skipped["cache of a dataset"] += 1
        else:
            yield path


def _is_card(path: Path) -> bool:
    with contextlib.suppress(OSError, InputError), open_regular(path) as file:
        return _CARD.match(file.read(1 << 14)) is not None
    return False


def _rank(path: Path) -> int:
    """Return 0 for a name that tells a format: caches hold files without one, and links to them."""
    return 0 if inner_suffix(path) in STRUCTURED else 1


def _patterns(patterns: Sequence[str], origin: str) -> pathspec.GitIgnoreSpec:
    try:
        return pathspec.GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise InputError(f"{origin}: {error}") from error


def _walk(directory: Path, rules: DirectoryRules, skipped: Counter[str]) -> Iterator[Path]:
    """Yield everything in a directory and below it that is not a directory. Symlinks are not followed."""
    above = () if rules.include_ignored else tuple(_gitignores_above(directory))
    waiting: list[tuple[Path, tuple[tuple[Path, pathspec.GitIgnoreSpec], ...]]] = [(directory, above)]
    while waiting:
        folder, ignored = waiting.pop()
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
        except OSError:
            skipped["folder that cannot be read"] += 1
            continue
        if not rules.include_ignored and any(entry.name == ".gitignore" for entry in entries):
            ignored = (*ignored, *_gitignore(folder))
        for entry in entries:
            path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
            if _is_ignored(path, ignored, is_folder):
                skipped["named in .gitignore"] += 1
            elif not is_folder:
                yield path
            elif entry.name in GENERATED_FOLDERS and not rules.include_ignored:
                skipped["folder of dependencies or of a build"] += 1
            elif entry.name.startswith("."):
                skipped["hidden"] += 1
            else:
                waiting.append((path, ignored))


def _gitignores_above(directory: Path) -> Iterator[tuple[Path, pathspec.GitIgnoreSpec]]:
    """Yield the patterns of the folders between a directory and the root of its Git repository."""
    here = directory.resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
    for folder in reversed([folder for folder in here.parents if folder.is_relative_to(root)]):
        for _, patterns in _gitignore(folder):
            yield folder, patterns


def _gitignore(folder: Path) -> Iterator[tuple[Path, pathspec.GitIgnoreSpec]]:
    with contextlib.suppress(OSError, InputError, ValueError), open_regular(folder / ".gitignore") as file:
        text = file.read(1 << 20).decode("utf-8-sig", errors="replace")
        yield folder, pathspec.GitIgnoreSpec.from_lines(filter(_is_pattern, text.splitlines()))


def _is_pattern(line: str) -> bool:
    """Return whether a line of a .gitignore can be read. Git ignores the others."""
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def _is_ignored(path: Path, ignored: Sequence[tuple[Path, pathspec.GitIgnoreSpec]], is_folder: bool) -> bool:
    """Return what the innermost .gitignore with a pattern for a path says of it."""
    for folder, patterns in reversed(ignored):
        inside = path if path.is_relative_to(folder) else path.resolve()
        name = inside.relative_to(folder).as_posix() + ("/" if is_folder else "")
        result = patterns.check_file(name)
        if result.include is not None:
            return bool(result.include)
    return False


def _reason_to_skip(
    path: Path, name: Path, inside: Path, excluded: pathspec.GitIgnoreSpec, rules: DirectoryRules
) -> str | None:
    """Return why a file is not read; "": it is read; None: it is nothing to read, such as a pipe."""
    try:
        if not path.is_file():
            return None
        # A link in somebody else's directory must not lead to the user's own files.
        leads_outside = not path.resolve().is_relative_to(inside)
    except OSError:  # for example a link to a name that is too long
        leads_outside = True
    reasons = {
        "link that leads out of the directory": leads_outside,
        "hidden": path.name.startswith("."),
        "named by --exclude": excluded.match_file(name.as_posix()),
        "lock file or generated file": not rules.include_ignored and bool(_GENERATED_FILES.fullmatch(path.name)),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
