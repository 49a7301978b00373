"""Outputs that appear whole or not at all: written beside the target, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
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
"""End of the names of temporary files."""

_MOST_LINKS = 40


def check_target(path: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Check that a path can become an output.

    Args:
        path: The output.
        force: Whether it may replace a file.
        inputs: Files and directories that must not be written to, `force` or not. Symlinks are resolved.

    Raises:
        InputError: The path exists (without `force`), is an input or in a directory of inputs, is not a
            regular file, or its directory is missing or not writable.
    """
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
        raise InputError(f"{path}: is not a regular file; choose another output")
    if path.exists() and not force:
        raise InputError(f"{path}: exists; choose another name or pass --force")
    directory = resolved(path).parent
    if not directory.is_dir():
        raise InputError(f"{path}: its directory does not exist; create it first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its directory is not writable; choose another")


def check_space(path: Path, n_bytes: int) -> None:
    """Check that the disk has room for an output, so that a long write does not fail at its end.

    A file that the output will replace takes its space until then.

    Args:
        path: The output.
        n_bytes: Its size.

    Raises:
        CoeError: The disk has fewer bytes free.
    """
    directory = resolved(path).parent
    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise CoeError(
            f"{path}: needs {n_bytes / 1e9:.2f} GB, but {directory} has {free / 1e9:.2f} GB free; make room, or "
            "choose a path on another disk"
        )


def resolved(path: Path) -> Path:
    """Return a path with its symlinks resolved, by the rules of Linux with protected_symlinks set.

    In a sticky directory where all users may write, such as /tmp, another user's symlink is not followed: it
    could lead an output to any file of this user.

    Raises:
        InputError: There is such a symlink, or there are too many symlinks.
    """
    found = Path(os.path.abspath(path.anchor or "."))  # noqa: PTH100 - resolve() would follow links
    waiting = list(reversed(path.parts[1:] if path.anchor else path.parts))
    links = 0
    while waiting:
        name = waiting.pop()
        if name == "..":
            found = found.parent
            continue
        step = found / name
        if not step.is_symlink():
            found = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InputError(f"{path}: has too many symlinks; name the file itself")
        _check_link(path, step)
        target = step.readlink()
        if target.anchor:
            found = Path(target.anchor)
        waiting += reversed(target.parts[1:] if target.anchor else target.parts)
    return found


def _check_link(path: Path, link: Path) -> None:
    if os.name != "posix":
        return
    directory, owner = link.parent.stat(), link.lstat().st_uid
    shared = directory.st_mode & stat.S_ISVTX and directory.st_mode & stat.S_IWOTH
    if shared and owner not in (os.geteuid(), directory.st_uid):
        raise InputError(
            f"{path}: {'' if link == path else f'{link} '}is a symlink that another user made in a shared "
            "directory; choose another path"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary binary file that replaces `path` when the block ends without an error.

    After an error it is removed. Its bytes are on the disk before it is renamed. If `path` is a symlink, its
    target is replaced.

    Yields:
        The file, open for writing.

    Raises:
        CoeError: The system cannot write the file.
    """
    given = path
    try:
        path = resolved(path)
        clear_leftovers(path)
        file = _create_beside(path)
        temporary = Path(file.name)
        try:
            with file:
                yield file
                file.flush()
                _set_mode(file, path)
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise CoeError(f"{given}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def working_directory(path: Path) -> Iterator[Path]:
    """Make a directory beside an output for files on the way to it. It is removed when the block ends.

    If the process is killed, the next one that writes the output removes it.

    Yields:
        The directory.

    Raises:
        CoeError: The system cannot make it.
    """
    try:
        target = resolved(path)
        clear_leftovers(target)
        _clear_directories(target)
        directory = target.with_name(f"{_prefix(target)}{secrets.token_hex(6)}{SUFFIX}")
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise CoeError(f"{path}: cannot be written: {error.strerror or error}") from error
    with contextlib.ExitStack() as leaving:
        leaving.callback(shutil.rmtree, directory, ignore_errors=True)
        if fcntl is not None:
            descriptor = os.open(directory, os.O_RDONLY)
            leaving.callback(os.close, descriptor)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield directory


def _set_mode(file: BinaryIO, path: Path) -> None:
    """Give a finished file the mode of the one that it replaces, or the usual mode of a new file.

    Until then, only its owner can read it.
    """
    if not hasattr(os, "fchmod"):  # Windows
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    with contextlib.suppress(OSError):  # some file systems refuse it; the file then stays private
        os.fchmod(file.fileno(), mode)


def _umask() -> int:
    """Return the process's umask. Only Linux reports it; elsewhere it is changed for a moment."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def remove(path: Path) -> None:
    """Remove a file if it exists. This is on the disk before anything that is written later."""
    path = resolved(path)
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _create_beside(path: Path) -> BinaryIO:
    """Create a temporary file beside `path`, and lock it."""
    while True:
        name = path.with_name(f"{_prefix(path)}{secrets.token_hex(6)}{SUFFIX}")
        file = open(name, "xb", opener=_for_us_only)  # noqa: SIM115
        with contextlib.suppress(BlockingIOError):
            lock(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
        file.close()  # another process removed it as a leftover before it was locked


def _for_us_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def clear_leftovers(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left behind: those without a lock."""
    for beside in path.parent.iterdir():
        if beside.name.startswith(_prefix(path)) and beside.name.endswith(SUFFIX):
            with contextlib.suppress(OSError):
                if beside.is_dir():
                    continue  # of this process perhaps: see `working_directory`
                if fcntl is None:
                    beside.unlink()  # Windows does not remove open files
                    continue
                # Other users may have made symlinks and pipes of such names.
                with open(beside, "r+b", opener=_without_links) as leftover:
                    if stat.S_ISREG(os.fstat(leftover.fileno()).st_mode) and lock(leftover):
                        beside.unlink()


def _clear_directories(path: Path) -> None:
    """Remove temporary directories of `path` that killed processes left behind."""
    for beside in path.parent.iterdir():
        if beside.name.startswith(_prefix(path)) and beside.name.endswith(SUFFIX) and beside.is_dir():
            with contextlib.suppress(OSError):
                _remove_directory(beside)


def _remove_directory(directory: Path) -> None:
    """Remove a directory that no process has locked."""
    if fcntl is None:
        shutil.rmtree(directory)
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(descriptor)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _prefix(path: Path) -> str:
    """Return how the names of temporary files for `path` begin. File names have at most 255 bytes."""
    return f".{os.fsencode(path.name)[:200].decode(errors='ignore')}."


def lock(file: BinaryIO | FileIO) -> bool:
    """Lock a file until it is closed.

    Returns:
        Whether it is locked: False if the system or the file system does not support locks.

    Raises:
        BlockingIOError: Another process has locked it.
    """
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
    """Sync a directory, so that a rename lasts. Windows needs no such call; some file systems refuse it."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)
