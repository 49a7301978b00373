"""Files that other people have prepared: links, pipes, devices, and small files that hold very much."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import resource
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.bare_host import CProfiler
from support.masks import unused_experts

import coe_native as coe
from coe_native.corpus.read import read_corpus
from coe_native.corpus.readers.columnar_helper import ColumnarFile
from coe_native.evaluation.problems import read_problems
from coe_native.files.atomic import replacing
from coe_native.importers.import_file import import_file
from coe_native.importers.torch_file import read_torch
from coe_native.live.attach import Capture
from coe_native.recipes import demo
from coe_native.surgery import in_place as surgery

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[[str, str], coe.RoutingProfile]

NOBODY = 65534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can make another user's links")
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


def plant(link: Path, target: Path) -> None:
    link.symlink_to(target)
    os.lchown(link, NOBODY, NOBODY)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "victim"
    path.parent.mkdir()
    path.write_text("here")
    return path


def run(*words: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "coe_native", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_a_planted_link_is_not_followed(
    shared: Path, victim: Path, profile_of: ProfileOf, force: bool, there: bool
) -> None:
    """Also one that leads to nothing yet."""
    target = victim if there else victim.with_name("new")
    plant(shared / "mask.json", target)
    profile_of("llama", "F32").save(victim.with_name("p.gguf"))
    ended = run("mask", victim.with_name("p.gguf"), "--keep", 8, "-o", shared / "mask.json", *["--force"] * force)
    assert ended.returncode == 2
    assert (there and not force) or "another user" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert victim.read_text() == "here"
    assert not victim.with_name("new").exists()


def test_a_planted_directory_is_not_followed(shared: Path, victim: Path) -> None:
    plant(shared / "out", victim.parent)
    with pytest.raises(coe.CoeError, match="another user"), replacing(shared / "out" / "victim") as file:
        file.write(b"gone")
    assert victim.read_text() == "here"


def test_a_link_by_way_of_an_own_one(shared: Path, victim: Path, tmp_path: Path) -> None:
    plant(shared / "link", victim)
    (tmp_path / "mine").symlink_to(shared / "link")
    with pytest.raises(coe.CoeError, match="another user"), replacing(tmp_path / "mine") as file:
        file.write(b"gone")
    assert victim.read_text() == "here"


def test_own_links_are_followed(shared: Path, victim: Path) -> None:
    (shared / "mine").symlink_to(victim)
    (shared / "relative").symlink_to("mine")
    with replacing(shared / "relative") as file:
        file.write(b"new")
    assert victim.read_text() == "new"
    assert (shared / "mine").is_symlink()


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(coe.CoeError), replacing(tmp_path / "a") as file:
        file.write(b"x")


def test_a_link_that_is_planted_between_two_saves(shared: Path, victim: Path, profile_of: ProfileOf) -> None:
    """As by a server, which saves again and again."""
    from coe_native.live.routing_state import LiveRouting
    from coe_native.masks.options import MaskOptions
    from coe_native.masks.stability import Stability

    profile = profile_of("llama", "F32")
    capture = object.__new__(Capture)
    object.__setattr__(capture, "_profiles", lambda: [profile, profile, profile])
    routing = LiveRouting(capture, shared / "live.gguf", Stability(0.99, MaskOptions(keep=8)), resume=False)
    os.environ["XDG_STATE_HOME"], before = str(victim.parent / "state"), os.environ.get("XDG_STATE_HOME")
    try:
        assert routing.save()[0] == shared / "live.gguf"
        (shared / "live.gguf").unlink()
        plant(shared / "live.gguf", victim)
        (elsewhere, *_) = routing.save()
    finally:
        del os.environ["XDG_STATE_HOME"]
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before
    assert elsewhere.parent == victim.parent / "state" / "coe-native"
    assert victim.read_text() == "here"


def test_what_others_call_leftovers(shared: Path, victim: Path) -> None:
    """Links and pipes with the names of our temporary files."""
    plant(shared / ".out.0123456789ab.coe-tmp", victim)
    os.mkfifo(shared / ".out.ba9876543210.coe-tmp")
    with replacing(shared / "out") as file:
        file.write(b"x")
    assert victim.read_text() == "here"
    assert (shared / "out").read_bytes() == b"x"


def test_nobody_else_can_read_what_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("x")
    (tmp_path / "private").chmod(0o640)
    before = os.umask(0o022)
    try:
        for name, mode in (("new", 0o644), ("private", 0o640)):
            with replacing(tmp_path / name) as file:
                (temporary,) = (path for path in tmp_path.iterdir() if path.name.endswith(".coe-tmp"))
                assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
                file.write(b"x")
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
        os.umask(0o077)
        with replacing(tmp_path / "newer") as file:
            file.write(b"x")
        assert stat.S_IMODE((tmp_path / "newer").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("when", ["before it is opened", "while it is zeroed"])
def test_zeroing_in_place_changes_what_was_planned_and_nothing_else(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Another file takes the model's place in between: it stays as it is, and success is not claimed."""
    model, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    for path in (model, other):
        shutil.copy(model_file("llama", "F32"), path)
    before = other.read_bytes()
    mask = unused_experts(profile_of("llama", "F32"), 8)

    def replace() -> None:
        if other.exists():
            model.rename(tmp_path / "moved.gguf")
            other.rename(model)

    if when == "before it is opened":
        plan = surgery.plan_zero
        monkeypatch.setattr(surgery, "plan_zero", lambda *args: (plan(*args), replace())[0])
    else:
        write = surgery.write_zeros
        monkeypatch.setattr(surgery, "write_zeros", lambda *args: (replace(), write(*args))[1])
    with pytest.raises(coe.CoeError, match=r"changed|replaced"):
        coe.zero_in_place(model, mask)
    assert model.read_bytes() == before
    if when == "before it is opened":
        assert (tmp_path / "moved.gguf").read_bytes() == before


