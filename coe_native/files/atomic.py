"""Outputs that appear whole or not at all: write beside, sync, rename."""

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
_MOST_LINKS = 40


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
    directory = resolved(path).parent
    if not directory.is_dir():
        raise InputError(f"{path}: its directory does not exist; make it first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its directory is not yours to write in; choose another")


def check_space(path: Path, n_bytes: int) -> None:
    """Raises CoeError where the disk has not that many bytes free for an output `path`: nobody should wait for a
    long write that can't end well. What it would replace still takes its own space until then."""
    directory = resolved(path).parent
    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise CoeError(
            f"{path}: needs {n_bytes / 1e9:.2f} GB, and {directory} has {free / 1e9:.2f} GB free; make room, or "
            "choose a place on another disk"
        )


def resolved(path: Path) -> Path:
    """Return a path with its symlinks followed, as Linux follows them with protected_symlinks set: in a directory
    where everybody may write and each may remove only his own files, such as /tmp, a link of another user is not
    followed. It could lead an output to any file of ours.

    Raises:
        InputError: There is such a link, or too many of them.
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
            raise InputError(f"{path}: has too many symlinks")
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
            f"{path}: {'' if link == path else f'{link} '}is a symlink that another user has put into a shared "
            "directory; name another place"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes `path`'s place when the block ends without an error, else vanishes. A symlink stays
    and leads to it.

    The bytes are on the disk before the name is. Raises CoeError for what the system refuses.
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


def _set_mode(file: BinaryIO, path: Path) -> None:
    """Give a finished file the mode of the one that it replaces, or the mode of any new file. Until then only its
    owner could read it."""
    if not hasattr(os, "fchmod"):  # Windows
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mode = 0o666 & ~_umask()
    with contextlib.suppress(OSError):  # some file systems refuse it; the file stays private then
        os.fchmod(file.fileno(), mode)


def _umask() -> int:
    """Return the bits that new files do not get. Only Linux can tell without changing it for a moment."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def remove(path: Path) -> None:
    """Removes a file, if it is there, for good: before anything that is written later."""
    path = resolved(path)
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _create_beside(path: Path) -> BinaryIO:
    """A new file, locked, of a name that says that it is on its way to `path`."""
    while True:
        name = path.with_name(f"{_prefix(path)}{secrets.token_hex(6)}{SUFFIX}")
        file = open(name, "xb", opener=_for_us_only)  # noqa: SIM115
        with contextlib.suppress(BlockingIOError):
            lock(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
        file.close()  # another has taken it for a leftover, in the moment before it was locked


def _for_us_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def clear_leftovers(path: Path) -> None:
    """Removes what writers of `path` that were killed have left beside it: files that nobody holds locked."""
    for beside in path.parent.iterdir():
        if beside.name.startswith(_prefix(path)) and beside.name.endswith(SUFFIX):
            with contextlib.suppress(OSError):
                if fcntl is None:
                    beside.unlink()  # Windows does not let open files be removed
                    continue
                # Others may have put links and pipes there.
                with open(beside, "r+b", opener=_without_links) as leftover:
                    if stat.S_ISREG(os.fstat(leftover.fileno()).st_mode) and lock(leftover):
                        beside.unlink()


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


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
