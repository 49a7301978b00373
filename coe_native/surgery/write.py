"""Expert surgery: writing what a plan says. It is streamed, so that memory stays flat whatever the file's size."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from coe_native.cores import checking_threads
from coe_native.errors import InputError
from coe_native.files.atomic import check_space, check_target, remove, replacing
from coe_native.files.copying import copy_range
from coe_native.files.prefetch import Prefetch
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.surgery.plan import (
    Plan,
    PlannedTensor,
    Readers,
    Run,
    check_finite,
    plan_prune,
    plan_zero,
)

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def _quiet(done: int, total: int) -> None:
    pass


def prune(
    parent: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    drop_mtp: bool = False,
    split_max_bytes: int | None = None,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = _quiet,
) -> Path:
    """Writes the specialist: a GGUF with the kept experts only, their blocks byte for byte.

    `drop_mtp`: without the layers that predict further tokens, of which as many experts as elsewhere stay
    otherwise, those of the largest router rows. `split_max_bytes`: in files of at most so many bytes, named
    ``NAME-00001-of-00005.gguf`` for an `out` of ``NAME.gguf``; a larger tensor has a file to itself. `inputs`:
    files beside the parent's that no output must be, whatever `force` says. Returns the output's (first) file.

    Raises InputError for a mask of another model or an unusable `out`, CoeError where a kept expert holds a
    value that is not finite; then no output is left.
    """
    plan = plan_prune(ModelHeader(parent), mask, drop_mtp=drop_mtp)
    return _write(plan, Path(out), split_max_bytes, force, inputs, progress)


def zero(
    parent: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = _quiet,
) -> Path:
    """Writes the parent with the dropped experts' weights and biases zeroed. Its router can still choose them,
    so it is for study. Layers that predict further tokens (MTP) are left as they are. Raises like `prune`."""
    return _write(plan_zero(ModelHeader(parent), mask), Path(out), None, force, inputs, progress)


def _write(
    plan: Plan, out: Path, split_max_bytes: int | None, force: bool, inputs: tuple[Path, ...], progress: Report
) -> Path:
    shards = plan.shards([len(plan.tensors)] if split_max_bytes is None else plan.counts_within(split_max_bytes))
    alignment = plan.model.files[0].header.alignment
    paths = [out] if len(shards) == 1 else shard_paths(out, len(shards))
    for path in paths:
        check_target(path, force=force, inputs=(*plan.model.paths, *inputs))
    _check_no_other_shards(paths)
    check_space(out, sum(shard.n_bytes for shard in shards))
    total = sum(tensor.n_bytes for tensor in plan.tensors)
    done = 0
    # Renamed in reverse order: the first shard, which stands for the model, comes last, and the older one is gone.
    with (
        Readers() as readers,
        contextlib.ExitStack() as outputs,
        _Checks(plan, readers) as checks,
        _EarlySync() as syncing,
    ):
        prefetch = Prefetch(
            (readers[tensor.source.file], *tensor.where(piece))
            for tensor in plan.tensors
            for piece in tensor.pieces()
            if not piece.zero
        )
        for path, shard in zip(paths, shards, strict=True):
            target = outputs.enter_context(replacing(path))
            target.write(shard.header())
            for tensor in shard.tensors:
                for piece in tensor.pieces():
                    offset, n_bytes = tensor.where(piece)
                    if piece.zero:
                        target.write(bytes(n_bytes))
                    else:
                        prefetch.reading(n_bytes)
                        copy_range(readers[tensor.source.file], offset, n_bytes, target)
                    checks.start(tensor, piece)
                    syncing.wrote(target, n_bytes)
                    done += n_bytes
                    progress(done, total)
                target.write(bytes(-tensor.n_bytes % alignment))
        checks.finish()
        syncing.finish()
        plan.model.check_unchanged()
        if len(paths) > 1:
            # No file of an older output may pass for one of the new: without its first one, none is a model.
            remove(paths[0])
    return paths[0]


def shard_paths(out: Path, count: int) -> list[Path]:
    """The files of a split output, named as llama.cpp looks for them."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?(\.gguf)?$", "", out.name)
    return [out.with_name(stem + _shard_name(number, count)) for number in range(1, count + 1)]


def _shard_name(number: int, count: int) -> str:
    return f"-{number:05}-of-{count:05}.gguf"


def _check_no_other_shards(paths: Sequence[Path]) -> None:
    """Raises InputError where files of this name, split into another number, would stand among the new ones."""
    names = re.compile(re.escape(paths[0].name[: -len(_shard_name(1, 1))]) + r"-\d{5}-of-\d{5}\.gguf")
    for path in paths[0].parent.iterdir() if len(paths) > 1 else ():
        if names.fullmatch(path.name) and path not in paths:
            raise InputError(
                f"{path}: would stand among {len(paths)} new files of the same name; choose another name, or "
                "remove it if nobody needs it"
            )


class _Checks:
    """Looks for values that are not finite beside the copying, in what is still in memory. Errors come with a
    later call."""

    _most_behind = 64 << 20

    def __init__(self, plan: Plan, readers: Readers) -> None:
        self._where = str(plan.model.path)
        self._largest = plan.largest_piece
        self._readers = readers
        self._running: deque[tuple[Future[bool], int]] = deque()
        self._behind = 0

    def __enter__(self) -> _Checks:
        self._threads = ThreadPoolExecutor(checking_threads(self._largest))
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def start(self, tensor: PlannedTensor, piece: Run) -> None:
        if tensor.touched:
            _, n_bytes = tensor.where(piece)
            self._running.append((self._threads.submit(self._check, tensor, piece), n_bytes))
            self._behind += n_bytes
            self._wait_until_behind(self._most_behind)

    def finish(self) -> None:
        self._wait_until_behind(0)

    def _wait_until_behind(self, n_bytes: int) -> None:
        while self._behind > n_bytes:
            check, size = self._running.popleft()
            check.result()
            self._behind -= size

    def _check(self, tensor: PlannedTensor, piece: Run) -> bool:
        data = tensor.expected(self._readers[tensor.source.file], piece)
        return check_finite(tensor, piece, data, self._where)


class _EarlySync:
    """Has the system write to the disk what has been copied, beside further copying: the last sync is then short.
    Errors come with a later call, for the system tells of each but once."""

    _portion = 256 << 20

    def __init__(self) -> None:
        self._running: Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> _EarlySync:
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # the file is open until its sync has ended

    def wrote(self, target: BinaryIO, n_bytes: int) -> None:
        self._unsynced += n_bytes
        if self._unsynced >= self._portion and (self._running is None or self._running.done()):
            self.finish()
            target.flush()
            self._running = self._thread.submit(os.fsync, target.fileno())
            self._unsynced = 0

    def finish(self) -> None:
        if self._running is not None:
            self._running.result()