def pickled(directory: Path, instructions: bytes) -> Path:
    with zipfile.ZipFile(directory / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", instructions)
        archive.writestr("archive/byteorder", "little")
    return directory / "x.pt"


@pytest.mark.parametrize(
    "instructions",
    [
        pickle.MARK * 40_000 + pickle.TUPLE * 40_000,
        pickle.MARK * 400_000 + pickle.LIST * 400_000,
        pickle.EMPTY_LIST + (pickle.MARK + pickle.NONE + pickle.APPENDS) * 200_000,
        (pickle.MARK + pickle.NONE) * 300_000,
        pickle.EMPTY_LIST * 1_000_000,
        # A list that shows a thousand million million times as much as it holds.
        pickle.EMPTY_LIST + b"".join(pickle.MEMOIZE + (b"h" + bytes([i])) * 2 + b"\x86" for i in range(50)),
    ],
)
def test_descriptions_take_linear_time(tmp_path: Path, instructions: bytes) -> None:
    path = pickled(tmp_path, b"\x80\x04" + instructions + pickle.STOP)
    started = time.process_time()
    for read in (read_torch, lambda path: import_file(path, n_experts=8)):
        with contextlib.suppress(coe.InputError):
            read(path)
    assert time.process_time() - started < 10


def test_texts_that_are_made_of_texts(tmp_path: Path) -> None:
    """Each of a million names would be a new text of 100 KB."""
    long = b"\x8c\xff" + b"a" * 255 + pickle.MEMOIZE
    path = pickled(tmp_path, b"\x80\x04" + long + (b"h\x00h\x00" + pickle.STACK_GLOBAL) * 400_000 + pickle.STOP)

    def read() -> None:
        with pytest.raises(coe.InputError):
            read_torch(path)

    assert growth_while(read) < 100 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_expand_without_bounds(tmp_path: Path, method: int) -> None:
    """zipfile limits what it gives of these, but not what it unpacks for that."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w", method) as archive:
        archive.writestr("archive/data.pkl", bytes(300 << 20))
        archive.writestr("archive/byteorder", "little")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    size = (300 << 20).to_bytes(4, "little")
    while size in data:
        at = data.index(size)
        data[at : at + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "x.pt").write_bytes(data)

    def read() -> None:
        with pytest.raises(coe.InputError):
            read_torch(tmp_path / "x.pt")

    assert growth_while(read) < 100 << 20


def test_blank_lines_are_not_kept(tmp_path: Path) -> None:
    """A file of 64 KB."""
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b"  \n" * 20_000_000))

    def read() -> None:
        with pytest.raises(coe.InputError, match="problems"):
            read_problems(tmp_path / "p.jsonl.gz")

    assert growth_while(read) < 300 << 20


def test_corpora_of_many_levels_and_strange_links(tmp_path: Path) -> None:
    directory = tmp_path / "corpus"
    directory.mkdir()
    (directory / "a.txt").write_text("alpha")
    (directory / "long").symlink_to("n" * 300)
    (directory / "circle").symlink_to("circle")
    before = Path.cwd()
    try:
        os.chdir(directory)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(before)
        assert [document.content for document in read_corpus(directory).documents] == ["alpha"]
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", str(directory)], check=True)  # shutil and pytest cannot


def test_an_array_has_a_largest_number_of_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3_000_000, 1), np.uint8))
    with pytest.raises(coe.InputError, match="rows"):
        read_corpus(tmp_path / "x.npy")


def test_one_row_that_is_shown_again_and_again(tmp_path: Path) -> None:
    row = pickle.EMPTY_LIST + pickle.MARK + b"K\x01" * 1000 + pickle.APPENDS + pickle.MEMOIZE
    rows = pickle.EMPTY_LIST + pickle.MARK + b"h\x00" * 4000 + pickle.APPENDS + pickle.MEMOIZE
    for count in (3, 3000, 300_000):
        entries = b"".join(b"X" + (6).to_bytes(4, "little") + b"%06d" % i + b"h\x01" for i in range(count))
        names = entries.replace(b"X\x06\x00\x00\x000", b"X\x06\x00\x00\x00n")
        data = b"\x80\x04" + row + rows + pickle.EMPTY_DICT + pickle.MARK + names + pickle.SETITEMS + b"."
        started = time.process_time()
        with pytest.raises(coe.InputError):
            import_file(pickled(tmp_path, data), n_experts=8)
        assert time.process_time() - started < 10


def test_a_description_has_a_largest_size(tmp_path: Path) -> None:
    path = pickled(tmp_path, pickle.NONE * (5 << 20))
    with pytest.raises(coe.InputError, match=r"more|large"):
        read_torch(path)


def growth_while(work: Callable[[], Any]) -> int:
    """Bytes by which this process's largest size grows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def parquet_bomb(path: Path, kind: str) -> None:
    """Files of a few kilobytes whose rows, or the lists in one row, repeat one text."""
    text = "x" * 100_000
    if kind == "rows":
        table = pa.table({"text": pa.DictionaryArray.from_arrays(np.zeros(3_000_000, np.int32), [text])})
    elif kind == "lists":
        values = pa.DictionaryArray.from_arrays(np.zeros(3_000_000, np.int32), [text])
        table = pa.table({"messages": pa.ListArray.from_arrays([0, 3_000_000], values)})
    else:
        table = pa.table({"text": ["x" * 80_000_000]})
    pq.write_table(table, path, compression="zstd", use_dictionary=True)
    del table
    pa.default_memory_pool().release_unused()  # other tests measure this process


@pytest.mark.parametrize("kind", ["rows", "lists", "one text"])
def test_a_parquet_file_expands_within_bounds(tmp_path: Path, kind: str) -> None:
    """Here to 300 GB."""
    path = tmp_path / "bomb.parquet"
    parquet_bomb(path, kind)
    assert path.stat().st_size < 200_000

    def read() -> None:
        with pytest.raises(coe.InputError, match=r"bomb\.parquet"):
            read_corpus(path)

    assert growth_while(read) < 700 << 20


def test_ordinary_parquet_files_are_read(tmp_path: Path) -> None:
    texts = [f"text {i} " * 50 for i in range(3000)]
    pq.write_table(
        pa.table({"text": texts, "when": pa.array([0] * 3000, pa.timestamp("s"))}), tmp_path / "a.parquet"
    )
    assert [document.content for document in read_corpus(tmp_path / "a.parquet").documents] == texts
    with ColumnarFile(tmp_path / "a.parquet") as file:
        assert next(file.records(["text", "when"])) == {"text": texts[0], "when": "1970-01-01 00:00:00"}


@pytest.fixture
def strange(tmp_path: Path) -> Callable[[str, str], Path]:
    """Things that are no regular files, under a name with the ending that a reader goes by."""

    def make(kind: str, ending: str) -> Path:
        path = tmp_path / f"strange{ending}"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.symlink_to("/dev/tty")
        return path

    return make


@pytest.mark.parametrize("kind", ["pipe", "device", "terminal"])
@pytest.mark.parametrize(
    ("words", "ending"),
    [
        ("inspect FILE", ".gguf"),
        ("profile FILE -c x.txt -o out.gguf", ".gguf"),
        ("profile MODEL -c FILE -o out.gguf", ".txt"),
        ("profile MODEL -c FILE -o out.gguf", ".jsonl"),
        ("profile MODEL -c FILE -o out.gguf", ".npy"),
        ("profile MODEL -c FILE -o out.gguf", ".parquet"),
        ("eval MODEL --text FILE", ".txt"),
        ("eval MODEL --text TEXT --mask FILE", ".json"),
        ("prune MODEL --mask FILE -o out.gguf", ".json"),
        ("compare FILE FILE", ".json"),
        ("score FILE", ".gguf"),
        ("mask FILE --keep 8 -o out.json", ".gguf"),
        ("merge FILE FILE -o out.gguf", ".gguf"),
        ("import FILE -o out.gguf", ".pt"),
        ("report FILE -o out.html", ".gguf"),
        ("report PROFILE --sweep FILE -o out.html", ".json"),
        ("humaneval MODEL --problems FILE -o out.jsonl", ".jsonl"),
        ("serve MODEL --mask FILE -o out.gguf", ".json"),
    ],
)
def test_only_regular_files_are_read(
    tmp_path: Path, strange: Callable[[str, str], Path], profile_of: ProfileOf, kind: str, words: str, ending: str
) -> None:
    profile_of("llama", "F32").save(tmp_path / "p.gguf")
    (tmp_path / "text.txt").write_text("some text")
    known = {
        "TEXT": tmp_path / "text.txt",
        "FILE": strange(kind, ending),
        "MODEL": demo.MODEL,
        "PROFILE": tmp_path / "p.gguf",
    }
    line = [str(known.get(word, tmp_path / word if word.startswith("out") else word)) for word in words.split()]
    limited = ["prlimit", f"--as={8 << 30}"] if shutil.which("prlimit") else []
    ended = subprocess.run(
        [*limited, sys.executable, "-m", "coe_native", *line],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "strange" in ended.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_corpus_does_not_lead_outside_of_its_directory(tmp_path: Path, victim: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "inner").mkdir(parents=True)
    (corpus / "a.txt").write_text("alpha")
    (corpus / "b.txt").symlink_to(victim)
    (corpus / "c.txt").symlink_to("a.txt")
    (corpus / "inner" / "d.txt").symlink_to("../a.txt")
    (corpus / "e").symlink_to(victim.parent)
    (corpus / "f.txt").symlink_to("/proc/self/environ")
    read = read_corpus(corpus)
    assert {document.content for document in read.documents} == {"alpha"}
    assert read.n_skipped >= 2
    # A link that somebody names is meant.
    (tmp_path / "named.txt").symlink_to(victim)
    assert read_corpus(tmp_path / "named.txt").documents[0].content == "here"


def test_a_modelfile_names_no_file_with_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.gguf"
    shutil.copy(demo.MODEL, path)
    ended = run("modelfile", path)
    assert ended.returncode == 2
    assert "control" in ended.stderr
    assert "\x1b" not in ended.stderr + ended.stdout
    assert "\\x1b[31m" in ended.stderr


def test_the_c_library_follows_no_planted_link_either(shared: Path, victim: Path) -> None:
    profiler = CProfiler(demo.MODEL)
    plant(shared / "theirs", victim)
    with pytest.raises(AssertionError, match="another user"):
        profiler.save(shared / "theirs", "x")
    assert victim.read_text() == "here"
    (shared / "mine").symlink_to("other")
    (shared / "other").symlink_to(victim.with_name("new"))
    before = os.umask(0o027)
    try:
        profiler.save(shared / "mine", "x")
    finally:
        os.umask(before)
    profiler.close()
    assert stat.S_IMODE(victim.with_name("new").stat().st_mode) == 0o640
    assert coe.RoutingProfile.load(shared / "mine").n_tokens == 0
