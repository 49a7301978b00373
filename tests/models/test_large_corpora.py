"""Corpora that are not held in memory give the tokens, profiles and checkpoints that others give."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.limits import lower_limits
from support.random_models import write_random_model
from support.texts import random_text

import coe_native as coe
from coe_native.corpus import bundles
from coe_native.corpus.corpora import StoredDocuments
from coe_native.llama import long_texts
from coe_native.masks.options import MaskOptions
from coe_native.masks.stability import Stability
from coe_native.profiling import cutter, tally
from coe_native.profiling.checkpoint import Checkpoint
from coe_native.profiling.run import Progress
from coe_native.recipes import demo
from coe_native.routing.output_norms import OutputNorms

PIECES = (
    "  ",
    "\n\n",
    "\n",
    " ",
    "word",
    "ab",
    "aaaaaaaaaaaa",
    "Ünï",
    "1234567",
    "。",
    "語",
    "\t",
    "<s>",
    ".",
    "'ll",
)


def byte_level() -> dict[str, Any]:
    """A tokenizer that merges bytes, as GPT-2's does."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    merges = ["w o", "wo r", "wor d", "a a", "aa aa", "Ġ word", "1 2", "a b", "Ċ Ċ", "Ġ Ġ"]
    tokens = [shown[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    return {"model": "gpt2", "pre": "llama-bpe", "tokens": tokens, "merges": merges, "bos_token_id": 0}


def sentencepiece() -> dict[str, Any]:
    """A tokenizer that puts a blank before a text, as Llama 2's does."""
    words = ["▁", "▁word", "▁a", "aa", "aaaa", "ab", "wo", "rd", "word", "▁▁", "▁wo", "12", "34", "1234", "語"]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *words,
        *"abwordünï1234567.<>s/",
    ]
    tokens = list(dict.fromkeys(tokens))
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0 if i < 259 else -float(i) for i in range(len(tokens))],
        "token_type": kinds,
        "bos_token_id": 1,
        "add_bos_token": True,
    }


@pytest.fixture(scope="module", params=["byte level", "sentencepiece", "demo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[coe.Model]:
    path = demo.MODEL
    if request.param != "demo":
        keys = byte_level() if request.param == "byte level" else sentencepiece()
        path = tmp_path_factory.mktemp("tokenizers") / "model.gguf"
        metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        write_random_model(path, "llama", n_vocab=len(keys["tokens"]), extra_metadata=metadata)
    with coe.Model(path, n_ctx=64) as model:
        yield model


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=150), st.integers(1, 90), st.booleans())
def test_long_texts_have_the_tokens_of_the_whole(
    tokenizer: coe.Model, parts: list[str], size: int, parse_special: bool
) -> None:
    text = "".join(parts).encode(errors="ignore").decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "CHUNK", 120)
        patch.setattr(long_texts, "_AFTER", 60)
        pieces = (text[at : at + size] for at in range(0, len(text), size))
        found = list(tokenizer.text.tokenize_long(pieces, parse_special=parse_special))
    whole = tokenizer.tokenize(text, parse_special=parse_special)
    assert np.concatenate(found).tolist() == whole.tolist()


def test_long_texts_are_tokenised_in_chunks(tokenizer: coe.Model) -> None:
    text = "\n".join(random_text(seed) for seed in range(40)).replace("word", "wo rd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "CHUNK", 1000)
        patch.setattr(long_texts, "_AFTER", 200)
        longest = max(map(len, tokenizer.text.tokenize_long([text])))
    assert longest < 2 * len(tokenizer.tokenize(text[:1500]))


@pytest.fixture
def corpora(tmp_path: Path) -> list[Path]:
    """Records, a long text between short ones, and token ids."""
    texts = [random_text(seed, 10 + 31 * (seed % 7)) for seed in range(14)]
    lines, prose, ids = (tmp_path / name for name in ("lines.jsonl", "prose.txt", "ids.npy"))
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prose.write_text("\n\n".join(reversed(texts)))
    np.save(ids, np.random.default_rng(0).integers(0, 300, 700))
    return [lines, prose, ids]


def assert_equal(found: coe.RoutingProfile, expected: coe.RoutingProfile) -> None:
    assert found.corpora == expected.corpora
    np.testing.assert_array_equal(found.histograms, expected.histograms)
    np.testing.assert_array_equal(found.weight_sum, expected.weight_sum)
    for name in OutputNorms.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found.outputs, name), getattr(expected.outputs, name))


def divide_long_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "LONG_DOCUMENT", 1000)
    for module in (cutter, tally):
        monkeypatch.setattr(module, "PART_TOKENS", 200)


@pytest.mark.parametrize(("n_ctx", "n_batch", "n_sequences"), [(128, 128, 8), (96, 256, 8), (256, 100, 1)])
def test_large_corpora_have_the_profiles_of_small_ones(
    corpora: list[Path], monkeypatch: pytest.MonkeyPatch, n_ctx: int, n_batch: int, n_sequences: int
) -> None:
    """Whole, in shards, in random order, and where short windows go with the long ones of a long text."""
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 3000)
    monkeypatch.setattr(bundles, "SHUFFLED_BUNDLE_SIZE", 2000)
    divide_long_documents(monkeypatch)
    shards = [coe.Shard(), *(coe.Shard(index, 3) for index in (1, 2, 3))]

    def profiles(model: coe.Model) -> list[coe.RoutingProfile]:
        read = [coe.read_corpus(path) for path in corpora]
        assert isinstance(read[0].documents, StoredDocuments) == are_low
        run = [coe.profile_corpora(model, read, shard=shard, stats="contribution") for shard in shards]
        until = Stability(1.0, MaskOptions(keep=8))
        return [*run, coe.profile_corpora(model, read, stats="contribution", until=until)]

    with coe.Model(demo.MODEL, n_ctx=n_ctx, n_batch=n_batch, n_sequences=n_sequences, n_threads=1) as model:
        are_low = False
        expected = profiles(model)
        lower_limits(monkeypatch)
        are_low = True
        totals: list[Progress] = []
        coe.profile_corpora(model, [coe.read_corpus(path) for path in corpora], progress=totals.append)
        for found, wanted in zip(profiles(model), expected, strict=True):
            assert_equal(found, wanted)
    assert totals[-1].total == totals[-1].tokens == expected[0].n_tokens


