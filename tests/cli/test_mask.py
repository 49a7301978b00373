"""`coe-native mask`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import (
    RUN,
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    one_family,
    report,
    run,
)

import coe_native as coe

MASK_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--no-structural", {"structural": False}),
    ("--method frequency --structural-rank 1.4", {"method": "frequency", "structural_rank": 1.4}),
    ("--method rank-weighted --structural-min 30", {"method": "rank-weighted", "structural_min": 30}),
]


@one_family
@pytest.mark.parametrize(("options", "arguments"), MASK_OPTIONS, ids=[o or "none" for o, _ in MASK_OPTIONS])
def test_mask_is_that_of_the_library(made: Made, tmp_path: Path, options: str, arguments: dict[str, Any]) -> None:
    out = tmp_path / "mask.json"
    shown = report("mask", made.profile, "--keep", 5, *shlex.split(options), "-o", out)
    mask = coe.ExpertMask.load(out)
    expected = coe.build_mask(coe.RoutingProfile.load(made.profile), 5, **arguments)
    assert mask == expected
    assert (shown["keep"], shown["experts"], shown["digest"]) == (5, 16, expected.digest)
    assert all(len(set(kept)) == 5 for kept in mask.kept.values())


@one_family
def test_mask_makes_room_for_reasoning(made: Made, tmp_path: Path) -> None:
    reasoning, out = tmp_path / "reasoning.gguf", tmp_path / "mask.json"
    np.save(tmp_path / "reasoning.npy", np.arange(64, dtype=np.int32))
    ok("profile", made.files["Q4_K_M"], "-c", tmp_path / "reasoning.npy", "-o", reasoning, *RUN)
    options = ("--no-structural", "--reasoning", reasoning, "--reasoning-swaps", 2)
    shown = report("mask", made.profile, "--keep", 8, *options, "-o", out)
    mask = coe.ExpertMask.load(out)
    assert 0 < shown["reasoning_swaps"] == len(mask.swaps) <= 2 * 3
    came_in = {(swap.layer, swap.incoming) for swap in mask.swaps}
    assert all(expert in mask.kept[layer] for layer, expert in came_in)


def test_several_domains_make_a_mask(texts: Path, tmp_path: Path) -> None:
    profiles = [texts / "python.gguf", texts / "prose.gguf"]
    for combine in ("sum", "max"):
        ok("mask", *profiles, "--combine", combine, "--keep", 16, "-o", tmp_path / f"{combine}.json")
        made = coe.ExpertMask.load(tmp_path / f"{combine}.json")
        loaded = [coe.RoutingProfile.load(path) for path in profiles]
        assert made.kept == coe.build_mask(loaded, 16, combine=combine).kept


BAD_INPUT: list[tuple[str, str]] = [
    ("mask profile.gguf --keep 4 -o out.json --reasoning other-profile.gguf", r"other-profile\.gguf.*model"),
    ("mask profile.gguf --keep 1 -o out.json", r"keep.*\b2\b.*\b1\b"),
    ("mask profile.gguf --keep 9 -o out.json", r"keep.*\b8\b.*\b9\b"),
    ("mask profile.gguf --keep 4 -o profile2.gguf --reasoning profile2.gguf --force", r"profile2\.gguf.*input"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("mask profile.gguf --keep 4 --structural-rank nan -o o.json", "structural.rank"),
    ("mask profile.gguf --keep 4 -o nowhere/", "nowhere/.*slash"),
    ("mask profile.gguf -o out.json", "--keep"),
    ("mask profile.gguf --keep -1 -o out.json", "keep"),
    ("mask profile.gguf --keep 4 -o out.json --method magic", "utility.*rank-weighted.*frequency"),
    ("mask profile.gguf --keep 4 -o out.json --reasoning profile.gguf --reasoning-swaps -1", "reasoning.swaps"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)


BAD_LINES: list[tuple[str, str]] = [
    ("mask python.gguf -o out.json", "--keep.*--fit"),
    ("mask python.gguf --keep 4 --fit 1G -o out.json", "--keep.*--fit"),
    ("mask python.gguf --fit 1G -o out.json", "--model"),
    ("mask python.gguf --fit 1X -o out.json", "1X"),
    ("mask python.gguf --fit 12 -o out.json", "1M"),
    ("mask python.gguf prose.gguf --keep 8 -o out.json", "--combine.*sum.*max"),
    ("mask python.gguf --combine max --keep 8 -o out.json", "--combine"),
    ("mask other.gguf python.gguf --combine max --keep 4 -o out.json", "model"),
    ("mask other.gguf --keep 4 --model DEMO -o out.json", r"other\.gguf.*model"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)


def test_the_published_recipe_is_one_option(texts: Path, tmp_path: Path) -> None:
    profile = texts / "python.gguf"
    masks = {}
    for name, options in {
        "published": ["--published"],
        "spelled out": ["--method", "utility", "--structural"],
        "default": [],
    }.items():
        ok("mask", profile, "--keep", 16, *options, "-o", tmp_path / f"{name}.json")
        masks[name] = coe.ExpertMask.load(tmp_path / f"{name}.json")
    assert masks["published"].digest == masks["spelled out"].digest != masks["default"].digest
    assert [mask.provenance["recipe"] for mask in masks.values()] == ["published", "published", "own"]
    for option in (["--method", "ean"], ["--no-structural"], ["--structural-min", "3"]):
        done = run("mask", profile, "--keep", 16, "--published", *option, "-o", tmp_path / "x.json")
        assert (done.status, "--published" in done.err) == (2, True)


def test_a_profile_without_norms_is_scored_by_utility_and_told(texts: Path, tmp_path: Path) -> None:
    profile = coe.RoutingProfile.load(texts / "python.gguf")
    replace(profile, outputs=None).save(tmp_path / "bare.gguf")
    done = ok("mask", tmp_path / "bare.gguf", "--keep", 16, "-o", tmp_path / "m.json")
    assert "utility" in done.err
    assert "scored by" not in ok("mask", texts / "python.gguf", "--keep", 16, "-o", tmp_path / "n.json").err
    assert coe.ExpertMask.load(tmp_path / "m.json").provenance["method"] == "utility"
