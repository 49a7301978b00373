"""Outputs that appear whole or not at all: write beside, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from coe_native.errors import CoeError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".coe-tmp"


def check_target(path: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Raises InputError where `path` can't become an output: it exists (without `force`), is one of the
    inputs or in a directory of them under any name, is no regular file, or has no directory to stand in."""
    if path.exists():
        for source in inputs:
            if not source.exists():
                continue
            inside = source.is_dir() and path.resolve().is_relative_to(source.resolve())
            if inside or path.samefile(source):
                raise InputError(f"{path}: is an input of this command; choose another output")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file; name one to write")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; choose another name or pass --force")
    directory = _followed(path).parent
    if not directory.is_dir():
        raise InputError(f"{path}: its directory does not exist; make it first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its directory is not yours to write in; choose another")


def check_space(path: Path, n_bytes: int) -> None:
    """Raises CoeError where the disk has not that many bytes free for an output `path`: nobody should wait for a
    long write that can't end well. What it would replace still takes its own space until then."""
    directory = _followed(path).parent
    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise CoeError(
            f"{path}: needs {n_bytes / 1e9:.2f} GB, and {directory} has {free / 1e9:.2f} GB free; make room, or "
            "choose a place on another disk"
        )


def _followed(path: Path) -> Path:
    """Where a path that is a symlink leads: that is what is meant to be written."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes `path`'s place when the block ends without an error, else vanishes. A symlink stays
    and leads to it.

    The bytes are on the disk before the name is. Raises CoeError for what the system refuses.
    """
    given, path = path, _followed(path)
    try:
        clear_leftovers(path)
        file = _create_beside(path)
        temporary = Path(file.name)
        try:
            with file:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copymode(path, temporary)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise CoeError(f"{given}: cannot be written: {error.strerror or error}") from error


def remove(path: Path) -> None:
    """Removes a file, if it is there, for good: before anything that is written later."""
    path = _followed(path)
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _create_beside(path: Path) -> BinaryIO:
    """A new file, locked, of a name that says that it is on its way to `path`."""
    while True:
        file = path.with_name(f"{_prefix(path)}{secrets.token_hex(6)}{SUFFIX}").open("xb")
        with contextlib.suppress(BlockingIOError):
            lock(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
        file.close()  # another has taken it for a leftover, in the moment before it was locked


def clear_leftovers(path: Path) -> None:
    """Removes what writers of `path` that were killed have left beside it: files that nobody holds locked."""
    for beside in path.parent.iterdir():
        if beside.name.startswith(_prefix(path)) and beside.name.endswith(SUFFIX):
            with contextlib.suppress(OSError):
                if fcntl is None:
                    beside.unlink()  # Windows does not let open files be removed
                    continue
                with beside.open("r+b") as leftover:
                    if lock(leftover):
                        beside.unlink()


def _prefix(path: Path) -> str:
    """How temporary files for `path` begin; a system's names have some 255 bytes."""
    return f".{path.name.encode()[:200].decode(errors='ignore')}."


def lock(file: BinaryIO | FileIO) -> bool:
    """Until it is closed. Raises BlockingIOError where another has locked it; False where the system, or the file
    system, has no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _sync_directory(directory: Path) -> None:
    """Makes a rename last. Windows has no such call and needs none; some file systems refuse it."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)
