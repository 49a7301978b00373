"""Outputs appear whole or not at all, and inputs stay as they are: killed at any moment, on full disks and
read-only ones, through links, beside older outputs, and while somebody else writes to what is read."""

from __future__ import annotations

import errno
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import checkpoints
from support.masks import unused_experts
from support.random_models import write_random_model

import coe_native as coe
from coe_native.files import atomic
from coe_native.surgery import in_place as surgery

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]
COMMAND = Path(sys.executable).with_name("coe-native")
N_KILLS = 8
"""Of each writer, at random moments."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes, so that writing it takes a while, its profile and mask."""
    shop = tmp_path_factory.mktemp("shop")
    model = shop / "parent.gguf"
    write_random_model(model, "qwen3moe", n_layers=4, n_experts=16, n_embd=256, n_ff_expert=256)
    tokens = np.random.default_rng(0).integers(0, 256, (20, 60)).astype(np.int32)
    np.save(shop / "tokens.npy", tokens)
    profile = coe.profile(model, tokens.tolist(), n_threads=1)
    profile.save(shop / "profile.gguf")
    coe.build_mask(profile, 8).save(shop / "mask.json")
    return shop


WRITERS = {
    "prune": "prune parent.gguf --mask mask.json -o {}",
    "zero": "zero parent.gguf --mask mask.json -o {}",
    "mask": "mask profile.gguf --keep 8 -o {}",
    "merge": "merge profile.gguf profile.gguf -o {}",
    "profile": "profile parent.gguf -c tokens.npy --threads 1 -o {}",
}


def line_of(writer: str, out: Path) -> list[str]:
    return [str(COMMAND), *shlex.split(WRITERS[writer].format(out)), "--force"]


