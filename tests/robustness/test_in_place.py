"""Zeroing in place, interrupted at every moment: the file is as it was, or refused by everybody until the same
command has come to its end, or done."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.masks import unused_experts
from support.random_models import split_model

import coe_native as coe
from coe_native._native import core
from coe_native.model.gguf_file import MAGIC, UNDER_SURGERY
from coe_native.model.surgery_record import SurgeryRecord
from coe_native.surgery import in_place as surgery

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]
COMMAND = Path(sys.executable).with_name("coe-native")


@pytest.fixture
def mask(profile_of: ProfileOf) -> coe.ExpertMask:
    return unused_experts(profile_of("qwen3moe"), 8)


@pytest.fixture
def another(profile_of: ProfileOf) -> coe.ExpertMask:
    return unused_experts(profile_of("qwen3moe"), 6)


@pytest.fixture
def model(tmp_path: Path, model_file: ModelFile) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copy(model_file("qwen3moe", "Q8_0"), tmp_path / "model.gguf"))


@pytest.fixture
def zeroed(tmp_path: Path, model_file: ModelFile, mask: coe.ExpertMask) -> bytes:
    """What uninterrupted zeroing makes of it."""
    path = Path(shutil.copy(model_file("qwen3moe", "Q8_0"), tmp_path / "zeroed.gguf"))
    coe.zero_in_place(path, mask)
    return path.read_bytes()


# What ends the process where it stands, at the `last`-th of the moments at which the disk is written to.
KILLED = """
import os, signal, sys
import coe_native as coe
from coe_native.surgery import in_place as surgery

path, mask, last = sys.argv[1], coe.ExpertMask.load(sys.argv[2]), int(sys.argv[3])
moments = 0

def counting(function):
    def wrapped(*arguments):
        global moments
        moments += 1
        if moments == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return wrapped

surgery.write_zeros = counting(surgery.write_zeros)
os.fsync = counting(os.fsync)
coe.zero_in_place(path, mask)
print(moments)
"""


def test_killed_at_every_moment(
    tmp_path: Path, model: Path, mask: coe.ExpertMask, another: coe.ExpertMask, zeroed: bytes
) -> None:
    before = model.read_bytes()
    mask.save(tmp_path / "mask.json")
    states = []
    for last in range(1, 1000):
        model.write_bytes(before)
        line = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "mask.json"), str(last)]
        run = subprocess.run(line, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            assert int(run.stdout) == last - 1
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
        found = model.read_bytes()
        assert found[:4] in (MAGIC, UNDER_SURGERY)
        if found[:4] == MAGIC:
            # Nothing has been done, or all.
            states.append("good")
            assert found in (before, zeroed)
        else:
            states.append("under surgery")
            with pytest.raises(coe.InputError, match="again"):
                coe.MoeModel(model)
            if coe.MoeModel(model, surgery_goes_on=True).surgery is not None:
                with pytest.raises(coe.InputError, match="mask"):
                    coe.zero_in_place(model, another)
            else:
                assert found[4 : len(before)] == before[4:]
            assert model.read_bytes() == found
        coe.zero_in_place(model, mask)
        assert model.read_bytes() == zeroed
    assert states.count("under surgery") > 20
    assert model.read_bytes() == zeroed


@pytest.fixture
def interrupted(model: Path, mask: coe.ExpertMask, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of which zeroing has done a part."""
    with monkeypatch.context() as patched:
        calls = []

        def stop(*_: object) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt

        patched.setattr(surgery, "write_zeros", stop)
        with pytest.raises(KeyboardInterrupt):
            coe.zero_in_place(model, mask)
    return model


