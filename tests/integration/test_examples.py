"""The examples of a corpus over many machines, with two workers on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe

EXAMPLES = Path(__file__).parents[2] / "examples" / "many_machines"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for a bundle of documents for each of two shards."""
    random = np.random.default_rng(5)
    documents = (random.integers(0, 256, random.integers(30, 120)).tolist() for _ in range(700))
    path = tmp_path_factory.mktemp("corpus") / "tokens.jsonl"
    path.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in documents))
    return path


@pytest.fixture(scope="module")
def whole(model_file: Callable[[str, str], Path], corpus: Path) -> bytes:
    """The file of the profile that one run makes."""
    path = corpus.with_name("whole.gguf")
    with coe.Model(model_file("olmoe", "Q4_K_M"), n_sequences=16, n_threads=1) as model:
        coe.profile_corpora(model, [coe.read_corpus(corpus)]).save(path)
    return path.read_bytes()


def test_slurm_shards_merge_to_the_whole(
    model_file: Callable[[str, str], Path], corpus: Path, whole: bytes, tmp_path: Path
) -> None:
    """Slurm starts each task of an array with its number in the environment."""
    out = tmp_path / "my.profile.gguf"
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "MODEL": str(model_file("olmoe", "Q4_K_M")),
        "CORPUS": str(corpus),
        "OUT": str(out),
        "SHARDS": "2",
    }
    tasks = [
        subprocess.Popen(
            ["bash", EXAMPLES / "profile.sbatch"], env={**environment, "SLURM_ARRAY_TASK_ID": str(index)}
        )
        for index in (1, 2)
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    first, again = tmp_path / "my.profile.gguf.shard-1-of-2", tmp_path / "later"
    first.rename(again)
    merge = ["bash", EXAMPLES / "merge.sbatch"]
    assert subprocess.run(merge, env=environment, capture_output=True, timeout=60, check=False).returncode == 2
    assert len(list(tmp_path.iterdir())) == 2, "what is there stays until all are"
    again.rename(first)
    subprocess.run(merge, env=environment, check=True, timeout=60)
    assert out.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [out]


def test_dask_shards_merge_to_the_whole(
    model_file: Callable[[str, str], Path], corpus: Path, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "my.profile.gguf"
    script, model = EXAMPLES / "profile_with_dask.py", model_file("olmoe", "Q4_K_M")
    run = subprocess.run(
        [sys.executable, script, model, "-c", corpus, "-o", out, "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "2 of 2 shards" in run.stderr
    assert out.read_bytes() == whole
