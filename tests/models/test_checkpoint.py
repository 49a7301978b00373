"""Long runs that are interrupted, and go on: the final profile is the one of a run that was not."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coe_native as coe
from coe_native.corpus import bundles as bundles_module
from coe_native.corpus.in_memory import corpus_of
from coe_native.profiling.checkpoint import Checkpoint, Position
from coe_native.profiling.run import Progress

ModelFile = Callable[[str, str], Path]
COMMAND = Path(sys.executable).with_name("coe-native")


@pytest.fixture
def many_documents() -> list[list[int]]:
    """Shorter than a batch, longer than one, and longer than a window."""
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, length).tolist() for length in generator.integers(1, 200, 60)]


@pytest.mark.parametrize("family", ["qwen3moe", "jamba"])
def test_an_interrupted_run_gives_the_same_profile(
    tmp_path: Path,
    model_file: ModelFile,
    monkeypatch: pytest.MonkeyPatch,
    many_documents: list[list[int]],
    family: str,
) -> None:
    """Interrupted after few batches, and so resumed from many positions; windows go on from batch to batch, and
    two corpora share bundles."""
    monkeypatch.setattr(bundles_module, "BUNDLE_SIZE", 1500)
    corpora = [corpus_of(many_documents[:25], "first"), corpus_of(many_documents[25:], "second")]
    out = tmp_path / "p.gguf"
    with coe.Model(model_file(family, "Q4_K_M"), n_ctx=128, n_batch=50, n_sequences=4, n_threads=1) as model:
        whole = coe.profile_corpora(model, corpora, stats="contribution")
        positions = set()
        n_interruptions = 0
        while True:
            checkpoint = Checkpoint(out, every=0 if n_interruptions % 2 else 1e9, resume=True)
            n_batches = random.Random(n_interruptions).randint(1, 4)

            def interrupt(progress: Progress, most: int = n_batches, seen: list[int] = []) -> None:  # noqa: B006
                seen.append(progress.tokens)
                if len(seen) >= most:
                    seen.clear()
                    raise KeyboardInterrupt

            try:
                profile = coe.profile_corpora(
                    model, corpora, stats="contribution", checkpoint=checkpoint, progress=interrupt
                )
                break
            except KeyboardInterrupt:
                n_interruptions += 1
                if checkpoint.path.exists():
                    saved = coe.RoutingProfile.load(checkpoint.path)
                    assert saved.n_tokens == sum(record.tokens for record in saved.corpora)
                    positions.add(saved.n_tokens)
            assert n_interruptions < 1000
    assert len(positions) > 20
    profile.save(out)
    whole.save(tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def start(*arguments: object) -> subprocess.Popen[str]:
    line = [str(COMMAND), *map(str, arguments)]
    return subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # What runs in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def finish(process: subprocess.Popen[str], seconds: float | None = None) -> tuple[int, str]:
    """Exit status, and what was said; killed after so many seconds."""
    with process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
    return process.returncode, said


@pytest.fixture
def long_run(tmp_path: Path, model_file: ModelFile) -> list[object]:
    """A command that runs for some seconds: 900 documents in two bundles."""
    generator = np.random.default_rng(4)
    corpus = tmp_path / "tokens.jsonl"
    documents = (generator.integers(0, 256, generator.integers(30, 120)).tolist() for _ in range(900))
    corpus.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in documents))
    return ["profile", model_file("qwen3moe", "Q4_K_M"), "-c", corpus, "--threads", "1"]


def test_a_run_killed_many_times_gives_the_same_profile(tmp_path: Path, long_run: list[object]) -> None:
    """`kill -9` at random moments, with a checkpoint after every batch, so that many fall into its writing."""
    out, whole = tmp_path / "p.gguf", tmp_path / "whole.gguf"
    started = time.monotonic()
    assert finish(start(*long_run, "-o", whole))[0] == 0
    took = time.monotonic() - started
    moments = random.Random(0)
    n_kills = 0
    while not out.exists():
        process = start(*long_run, "-o", out, "--resume", "--checkpoint-every", "0")
        status, _ = finish(process, moments.uniform(0.2, 0.6) * took)
        assert status in (0, -signal.SIGKILL)
        n_kills += status != 0
        assert n_kills < 100
    assert n_kills >= 2
    assert out.read_bytes() == whole.read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["p.gguf", "tokens.jsonl", "whole.gguf"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_a_usable_profile(tmp_path: Path, long_run: list[object], number: int) -> None:
    out, checkpoint = tmp_path / "p.gguf", tmp_path / "p.gguf.checkpoint"
    process = start(*long_run, "-o", out, "--checkpoint-every", "0")
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    asked = time.monotonic()
    status, said = finish(process)
    assert time.monotonic() - asked < 5  # a second, on a machine that does nothing else
    assert status == (1 if number == signal.SIGINT else 128 + number)
    assert str(checkpoint) in said
    assert "--resume" in said
    assert not out.exists()
    assert coe.build_mask(coe.RoutingProfile.load(checkpoint), keep=8).keep == 8
    # Without a word about it, nothing is thrown away.
    status, said = finish(start(*long_run, "-o", out))
    assert "--resume" in said
    assert status == 2
    status, said = finish(start(*long_run, "-o", out, "--resume", "--batch", "256"))
    assert re.search("batch.*512.*256", said)
    assert status == 2
    status, said = finish(start("profile", long_run[1], "-c", checkpoint, "-o", out, "--force"))
    assert re.search(f"{re.escape(str(checkpoint))}.*input", said)
    assert status == 2
    assert checkpoint.exists()
    assert finish(start(*long_run, "-o", out, "--force"))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.gguf", "tokens.jsonl"]


def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, model_file: ModelFile, many_documents: list[list[int]]
) -> None:
    out = tmp_path / "p.gguf"
    text = corpus_of(many_documents)

    def interrupt(_: Progress) -> None:
        if Checkpoint(out, force=True).path.exists():
            raise KeyboardInterrupt

    with coe.Model(model_file("qwen3moe", "F32"), n_ctx=64, n_batch=64, n_threads=1) as model:
        with pytest.raises(KeyboardInterrupt):
            coe.profile_corpora(model, [text], checkpoint=Checkpoint(out, every=0), progress=interrupt)

        def refused(model: coe.Model, corpora: list[coe.Corpus], differs: str, **options: Any) -> None:
            with pytest.raises(coe.InputError, match=differs):
                coe.profile_corpora(model, corpora, checkpoint=Checkpoint(out, resume=True), **options)

        refused(model, [text, text], "corpus")
        refused(model, [corpus_of(many_documents[1:])], "corpus")
        refused(model, [text], "shard.*1/1.*1/2", shard=coe.Shard(1, 2))
        refused(model, [text], "stats.*contribution.*routing", stats="routing")
        profile = coe.profile_corpora(model, [text])
        model.apply(coe.build_mask(profile, keep=8))
        refused(model, [text], "mask")
    for options, differs in (
        ({"n_ctx": 32}, "ctx.*64.*32"),
        ({"n_batch": 32}, "batch.*64.*32"),
        ({"n_sequences": 2}, "sequences.*1.*2"),
    ):
        with coe.Model(
            model_file("qwen3moe", "F32"), **{"n_ctx": 64, "n_batch": 64, "n_threads": 1, **options}
        ) as model:
            refused(model, [text], differs)
    with coe.Model(model_file("qwen3moe", "Q4_K_M"), n_ctx=64, n_batch=64, n_threads=1) as model:
        refused(model, [text], "model")


@pytest.mark.parametrize("damage", ["a profile", "no position", "rubbish"])
def test_damaged_checkpoints_are_refused(
    tmp_path: Path, model_file: ModelFile, many_documents: list[list[int]], damage: str
) -> None:
    out = tmp_path / "p.gguf"
    checkpoint = Checkpoint(out, resume=True)
    with coe.Model(model_file("olmoe", "F32"), n_threads=1) as model:
        profile = coe.profile(model, many_documents[:3])
        if damage == "rubbish":
            checkpoint.path.write_bytes(b"GGUF" + bytes(100))
        elif damage == "a profile":
            profile.save(checkpoint.path)
        else:
            profile.save(checkpoint.path, more={"coe.checkpoint.bundle": "3", "coe.checkpoint.batch": 0})
        with pytest.raises(coe.InputError, match=r"p\.gguf\.checkpoint"):
            coe.profile_corpora(model, [corpus_of(many_documents[:3])], checkpoint=checkpoint)


@pytest.mark.parametrize("beyond", ["bundles", "batches", "corpora"])
def test_a_position_beyond_the_end_is_refused(
    tmp_path: Path, model_file: ModelFile, many_documents: list[list[int]], beyond: str
) -> None:
    """Such a checkpoint would end at once, as if all had been run."""
    out = tmp_path / "p.gguf"
    text = corpus_of(many_documents[:9])
    with coe.Model(model_file("olmoe", "F32"), n_batch=64, n_ctx=64, n_threads=1) as model:

        class TooFar(Checkpoint):
            def save(
                self, position: Position, profile: coe.RoutingProfile, until: coe.Stability | None = None
            ) -> None:
                if beyond == "corpora":
                    profile = replace(profile, corpora=profile.corpora * 2)
                further = {"bundles": Position(position.bundle + 2, 0), "batches": Position(position.bundle, 1000)}
                super().save(further.get(beyond, position), profile, until)

        coe.profile_corpora(model, [text], checkpoint=TooFar(out, every=0))
        with pytest.raises(coe.InputError, match=r"p\.gguf\.checkpoint"):
            coe.profile_corpora(model, [text], checkpoint=Checkpoint(out, resume=True))