def test_every_command_refuses_a_half_zeroed_model(
    tmp_path: Path, interrupted: Path, model_file: ModelFile, profile_of: ProfileOf, mask: coe.ExpertMask
) -> None:
    parent = model_file("qwen3moe", "Q8_0")
    mask.save(tmp_path / "mask.json")
    profile_of("qwen3moe").save(tmp_path / "profile.gguf")
    (tmp_path / "tokens.jsonl").write_text('{"tokens": [1, 2, 3]}\n')
    found = interrupted.read_bytes()
    files = sorted(tmp_path.iterdir())
    for line in (
        "inspect model.gguf",
        "profile model.gguf -c tokens.jsonl -o out",
        "eval model.gguf --text tokens.jsonl",
        f"eval {parent} --reference model.gguf --text tokens.jsonl",
        "prune model.gguf --mask mask.json -o out",
        "zero model.gguf --mask mask.json -o out",
        f"verify {parent} --parent model.gguf --mask mask.json",
        "specialise model.gguf -c tokens.jsonl --keep 8 -o out",
    ):
        run = subprocess.run(
            [COMMAND, *line.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert (run.returncode, run.stdout) == (2, ""), line
        assert run.stderr.startswith("coe-native: "), line
        assert re.search(r"model\.gguf.*zero --in-place", run.stderr), line
        assert run.stderr.count("\n") == 1
    # What verify looks at is judged, not read.
    (check,) = coe.verify(interrupted, parent, mask)
    assert (check.name, check.passed) == ("header", False)
    assert "--in-place" in check.detail
    # Nor does llama.cpp take it.
    with pytest.raises(RuntimeError, match="COEZ"):
        core.Session(os.fsencode(interrupted), coe.ModelOptions(n_ctx=8, n_batch=8, n_gpu_layers=0).for_session())
    assert interrupted.read_bytes() == found
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_torn_record_is_ignored(model: Path, mask: coe.ExpertMask, zeroed: bytes, length: int) -> None:
    """Then nothing has been zeroed, and any mask may begin anew; what is left of the record does no harm."""
    before = model.read_bytes()
    record = zeroed[len(before) :]
    model.write_bytes(UNDER_SURGERY + before[4:] + record[:length])
    coe.zero_in_place(model, mask)
    written = model.read_bytes()
    assert written.endswith(record)
    assert written[: len(before)] == zeroed[: len(before)]
    moe = coe.MoeModel(model)
    assert moe.surgery == SurgeryRecord("zero", mask.keep, mask.digest, in_place=True)


@pytest.mark.parametrize(
    "end",
    [
        b"coe-zero",
        b"\xff\xff\xff\xffcoe-zero",
        b"\2\0\0\0coe-zero",
        b"{}\2\0\0\0coe-zero",
        b"[" * 60000 + b"\x60\xea\0\0coe-zero",
    ],
)
def test_trailing_bytes_without_record_are_ignored(model: Path, mask: coe.ExpertMask, end: bytes) -> None:
    model.write_bytes(model.read_bytes() + end)
    assert coe.MoeModel(model).surgery is None
    before = model.read_bytes()
    coe.zero_in_place(model, mask)
    assert model.read_bytes()[len(before) - len(end) : len(before)] == end


def test_a_record_stands_behind_data_without_padding(
    model: Path, mask: coe.ExpertMask, another: coe.ExpertMask, model_file: ModelFile
) -> None:
    """The last tensor need not be padded for a file to be good."""
    end = coe.MoeModel(model).files[0].data_end
    with model.open("r+b") as file:
        file.truncate(end)
    coe.zero_in_place(model, mask)
    assert coe.MoeModel(model).surgery == SurgeryRecord("zero", mask.keep, mask.digest, in_place=True)
    with pytest.raises(coe.InputError, match="mask"):
        coe.zero_in_place(model, another)
    assert all(check.passed for check in coe.verify(model, model_file("qwen3moe", "Q8_0"), mask))


def test_zeroed_as_a_copy_and_then_in_place(
    tmp_path: Path, mask: coe.ExpertMask, another: coe.ExpertMask, model_file: ModelFile
) -> None:
    """It has its record already."""
    parent = model_file("qwen3moe", "Q8_0")
    copy = coe.zero(parent, mask, tmp_path / "copy.gguf")
    before = copy.read_bytes()
    coe.zero_in_place(copy, mask)
    assert copy.read_bytes() == before
    assert all(check.passed for check in coe.verify(copy, parent, mask))
    with pytest.raises(coe.InputError, match="mask"):
        coe.zero_in_place(copy, another)


def test_a_specialist_is_zeroed_in_place(tmp_path: Path, mask: coe.ExpertMask, model_file: ModelFile) -> None:
    """By a mask of its own, which is recorded beside that of its pruning."""
    specialist = coe.prune(model_file("qwen3moe", "Q8_0"), mask, tmp_path / "specialist.gguf")
    parent = shutil.copy(specialist, tmp_path / "copy.gguf")
    own = unused_experts(coe.profile(specialist, [[1, 2, 3] * 9], n_threads=1), 6)
    coe.zero_in_place(specialist, own)
    assert coe.MoeModel(specialist).surgery == SurgeryRecord("zero", 6, own.digest, in_place=True)
    assert all(check.passed for check in coe.verify(specialist, parent, own))


def test_a_file_that_changes_before_it_is_locked_is_refused(
    model: Path, mask: coe.ExpertMask, another: coe.ExpertMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mask comes first, between reading the header and taking the lock."""
    original = surgery.lock

    def late(file: object) -> object:
        with monkeypatch.context() as patched:
            patched.setattr(surgery, "lock", original)
            coe.zero_in_place(model, another)
        return original(file)  # type: ignore[arg-type]

    monkeypatch.setattr(surgery, "lock", late)
    with pytest.raises(coe.CoeError, match="changed"):
        coe.zero_in_place(model, mask)
    assert coe.MoeModel(model).surgery == SurgeryRecord("zero", another.keep, another.digest, in_place=True)


def test_a_zeroed_model_records_its_mask(
    tmp_path: Path,
    model: Path,
    model_file: ModelFile,
    mask: coe.ExpertMask,
    another: coe.ExpertMask,
    zeroed: bytes,
) -> None:
    """It is a good model, whose dropped experts nobody can have any more."""
    parent = model_file("qwen3moe", "Q8_0")
    digest = coe.MoeModel(model).header_digest
    coe.zero_in_place(model, mask)
    coe.zero_in_place(model, mask)
    assert model.read_bytes() == zeroed
    assert coe.MoeModel(model).header_digest != digest
    checks = coe.verify(model, parent, mask)
    assert all(check.passed for check in checks), checks
    assert "another mask" in next(c.detail for c in coe.verify(model, parent, another) if c.name == "metadata")
    for refused in (
        lambda: coe.zero_in_place(model, another),
        lambda: coe.zero(model, another, tmp_path / "out.gguf"),
        lambda: coe.prune(model, another, tmp_path / "out.gguf"),
        lambda: coe.prune(coe.zero(parent, mask, tmp_path / "copy.gguf"), another, tmp_path / "out.gguf"),
    ):
        with pytest.raises(coe.InputError, match="mask"):
            refused()
    specialist = coe.prune(model, mask, tmp_path / "specialist.gguf")
    assert specialist.read_bytes() == coe.prune(parent, mask, tmp_path / "same.gguf").read_bytes()
    shown = subprocess.run([COMMAND, "inspect", model], capture_output=True, text=True, check=True).stdout
    assert str(mask.keep) in shown


def test_shards_are_all_opened_before_the_first_is_changed(
    tmp_path: Path, model_file: ModelFile, mask: coe.ExpertMask
) -> None:
    shards = split_model(model_file("qwen3moe", "Q8_0"), tmp_path, 3)
    before = [shard.read_bytes() for shard in shards]
    moved = shards[1].with_name("moved")

    original = surgery.plan_zero

    def plan_and_lose_a_shard(*arguments: object) -> object:
        plan = original(*arguments)  # type: ignore[arg-type]
        shards[1].rename(moved)
        return plan

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(surgery, "plan_zero", plan_and_lose_a_shard)
        with pytest.raises(coe.CoeError, match="No such file"):
            coe.zero_in_place(shards[0], mask)
    moved.rename(shards[1])
    assert [shard.read_bytes() for shard in shards] == before


def test_concurrent_zeroing_is_refused(model: Path, mask: coe.ExpertMask, monkeypatch: pytest.MonkeyPatch) -> None:
    original = surgery.write_zeros
    refused = []

    def again(*arguments: object) -> None:
        if not refused:
            refused.append("begun")
            with pytest.raises(coe.CoeError, match="another process"):
                coe.zero_in_place(model, mask)
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(surgery, "write_zeros", again)
    coe.zero_in_place(model, mask)
    assert refused


def test_without_room_for_the_record_nothing_happens(model: Path, mask: coe.ExpertMask, tmp_path: Path) -> None:
    """A file may not grow here, as on a full disk."""
    mask.save(tmp_path / "mask.json")
    before = model.read_bytes()
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {len(before)})); "
        "from coe_native.cli import main; main()"
    )
    line = [sys.executable, "-c", limit, "zero", str(model), "--mask", str(tmp_path / "mask.json"), "--in-place"]
    run = subprocess.run([*line, "--yes"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert re.search("(File too large|No space left on device)\n$", run.stderr)
    assert model.read_bytes() == before


@pytest.mark.parametrize("answer", ["y", "n", "\x03"])
def test_zero_in_place_asks_on_a_terminal(
    tmp_path: Path, model: Path, mask: coe.ExpertMask, zeroed: bytes, answer: str
) -> None:
    mask.save(tmp_path / "mask.json")
    before = model.read_bytes()
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may have it ignored
        os.execv(COMMAND, [COMMAND, "zero", str(model), "--mask", str(tmp_path / "mask.json"), "--in-place"])
    shown = b""
    n_answers = 0
    for _ in range(60):
        if not select.select([terminal], [], [], 1)[0]:
            if answer == "\x03" and n_answers:
                # It came between Python's last look for one and the read that blocks: one presses again.
                os.write(terminal, b"\x03")
            continue
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # Linux's way to say that nobody is at the other end any more
            break
        if not n_answers and shown.rstrip().endswith(b"[y/N]:"):
            os.write(terminal, answer.encode() + b"\n" * (answer != "\x03"))
            n_answers += 1
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert n_answers, shown
    assert b"model.gguf" in shown
    assert model.read_bytes() == (zeroed if answer == "y" else before)
    assert os.waitstatus_to_exitcode(status) == (0 if answer == "y" else 1)
