"""Write the output of a plan. It is streamed, so that memory does not grow with the file's size."""

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
from coe_native.model.sampler_defaults import PUBLISHED_SAMPLING, SamplerDefaults
from coe_native.surgery.plan import (
    Plan,
    PlannedTensor,
    Readers,
    SliceRange,
    check_finite,
    plan_copy,
    plan_prune,
    plan_zero,
)

Report = Callable[[int, int], None]
"""A function that is called with bytes done and bytes in all."""


def _quiet(done: int, total: int) -> None:
    pass


def prune(
    parent: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    drop_mtp: bool = False,
    keep_vision: bool = False,
    split_max_bytes: int | None = None,
    sampling: SamplerDefaults | None = PUBLISHED_SAMPLING,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = _quiet,
) -> Path:
    """Write the specialist: a GGUF file with the kept experts only, whose bytes do not change.

    Args:
        parent: The parent's file.
        mask: The mask.
        out: The specialist's file.
        drop_mtp: Leave out the layers that predict further tokens (MTP). Otherwise they keep as many experts
            as other layers, those whose router rows have the largest norms.
        keep_vision: Keep vision and audio parts that are in the same file, as Ollama has them. llama.cpp does not
            load such files.
        split_max_bytes: Split the output into files of at most this size, named ``NAME-00001-of-00005.gguf``
            if `out` is ``NAME.gguf``. A larger tensor has a file of its own. None: one file.
        sampling: Sampling settings for llama.cpp's programs, in the metadata: by default the parent's, or the
            published ones; None: none but the parent's.
        force: Replace existing files.
        inputs: Files, in addition to the parent's, that must not be replaced, `force` or not.
        progress: Called with bytes done and bytes in all.

    Returns:
        The output's file, or the first one if it is split.

    Raises:
        InputError: The mask is of another model, the model cannot be cut, or `out` cannot be used.
        CoeError: A kept expert has a value that is not finite, or the output cannot be written. No output is
            left.
    """
    plan = plan_prune(ModelHeader(parent), mask, drop_mtp=drop_mtp, keep_vision=keep_vision, sampling=sampling)
    return _write(plan, Path(out), split_max_bytes, force, inputs, progress)


def copy(model: str | Path, out: str | Path, *, force: bool = False, progress: Report = _quiet) -> Path:
    """Write a model as one file, without vision and audio parts. No tensor changes.

    Args:
        model: The model; of a split one, the first file.
        out: The file to write.
        force: Replace an existing file.
        progress: Called with bytes done and bytes in all.

    Raises:
        InputError: `out` cannot be used.
        CoeError: An expert has a value that is not finite, or the output cannot be written.
    """
    return _write(plan_copy(ModelHeader(model)), Path(out), None, force, (), progress)


def zero(
    parent: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = _quiet,
) -> Path:
    """Write the parent with the dropped experts' weights and biases zeroed, for study.

    The router can still choose the dropped experts. Layers that predict further tokens (MTP) do not change.

    Args:
        parent: The parent's file.
        mask: The mask.
        out: The file to write.
        force: Replace an existing file.
        inputs: Files, in addition to the parent's, that must not be replaced, `force` or not.
        progress: Called with bytes done and bytes in all.

    Returns:
        The output's file.

    Raises:
        InputError: The mask is of another model, or `out` cannot be used.
        CoeError: A kept expert has a value that is not finite, or the output cannot be written. No output is
            left.
    """
    return _write(plan_zero(ModelHeader(parent), mask), Path(out), None, force, inputs, progress)


def _write(
    plan: Plan, out: Path, split_max_bytes: int | None, force: bool, inputs: tuple[Path, ...], progress: Report
) -> Path:
    shards = plan.shards([len(plan.tensors)] if split_max_bytes is None else plan.counts_within(split_max_bytes))
    alignment = plan.alignment
    paths = [out] if len(shards) == 1 else shard_paths(out, len(shards))
    for path in paths:
        check_target(path, force=force, inputs=(*plan.model.paths, *inputs))
    _check_no_other_shards(paths)
    check_space(out, sum(shard.n_bytes for shard in shards))
    total = sum(tensor.n_bytes for tensor in plan.tensors)
    done = 0
    # Files are renamed in reverse order: the first shard, by which the model is loaded, comes last.
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
            # Files of an older output must not be mistaken for new ones: none can be loaded without the first.
            remove(paths[0])
    return paths[0]


def shard_paths(out: Path, count: int) -> list[Path]:
    """Return the files of a split output, with the names that llama.cpp expects."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?(\.gguf)?$", "", out.name)
    return [out.with_name(stem + _shard_name(number, count)) for number in range(1, count + 1)]


def _shard_name(number: int, count: int) -> str:
    return f"-{number:05}-of-{count:05}.gguf"


def _check_no_other_shards(paths: Sequence[Path]) -> None:
    """Check that the directory has no files of the same output split into another number of files."""
    names = re.compile(re.escape(paths[0].name[: -len(_shard_name(1, 1))]) + r"-\d{5}-of-\d{5}\.gguf")
    for path in paths[0].parent.iterdir() if len(paths) > 1 else ():
        if names.fullmatch(path.name) and path not in paths:
            raise InputError(
                f"{path}: would be among {len(paths)} new files of the same name; choose another name, or "
                "remove it if it is not needed"
            )


class _Checks:
    """Checks for finite values, in parallel with the copying, while the data is still in memory.

    A later call raises the errors.
    """

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

    def start(self, tensor: PlannedTensor, piece: SliceRange) -> None:
        """Start to check a piece."""
        if tensor.touched:
            _, n_bytes = tensor.where(piece)
            self._running.append((self._threads.submit(self._check, tensor, piece), n_bytes))
            self._behind += n_bytes
            self._wait_until_behind(self._most_behind)

    def finish(self) -> None:
        """Wait until all pieces are checked."""
        self._wait_until_behind(0)

    def _wait_until_behind(self, n_bytes: int) -> None:
        while self._behind > n_bytes:
            check, size = self._running.popleft()
            check.result()
            self._behind -= size

    def _check(self, tensor: PlannedTensor, piece: SliceRange) -> bool:
        data = tensor.expected(self._readers[tensor.source.file], piece)
        return check_finite(tensor, piece, data, self._where)


class _EarlySync:
    """Syncs of copied data in parallel with further copying, so that the last sync is short.

    A later call raises the errors, because the system reports each of them only once.
    """

    _portion = 256 << 20

    def __init__(self) -> None:
        self._running: Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> _EarlySync:
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # the file must stay open until its sync has ended

    def wrote(self, target: BinaryIO, n_bytes: int) -> None:
        """Start a sync if enough data was written since the last one."""
        self._unsynced += n_bytes
        if self._unsynced >= self._portion and (self._running is None or self._running.done()):
            self.finish()
            target.flush()
            self._running = self._thread.submit(os.fsync, target.fileno())
            self._unsynced = 0

    def finish(self) -> None:
        """Wait until the running sync has ended."""
        if self._running is not None:
            self._running.result()
