"""What readers of untrusted files must do with any bytes: refuse them by InputError or CoeError, or read something
that can be used and written again. Anything else that comes out is a defect.

With atheris, which sees what has been covered (``pip install atheris``):

    cd tests && python -m support.fuzz model -max_total_time=1800

`test_fuzzing.py` replays the seeds, and changes of them, without it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import coe_native as coe
from coe_native.cli.commands.inspect import facts_of
from coe_native.corpus.batching import Tokens, batches, tokenize, windows
from coe_native.corpus.bundles import Shard, bundles
from coe_native.corpus.documents import Message
from coe_native.corpus.read import read_corpus
from coe_native.evaluation.problems import program, read_problems
from coe_native.importers.import_file import import_file
from coe_native.llama.conversations import renderings
from coe_native.model.gguf_file import GgufFile
from coe_native.profiling.checkpoint import Checkpoint
from coe_native.routing.scores import supports_method
from coe_native.surgery.plan import Plan, plan_prune, plan_zero

SEEDS = Path(__file__).parent / "seeds"

DIRECTORY = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, DIRECTORY, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """A function that takes any bytes, and the directory of its seeds."""

    run: Callable[[bytes], None]
    seeds: str

    def seed_files(self) -> list[Path]:
        return sorted((SEEDS / self.seeds).iterdir())


def _write(name: str, data: bytes, room: int = 0) -> Path:
    """A file of these bytes, and as many zeros behind them as `room`, which take no space."""
    path = DIRECTORY / name
    path.write_bytes(data)
    if room:
        with path.open("r+b") as file:
            file.truncate(len(data) + room)
    return path


def _check_plan(plan: Plan) -> None:
    """Its header must be one that we read, of the same tensors."""
    header = plan.header()
    written = GgufFile(_write("planned.gguf", header, plan.n_bytes - len(header)))
    assert [tensor.name for tensor in written.tensors] == [tensor.source.name for tensor in plan.tensors]
    assert written.header.data_offset == len(header)
    assert written.data_end + -written.data_end % written.header.alignment == plan.n_bytes


def model(data: bytes) -> None:
    """A model's header, with zeros for weights."""
    path = _write("model.gguf", data, room=1 << 20)
    try:
        moe = coe.MoeModel(path)
        json.dumps(facts_of(moe))
        for keep in {moe.top_k, moe.n_experts // 2, moe.n_experts} - {0}:
            if keep <= 512:
                kept = {block: tuple(range(keep)) for block in moe.blocks}
                mask = coe.ExpertMask(moe.architecture, moe.fingerprint, moe.n_experts, keep, kept)
                _check_plan(plan_zero(moe, mask))
                _check_plan(plan_prune(moe, mask))
                if moe.mtp_blocks:
                    _check_plan(plan_prune(moe, mask, drop_mtp=True))
    except coe.CoeError:
        return


def profile(data: bytes) -> None:
    """A profile, and the checkpoint of a run."""
    path = _write("p.gguf.checkpoint", data)
    try:
        read = coe.RoutingProfile.load(path)
    except coe.InputError:
        return
    again = DIRECTORY / "again.gguf"
    read.save(again)
    same = coe.RoutingProfile.load(again)
    assert np.array_equal(same.histograms, read.histograms)
    assert np.array_equal(same.weight_sum, read.weight_sum)
    assert (same.corpora, same.n_tokens, same.layers) == (read.corpora, read.n_tokens, read.layers)
    assert (same.outputs is None) == (read.outputs is None)
    if same.outputs is not None and read.outputs is not None:
        assert np.array_equal(same.outputs.norm_sum, read.outputs.norm_sum)
        assert np.array_equal(same.outputs.weighted_norm_sum, read.outputs.weighted_norm_sum)
    known = [method for method in coe.METHODS if supports_method(read, method)]
    for method in known:
        assert coe.score(read, method).shape == read.histograms.shape[:2]
    try:
        for keep in (read.top_k, read.n_experts // 2):
            coe.build_mask(read, keep, reasoning=read, method=known[-1])
        read + read
    except coe.InputError:
        pass
    with contextlib.suppress(coe.InputError):
        Checkpoint(DIRECTORY / "p.gguf", resume=True).begin({"ctx": 512}, old_run=dict)


def mask(data: bytes) -> None:
    try:
        read = coe.ExpertMask.load(_write("mask.json", data))
    except coe.InputError:
        return
    again = DIRECTORY / "again.json"
    read.save(again)
    assert coe.ExpertMask.load(again).digest == read.digest
    assert all(len(read.dropped(block)) == read.n_experts - read.keep for block in read.kept)


class _Bytes:
    """A model whose tokens are bytes."""

    n_vocab = 256

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens:  # noqa: ARG002
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def tokenize_long(self, pieces: Iterable[str], *, parse_special: bool = False) -> Iterator[Tokens]:
        return (self.tokenize(piece, parse_special=parse_special) for piece in pieces)

    def render_chat(self, messages: tuple[Message, ...], tools: str = "", *, reply: bool = False) -> str:  # noqa: ARG002
        turns, _ = list(renderings(messages, tools))[-1]
        return "".join(turn["role"] + turn["content"] for turn in turns)


def corpus(data: bytes) -> None:
    """The first byte says which kind of file the others are."""
    suffixes = (".jsonl", ".npy", ".txt", ".json", ".csv", ".jsonl.gz")
    suffix = suffixes[data[0] % len(suffixes)] if data else ".txt"
    path = _write(f"corpus{suffix}", data[1:])
    for skip_bad in (False, True):
        try:
            read = read_corpus(path, skip_bad=skip_bad)
        except coe.InputError:
            continue
        assert len(read.sha256) == 64
        parts = [part for index in (1, 2) for part in bundles([read, read], Shard(index, 2))]
        assert sum(len(part.documents) for part in parts) == 2 * len(read.documents)
        for document in read.documents[:100]:
            try:
                tokens = tokenize(document, _Bytes())
            except coe.InputError:
                continue
            run = [batch.tokens for batch in batches(windows([tokens], 16), 8, 4)]
            assert np.array_equal(np.concatenate([tokens[:0], *run]), tokens)


def imported(data: bytes) -> None:
    """The first byte says what the others are: a pickle in a file of torch.save, such a file, or a GGUF."""
    kind, content = data[:1], data[1:]
    path = DIRECTORY / "imported"
    if kind == b"\0":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            for number in range(3):
                archive.writestr(f"archive/data/{number}", _STORAGE)
    else:
        path.write_bytes(content)
    try:
        read = import_file(path, n_experts=8)
    except coe.InputError:
        return
    again = DIRECTORY / "again"
    read.save(again)
    if isinstance(read, coe.ExpertMask):
        assert coe.ExpertMask.load(again).digest == read.digest
        return
    same = coe.RoutingProfile.load(again)
    assert np.array_equal(same.histograms, read.histograms)
    assert same.top_k == read.top_k
    with contextlib.suppress(coe.InputError):
        coe.build_mask(read, read.n_experts // 2, method="frequency")


_STORAGE = np.arange(512, dtype=np.int64).tobytes()


def judged(data: bytes) -> None:
    """A sweep, or a set of problems."""
    path = _write("judged.json", data)
    with contextlib.suppress(coe.InputError):
        read = coe.Sweep.load(path)
        read.save(DIRECTORY / "again.json")
        assert coe.Sweep.load(DIRECTORY / "again.json") == read
        read.as_csv()
        assert all(read.smallest(method, 0.1) in (None, *read.points) for method in read.methods)
    with contextlib.suppress(coe.InputError):
        for problem in read_problems(path):
            assert problem.entry_point in program(problem, "pass")


TARGETS = {
    "model": Target(model, "gguf"),
    "profile": Target(profile, "profile"),
    "mask": Target(mask, "mask"),
    "corpus": Target(corpus, "corpus"),
    "imported": Target(imported, "imported"),
    "judged": Target(judged, "judged"),
}