@pytest.mark.parametrize("writer", WRITERS)
def test_killed_at_random_moments(shop: Path, tmp_path: Path, writer: str) -> None:
    """The target is what it was before, or what it was to become; what is left beside it is recognised, and the
    next run removes it."""
    before = {path: path.read_bytes() for path in shop.iterdir()}
    out = tmp_path / "out.gguf"

    def run() -> float:
        started = time.monotonic()
        subprocess.run(line_of(writer, out), cwd=shop, check=True, capture_output=True)
        return time.monotonic() - started

    run()
    new = out.read_bytes()
    took = run()
    moments = random.Random(writer)
    n_killed = 0
    while n_killed < N_KILLS:
        out.write_bytes(b"old")
        with subprocess.Popen(
            line_of(writer, out), cwd=shop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(moments.uniform(0.4, 1.0) * took)
            process.kill()
        n_killed += process.returncode == -signal.SIGKILL  # and not too late
        assert out.read_bytes() in (b"old", new)
        left = [path for path in tmp_path.iterdir() if path != out]
        assert all(path.name.startswith(".out.gguf.") and path.name.endswith(".coe-tmp") for path in left)
        # How fast the machine is may change meanwhile.
        took = run()
        assert list(tmp_path.iterdir()) == [out]
        assert out.read_bytes() == new
    assert {path: path.read_bytes() for path in shop.iterdir()} == before


# What ends the process where it stands, at the `last`-th of the moments at which a file is made to last.
KILLED = """
import os, signal, sys
from pathlib import Path

last, moments = int(sys.argv.pop(1)), 0

def counting(function):
    def wrapped(*arguments, **options):
        global moments
        moments += 1
        if moments == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped

os.fsync = counting(os.fsync)
Path.replace, Path.rename, Path.unlink = map(counting, (Path.replace, Path.rename, Path.unlink))
from coe_native.cli import main
main()
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_killed_around_the_renaming(shop: Path, tmp_path: Path, writer: str) -> None:
    out = tmp_path / "out.gguf"
    subprocess.run(line_of(writer, out), cwd=shop, check=True, capture_output=True)
    new = out.read_bytes()
    seen = set()
    for last in range(1, 50):
        out.write_bytes(b"old")
        line = [sys.executable, "-c", KILLED, str(last), *line_of(writer, out)[1:]]
        run = subprocess.run(line, cwd=shop, capture_output=True, check=False)
        found = out.read_bytes()
        assert found in (b"old", new)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
        seen.add((found == new, len(list(tmp_path.iterdir()))))
    assert seen >= {(False, 2), (True, 1)}
    assert found == new
    assert list(tmp_path.iterdir()) == [out]


def test_killed_while_many_files_are_renamed(shop: Path, tmp_path: Path) -> None:
    """Old files and new ones, of as many experts but other ones, never make a model together."""
    masks = [coe.ExpertMask.load(shop / "mask.json")]
    dropped = {block: tuple(masks[0].dropped(block)) for block in masks[0].kept}
    masks.append(replace(masks[0], kept=dropped))
    masks[1].save(tmp_path / "other.json")
    sizes = {"split_max_bytes": 4_000_000}
    first = coe.prune(shop / "parent.gguf", masks[1], tmp_path / "other.gguf", **sizes)
    new = [path.read_bytes() for path in coe.MoeModel(first).paths]
    states = set()
    for last in range(1, 100):
        for left in tmp_path.glob("*out*"):
            left.unlink()
        old = coe.MoeModel(coe.prune(shop / "parent.gguf", masks[0], tmp_path / "out.gguf", **sizes))
        before = [path.read_bytes() for path in old.paths]
        line = ["prune", "parent.gguf", "--mask", tmp_path / "other.json", "-o", tmp_path / "out.gguf", "--force"]
        line += ["--split-max-size", "4M"]
        whole = [sys.executable, "-c", KILLED, str(last), *map(str, line)]
        run = subprocess.run(whole, cwd=shop, capture_output=True, check=False)
        try:
            found = [path.read_bytes() for path in coe.MoeModel(old.path).paths]
        except coe.InputError:
            states.add("none")
        else:
            assert found in (before, new)
            states.add("old" if found == before else "new")
        if run.returncode == 0:
            break
    assert states == {"old", "none", "new"}
    assert found == new
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_killed_at_every_moment(tmp_path: Path) -> None:
    """The directory is the old one, the new one, or, between two renames, not there."""
    made = checkpoints.FORMS["qwen3"]()
    checkpoints.write(made, tmp_path / "parent", 2)
    parent = contents(tmp_path / "parent")
    for name, kept in (("old", [0, 1, 2, 3]), ("new", [2, 4, 6, 7])):
        checkpoints.mask_for(made, {0: kept, 1: kept}, 2).save(tmp_path / f"{name}.json")
        coe.prune_checkpoint(
            tmp_path / "parent", coe.ExpertMask.load(tmp_path / f"{name}.json"), tmp_path / f"{name}-out"
        )
    whole = {name: contents(tmp_path / f"{name}-out") for name in ("old", "new")}
    out = tmp_path / "work" / "out"
    states = []
    for last in range(1, 100):
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(tmp_path / "old-out", out)
        line = ["prune", tmp_path / "parent", "--mask", tmp_path / "new.json", "-o", out, "--force"]
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(last), *map(str, line)], capture_output=True, check=False
        )
        found = contents(out)
        states.append(
            next((name for name, expected in whole.items() if found == expected), "none" if not found else "?")
        )
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
    assert states[0] == "old"
    assert states[-1] == "new"
    assert set(states) == {"old", "none", "new"}
    assert list(out.parent.iterdir()) == [out]
    assert contents(tmp_path / "parent") == parent


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


def test_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    """What looks like a leftover may be another process's output."""
    out = tmp_path / "out.gguf"
    with atomic.replacing(out) as first:
        first.write(b"first")
        (tmp_path / ".out.gguf.1.coe-tmp").write_bytes(b"left behind")
        with atomic.replacing(out.with_name("other.gguf")) as other:
            other.write(b"other")
        atomic.clear_leftovers(out)
        assert len(list(tmp_path.glob(".out.gguf.*.coe-tmp"))) == 1
    assert out.read_bytes() == b"first"


@pytest.mark.parametrize("change", ["written to", "longer", "replaced", "gone"])
@pytest.mark.parametrize("work", ["prune", "zero", "verify", "zero_in_place", "profile"])
def test_a_parent_that_changes_while_it_is_read_is_reported(
    shop: Path, tmp_path: Path, change: str, work: str
) -> None:
    parent = Path(shutil.copy(shop / "parent.gguf", tmp_path / "parent.gguf"))
    out = tmp_path / "out.gguf"
    mask = coe.ExpertMask.load(shop / "mask.json")
    if work == "verify":
        coe.prune(parent, mask, out)
    before = sorted(tmp_path.iterdir())
    done = []

    def spoil(*_: object) -> None:
        if done:
            return
        done.append(change)
        if change == "written to":
            with parent.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\1")
        elif change == "longer":
            with parent.open("ab") as file:
                file.write(b"more")
        else:
            content = parent.read_bytes()
            parent.unlink()
            if change == "replaced":
                parent.write_bytes(content)

    def run() -> None:
        if work == "verify":
            coe.verify(out, parent, mask, progress=spoil)
        elif work == "profile":
            with coe.Model(parent, n_threads=1) as model:
                coe.profile_corpora(model, [coe.read_corpus(shop / "tokens.npy")], progress=spoil)
        elif work == "zero_in_place":
            with pytest.MonkeyPatch.context() as patched:
                plan = surgery.plan_zero

                def plan_and_spoil(*arguments: object) -> object:
                    spoil()
                    return plan(*arguments)  # type: ignore[arg-type]

                patched.setattr(surgery, "plan_zero", plan_and_spoil)
                coe.zero_in_place(parent, mask)
        else:
            getattr(coe, work)(parent, mask, out, progress=spoil)

    with pytest.raises(coe.CoeError, match=r"parent\.gguf"):
        run()
    assert done
    assert sorted(tmp_path.iterdir()) == [path for path in before if change != "gone" or path != parent]


def test_free_space_is_checked_first(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = coe.ExpertMask.load(shop / "mask.json")
    out = tmp_path / "out.gguf"
    size = coe.prune(shop / "parent.gguf", mask, out).stat().st_size
    for free, split in ((size - 1, None), (size, 4_000_000)):

        class Usage:
            pass

        Usage.free = free  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=Usage: usage)
        with pytest.raises(coe.CoeError, match=r"out\.gguf.* GB"):
            coe.prune(shop / "parent.gguf", mask, out, force=True, split_max_bytes=split)
    coe.prune(shop / "parent.gguf", mask, out, force=True)
    assert list(tmp_path.iterdir()) == [out]


def test_older_shards_are_not_mixed_with_new_ones(shop: Path, tmp_path: Path) -> None:
    mask = coe.ExpertMask.load(shop / "mask.json")
    first = coe.prune(shop / "parent.gguf", mask, tmp_path / "out.gguf", split_max_bytes=2_000_000)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) > 3
    with pytest.raises(coe.InputError, match=r"out-\d{5}-of-\d{5}\.gguf.*\d+"):
        coe.prune(shop / "parent.gguf", mask, tmp_path / "out.gguf", split_max_bytes=4_000_000, force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # The same number takes their places; one file, or other names, have nothing to do with them.
    coe.prune(shop / "parent.gguf", mask, first, split_max_bytes=2_000_000, force=True)
    coe.prune(shop / "parent.gguf", mask, tmp_path / "out.gguf")
    coe.prune(shop / "parent.gguf", mask, tmp_path / "out-2.gguf", split_max_bytes=4_000_000)
    assert {path: path.read_bytes() for path in before} == before


def test_the_last_writer_of_an_output_wins(tmp_path: Path) -> None:
    """Also in one process: each has its own file on the way, and who ends last is there."""
    out = tmp_path / "out.gguf"
    with atomic.replacing(out) as first:
        first.write(b"first")
        with atomic.replacing(out) as second:
            second.write(b"second")
        assert out.read_bytes() == b"second"
    assert out.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(sys.platform == "win32", reason="has neither locks nor modes")
def test_outputs_are_written_without_locks(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As network file systems are: nothing is taken for a leftover there."""
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    mask = coe.ExpertMask.load(shop / "mask.json")
    somebodys = tmp_path / ".mask.json.1.coe-tmp"
    somebodys.write_bytes(b"of another machine, perhaps")
    mask.save(tmp_path / "mask.json")
    assert coe.ExpertMask.load(tmp_path / "mask.json") == mask
    assert somebodys.exists()
    copy = shutil.copy(shop / "parent.gguf", tmp_path / "copy.gguf")
    coe.zero_in_place(copy, mask)
    assert coe.MoeModel(copy).surgery is not None


@pytest.mark.skipif(sys.platform == "win32", reason="has neither locks nor modes")
def test_the_mode_of_an_output_is_kept(shop: Path, tmp_path: Path) -> None:
    mask = coe.ExpertMask.load(shop / "mask.json")
    mask.save(tmp_path / "mask.json")
    usual = (tmp_path / "mask.json").stat().st_mode
    (tmp_path / "usual").touch()
    assert usual == (tmp_path / "usual").stat().st_mode
    (tmp_path / "mask.json").chmod(0o600)
    mask.save(tmp_path / "mask.json")
    assert (tmp_path / "mask.json").stat().st_mode & 0o777 == 0o600


def test_a_link_to_an_output_stays_a_link(shop: Path, tmp_path: Path) -> None:
    """As on a machine where the large disk is elsewhere."""
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    link = near / "mask.json"
    link.symlink_to(far / "real.json")
    mask = coe.ExpertMask.load(shop / "mask.json")
    mask.save(link, force=False)
    assert link.is_symlink()
    mask.save(tmp_path / "same.json")
    assert (far / "real.json").read_bytes() == (tmp_path / "same.json").read_bytes()
    assert [path.name for path in (*far.iterdir(), *near.iterdir())] == ["real.json", "mask.json"]
    with pytest.raises(coe.InputError, match="exists"):
        mask.save(link, force=False)
    (near / "lost.json").symlink_to(tmp_path / "nowhere" / "real.json")
    with pytest.raises(coe.InputError, match="directory"):
        mask.save(near / "lost.json")


def mounted(directory: Path, options: str, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script where a small disk of its own is mounted; skips where the system does not let us."""
    directory.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(directory))} || exit 97\n"
    unshare = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)), "sh", "-c"]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    run = subprocess.run([*unshare, mount + script], capture_output=True, text=True, check=False)
    if run.returncode == 97 or run.stderr.startswith("unshare:"):
        pytest.skip(f"no disk can be mounted here: {run.stderr.strip()}")
    return run


@pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does")
@pytest.mark.parametrize("writer", [*WRITERS, "prune, unforeseen", "zero, unforeseen"])
def test_a_full_disk_leaves_no_output(shop: Path, tmp_path: Path, writer: str) -> None:
    """A disk of three pages, or one that is filled by others while a model is written."""
    name, _, unforeseen = writer.partition(", ")
    command = shlex.join(line_of(name, tmp_path / "disk" / "out.gguf"))
    size = "1m"
    if unforeseen:
        code = "from coe_native.surgery import write; write.check_space = lambda *_: None; "
        code += "from coe_native.cli import main; main()"
        command = shlex.join([sys.executable, "-c", code, *shlex.split(command)[1:]])
    elif name not in ("prune", "zero"):
        size = "12k"
    full = "head -c 10k /dev/zero > full; " if size == "12k" else ""
    disk = shlex.quote(str(tmp_path / "disk"))
    script = f"cd {disk}; {full}cd {shlex.quote(str(shop))}; {command}; status=$?; ls -A {disk}; exit $status"
    run = mounted(tmp_path / "disk", f"size={size}", script)
    assert run.returncode == 1, run
    assert run.stdout.split() == (["full"] if full else [])
    told = "No space left on device" if unforeseen or full else " GB "
    assert told in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_read_only_directory_is_refused(shop: Path, tmp_path: Path, writer: str) -> None:
    command = shlex.join(line_of(writer, tmp_path / "disk" / "out.gguf"))
    run = mounted(tmp_path / "disk", "ro", f"cd {shlex.quote(str(shop))}; {command}")
    assert run.returncode == 2, run
    assert "directory" in run.stderr