def test_runs_of_large_corpora_are_resumed(
    tmp_path: Path, corpora: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a run that held its corpora continues with one that does not, at any position."""
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 3000)
    divide_long_documents(monkeypatch)
    out = tmp_path / "p.gguf"
    with coe.Model(demo.MODEL, n_ctx=128, n_batch=128, n_sequences=8, n_threads=1) as model:
        whole = coe.profile_corpora(model, [coe.read_corpus(path) for path in corpora], stats="contribution")
        positions = set()
        for attempt in range(1000):
            n_batches = random.Random(attempt).randint(1, 12)
            seen: list[Progress] = []

            def interrupt(progress: Progress, most: int = n_batches, seen: list[Progress] = seen) -> None:
                seen.append(progress)
                if len(seen) >= most:
                    raise KeyboardInterrupt

            try:
                resumed = coe.profile_corpora(
                    model,
                    [coe.read_corpus(path) for path in corpora],
                    stats="contribution",
                    checkpoint=Checkpoint(out, every=0, resume=True),
                    progress=interrupt,
                )
                break
            except KeyboardInterrupt:
                positions.add(Checkpoint(out, resume=True).path.read_bytes())
            lower_limits(monkeypatch)
    assert len(positions) > 5
    assert_equal(resumed, whole)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_shards_divide_a_long_document(
    tmp_path: Path, corpora: list[Path], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Each shard runs its parts alone and knows how many tokens these have; together they are the whole run."""
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 3000)
    divide_long_documents(monkeypatch)
    lower_limits(monkeypatch)
    with coe.Model(demo.MODEL, n_ctx=96, n_batch=256, n_sequences=8, n_threads=1) as model:
        read = [coe.read_corpus(corpora[1])]
        assert read[0].size > 1000
        whole = coe.profile_corpora(model, read)
        parts, runs = [], []
        for index in range(1, count + 1):
            told: list[Progress] = []
            parts.append(coe.profile_corpora(model, read, shard=coe.Shard(index, count), progress=told.append))
            runs.append(told[-1].tokens if told else 0)
            assert not told or (told[-1].is_exact and told[-1].total == runs[-1])
    assert [part.n_tokens for part in parts] == runs
    assert sum(runs) == whole.n_tokens
    assert max(runs) - min(runs) < 200 + 96
    assert [part.corpora[0].documents for part in parts] == [1] + [0] * (count - 1)
    coe.merge(parts).save(tmp_path / "merged.gguf")
    whole.save(tmp_path / "whole.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_old_checkpoints_do_not_go_on_within_long_documents(
    tmp_path: Path, corpora: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1.0 ran a long document in one piece, so its batches were others."""

    def interrupt(progress: Progress) -> None:
        if progress.tokens > 300:
            raise KeyboardInterrupt

    def run(model: coe.Model, **options: Any) -> coe.RoutingProfile:
        return coe.profile_corpora(model, [coe.read_corpus(corpora[1])], **options)

    def recorded_before(self: tally.Tally, until: Stability | None, _: str) -> dict[str, int | str]:
        digest = tally._digest_of([corpus.old_sha256 for corpus in self._corpora])
        return {name: value for name, value in now(self, until, digest).items() if name != "part-size"}

    now = tally.Tally._run
    out = tmp_path / "p.gguf"
    with coe.Model(demo.MODEL, n_ctx=128, n_batch=128, n_sequences=8, n_threads=1) as model:
        whole = run(model)
        with monkeypatch.context() as patch:
            patch.setattr(tally.Tally, "_run", recorded_before)
            with pytest.raises(KeyboardInterrupt):
                run(model, checkpoint=Checkpoint(out, every=0), progress=interrupt)
        assert_equal(run(model, checkpoint=Checkpoint(out, resume=True)), whole)
        divide_long_documents(monkeypatch)
        with pytest.raises(coe.InputError, match="belongs to a run with another part-size"):
            run(model, checkpoint=Checkpoint(out, resume=True))


_MEASURED = """
import resource, sys
import coe_native as coe

class EnoughError(Exception): pass

def stop(progress):
    if progress.is_exact:
        raise EnoughError

corpus = coe.read_corpus(sys.argv[2])
with coe.Model(sys.argv[1], n_sequences=16, n_threads=1) as model:
    try:
        coe.profile_corpora(model, [corpus], stats="contribution", progress=stop)
    except EnoughError:
        pass
print(len(corpus.documents), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, suffix: str) -> None:
    """All of it is read and tokenised, while few batches are run."""
    peaks = []
    for n_texts in (1000, 80_000):
        path = tmp_path / f"{n_texts}.{suffix}"
        texts = (random_text(seed % 999) for seed in range(n_texts))
        path.write_text(
            "".join(f"{text}\n" if suffix == "txt" else json.dumps({"text": text}) + "\n" for text in texts)
        )
        command = [sys.executable, "-c", _MEASURED, str(demo.MODEL), str(path)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.split()
        assert int(printed[0]) == (1 if suffix == "txt" else n_texts)
        peaks.append(int(printed[1]) / 1024)
    assert peaks[1] < peaks[0] + 100, "megabytes; the corpus has 80"
