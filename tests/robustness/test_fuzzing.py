"""Untrusted files: fuzz targets replayed without a fuzzer, and changed files through the command line.

What the fuzzers have found is in the tests of what was mended. `tests/support/fuzz/targets.py` and
`tests/cpp/fuzz/` say how to run them for longer.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from support.fuzz.command_line import LINES, prepare, run_measured
from support.fuzz.targets import SEEDS, TARGETS
from support.model_files import append_entry
from support.random_models import write_random_model

from coe_native.cores import available_cores

pytestmark = pytest.mark.fuzz

SECONDS = os.environ.get("COE_FUZZ_SECONDS", "12")
"""For each target; as many run at once as there are cores."""

TESTS = Path(__file__).parents[1]

N_FILES = 150
"""Changed files of each kind."""

CPP_TARGETS = {
    "c_api": "c_api",
    "gguf_header": "gguf",
    "mask_file": "mask",
    "profile_file": "profile",
    "router_layout": "gguf",
    "tensor_blocks": "tensor_blocks",
}
"""The C++ core's targets, and the directories of their seeds."""


@pytest.mark.cpp
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_targets_survive_changed_inputs(tmp_path: Path, sanitized_core: Path) -> None:
    lines = [
        [str(sanitized_core / f"coe_fuzz_{target}"), SECONDS, *map(str, sorted((SEEDS / seeds).iterdir()))]
        for target, seeds in CPP_TARGETS.items()
    ]
    lines += [[sys.executable, "-W", "error", "-m", "support.fuzz.replay", target, SECONDS] for target in TARGETS]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}

    def replay(line: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(available_cores()) as threads:
        for run in threads.map(replay, lines):
            assert run.returncode == 0, (run.args, run.stderr[-8000:])
            (n_inputs,) = re.fullmatch(r"(\d+) inputs\n", run.stdout).groups()  # type: ignore[union-attr]
            assert int(n_inputs) > 20 * float(SECONDS)


@pytest.mark.parametrize("kind", LINES)
def test_commands_survive_changed_files(tmp_path: Path, kind: str) -> None:
    """In a process of its own, for it forks."""
    line = [sys.executable, "-m", "support.fuzz.command_line", kind, str(N_FILES), "7"]
    run = subprocess.run(
        line,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    first, _, *complaints = run.stdout.splitlines()
    assert not complaints, complaints
    # Both sides of what is tested: files that are refused, and files that are still good.
    assert re.search(r"\{.*\b0: [1-9]", first), first
    assert re.search(r"\b2: [1-9]", first), first


def test_the_harness_finds_planted_defects(tmp_path: Path) -> None:
    """A command that shows a traceback, and one that leaves half a file."""
    code = (
        "from pathlib import Path; from coe_native.masks.expert_mask import ExpertMask;"
        "from support.fuzz import command_line;"
        "ExpertMask.load = classmethod(lambda cls, path: Path('out.gguf').write_bytes(b'half') and 1 / 0);"
        "command_line.LINES['mask'] = ('prune parent.gguf --mask FILE -o out.gguf',);"
        "print(*command_line._main('mask', 3, 0), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.count("internal error (ZeroDivisionError") == 3
    assert len(list((tmp_path / "found").iterdir())) == 3


def _large_name(shop: Path) -> list[str]:
    write_random_model(shop / "large.gguf", "qwen3moe", extra_metadata={"general.name": "\0" * 60_000_000})
    return ["inspect", "large.gguf", "--json"]


def _large_architecture(shop: Path) -> list[str]:
    data = (shop / "parent.gguf").read_bytes()
    text = b"general.architecture" + struct.pack("<IQ", 8, 8) + b"qwen3moe"
    assert text in data
    longer = b"general.architecture" + struct.pack("<IQ", 8, 60_000_000) + b"x" * 60_000_000
    (shop / "large.gguf").write_bytes(data.replace(text, longer))
    return ["inspect", "large.gguf"]


def _many_lists(shop: Path) -> list[str]:
    entries = [
        struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 1, 1 << 22) + b"\x80" * (1 << 22)
        for key in (
            *(f"coe.mask.x{i}".encode() for i in range(10)),
            b"qwen3moe.attention.sliding_window_pattern",
        )
    ]
    source = shop / "parent.gguf"
    for number, entry in enumerate(entries):
        source = append_entry(source, shop / f"large{number}.gguf", entry)
    source.rename(shop / "large.gguf")
    return ["profile", "large.gguf", "-c", "tokens.npy", "-o", "out.gguf"]


def _many_mtp_layers(shop: Path) -> list[str]:
    key = b"qwen3moe.nextn_predict_layers"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, 2**32 - 1)
    append_entry(shop / "parent.gguf", shop / "large.gguf", entry)
    return ["inspect", "large.gguf"]


def _large_key(shop: Path) -> list[str]:
    (shop / "large.jsonl").write_text('{"' + "k" * 60_000_000 + '": 1}\n')
    return ["profile", "parent.gguf", "-c", "large.jsonl", "-o", "out.gguf"]


def _large_mask(shop: Path) -> list[str]:
    document = json.loads((shop / "mask.json").read_text())
    text = json.dumps(document | {"provenance": {"a": "LIST"}}).replace('"LIST"', "[" + "{}," * 5_000_000 + "{}]")
    (shop / "large.json").write_text(text)
    return ["prune", "parent.gguf", "--mask", "large.json", "-o", "out.gguf"]


def _large_profile(shop: Path) -> list[str]:
    """Of gigabytes, which take no space."""
    writer = GGUFWriter(shop / "large.gguf", "test")
    for key, text in {"type": "routing-profile", "name": "n"}.items():
        writer.add_string(f"general.{key}", text)
    writer.add_uint32("coe.profile.version", 1)
    for part, dtype in (("histogram", np.int64), ("weight_sum", np.float64)):
        writer.add_tensor_info(f"blk.0.router.{part}", (1 << 12, 1 << 16), np.dtype(dtype), 8 << 28)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with (shop / "large.gguf").open("r+b") as file:
        file.truncate(5 << 30)
    return ["score", "large.gguf"]


@pytest.mark.parametrize(
    "make",
    [_large_name, _large_architecture, _many_lists, _many_mtp_layers, _large_key, _large_mask, _large_profile],
)
def test_large_fields_take_little_memory_and_output(tmp_path: Path, make: Callable[[Path], list[str]]) -> None:
    """What small changed files do not reach."""
    prepare(tmp_path)
    outcome = run_measured(make(tmp_path), tmp_path)
    assert outcome.complaint() is None, outcome
    assert len(outcome.err) < 5000
    assert len(outcome.out) < 10_000
    # A long name is cut, long lists are not read, and a long history does no harm to a mask.
    assert outcome.status == (0 if make in (_large_name, _many_lists, _many_mtp_layers, _large_mask) else 2)