def test_a_parent_that_is_read_only_is_not_zeroed(shop: Path, tmp_path: Path) -> None:
    """For root, permissions say nothing: a mount does."""
    disk = tmp_path / "disk"
    parent = shlex.quote(str(shop / "parent.gguf"))
    copy = shlex.quote(str(disk / "copy.gguf"))
    zero = shlex.join([str(COMMAND), "zero", str(disk / "copy.gguf"), "--mask", str(shop / "mask.json")])
    script = f"cp {parent} {copy}; mount -o remount,ro {shlex.quote(str(disk))}; {zero} --in-place --yes; "
    run = mounted(disk, "size=100m", script + f"status=$?; cmp {parent} {copy} || exit 5; exit $status")
    assert run.returncode == 1, run
    assert run.stderr.startswith(f"coe-native: {disk / 'copy.gguf'}: ")
    assert run.stderr.endswith("Read-only file system\n")


def test_zeros_are_written_without_holes(shop: Path, tmp_path: Path) -> None:
    """There zeros are written: the file is the same."""
    compiler = shutil.which("cc")
    assert compiler, "the package is built from source, so a compiler is there"
    source, library = tmp_path / "no_holes.c", tmp_path / "no_holes.so"
    source.write_text("#include <errno.h>\nint fallocate() { errno = EOPNOTSUPP; return -1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    zeroed = []
    for preload in ("", str(library)):
        copy = Path(shutil.copy(shop / "parent.gguf", tmp_path / f"copy{len(zeroed)}.gguf"))
        line = [COMMAND, "zero", copy, "--mask", shop / "mask.json", "--in-place", "--yes"]
        run = subprocess.run(
            line, env={**os.environ, "LD_PRELOAD": preload}, capture_output=True, text=True, check=True
        )
        zeroed.append(copy.read_bytes())
        assert ("0 B" in run.stderr) >= bool(preload)
    assert zeroed[0] == zeroed[1]


@pytest.mark.parametrize("line", ["inspect {}", "score {}", "verify {} --parent {} --mask {}"])
def test_pipes_are_refused_without_waiting(shop: Path, tmp_path: Path, line: str) -> None:
    """One that nobody writes to, where a file is meant."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    words = shlex.split(line.replace("--mask {}", f"--mask {shop / 'mask.json'}").replace("{}", str(pipe)))
    run = subprocess.run([COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2
    assert "pipe.gguf" in run.stderr


def test_a_mask_that_is_a_model_is_refused_at_once(model_file: ModelFile, profile_of: ProfileOf) -> None:
    assert unused_experts(profile_of("llama"), 8).keep == 8
    with pytest.raises(coe.InputError, match=r"llama-F32\.gguf"):
        coe.ExpertMask.load(model_file("llama", "F32"))


def test_working_directories_are_removed_also_after_a_kill(tmp_path: Path) -> None:
    """By the next process that writes the same output; one that is in use stays, and so do other outputs' ones."""
    out, other = tmp_path / "out.gguf", tmp_path / "other.gguf"
    program = """
import os, sys
from pathlib import Path
from coe_native.files.atomic import working_directory
with working_directory(Path(sys.argv[1])) as directory:
    (directory / "large.gguf").write_bytes(b"left behind")
    os._exit(9)
"""
    for path in (out, other):
        assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    (of_other,) = tmp_path.glob(".other.gguf.*")
    with atomic.working_directory(out) as mine:
        assert set(tmp_path.iterdir()) == {mine, of_other}
        (mine / "large.gguf").write_bytes(b"in use")
        with atomic.working_directory(out) as second, atomic.replacing(out) as file:
            file.write(b"done")
            assert mine.is_dir()
            assert second.is_dir()
        assert (mine / "large.gguf").exists()
    assert set(tmp_path.iterdir()) == {out, of_other}
    with pytest.raises(KeyboardInterrupt), atomic.working_directory(other):
        raise KeyboardInterrupt
    assert set(tmp_path.iterdir()) == {out}
