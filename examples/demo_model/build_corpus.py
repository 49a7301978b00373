"""Collect the three kinds of text that the demo model is trained, profiled and judged on.

Sources (licences in ``SOURCES.md``):

* ``python``: the standard library of the running interpreter;
* ``prose``: the King James Bible, the PostgreSQL manual and the Jargon File;
* ``cpp``: the Boost headers.

The last two kinds come from Debian packages, fetched with ``apt-get download`` and unpacked
without installing anything. Each kind becomes three sets of whole documents, chosen by a hash of the
document's name, so that a set never depends on the order of the files:

* ``train``: what the model learns from;
* ``profile`` and ``test``: never trained on; the first chooses experts, the second judges them.

    python build_corpus.py --work WORK --out corpora
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("bible-kjv", "bible-kjv-text", "postgresql-doc-15", "dict-jargon", "libboost1.74-dev")
BOOST_LIBRARIES = [
    "algorithm",
    "any",
    "asio",
    "assign",
    "atomic",
    "beast",
    "bimap",
    "chrono",
    "circular_buffer",
    "container",
    "context",
    "coroutine2",
    "date_time",
    "dll",
    "endian",
    "fiber",
    "filesystem",
    "flyweight",
    "format",
    "functional",
    "geometry",
    "graph",
    "hana",
    "heap",
    "histogram",
    "icl",
    "interprocess",
    "intrusive",
    "io",
    "iterator",
    "json",
    "lambda",
    "lexical_cast",
    "locale",
    "lockfree",
    "log",
    "math",
    "multi_array",
    "multi_index",
    "multiprecision",
    "numeric",
    "optional",
    "outcome",
    "parameter",
    "poly_collection",
    "pool",
    "process",
    "program_options",
    "property_tree",
    "proto",
    "ptr_container",
    "python",
    "random",
    "range",
    "regex",
    "serialization",
    "signals2",
    "smart_ptr",
    "sort",
    "spirit",
    "stacktrace",
    "statechart",
    "system",
    "test",
    "thread",
    "tokenizer",
    "type_erasure",
    "type_index",
    "units",
    "unordered",
    "utility",
    "uuid",
    "variant",
    "wave",
    "xpressive",
]

Document = tuple[str, str]  # name, text


def fetch_packages(work: Path) -> Path:
    """Download and unpack the Debian packages below `work`; returns the root of their files."""
    root = work / "root"
    if not root.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=work, check=True)
        for package in sorted(work.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root


def python_documents() -> Iterator[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if not skipped.intersection(name.parts):
            yield f"python/{name}", path.read_text(encoding="utf-8", errors="replace")


def bible_documents(root: Path) -> Iterator[Document]:
    """One document a book, one line a verse, without chapter and verse numbers."""
    # Run in place: the program refuses long paths.
    command = ["./usr/bin/bible", "-d", "usr/lib/bible.data", "-f", "Gen1:1-Rev22:21"]
    text = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    books: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\d?[A-Z][A-Za-z]+)(\d+):\d+ (.*)", line)
        if match:
            books.setdefault(f"{match[1]} {int(match[2]) // 10}", []).append(match[3])
    for name, verses in books.items():
        yield f"bible/{name}", "\n".join(verses) + "\n"


def postgresql_documents(root: Path) -> Iterator[Document]:
    """The manual's pages as plain text: tags removed, blank runs joined; reference lists left out."""
    for path in sorted((root / "usr/share/doc/postgresql-doc-15/html").glob("*.html")):
        if path.name.startswith(("release-", "bookindex", "features-", "errcodes")):
            continue
        page = path.read_text(encoding="utf-8")
        body = re.sub(r'<div class="nav(?:header|footer)">.*?</div>', "", page.split("<body", 1)[1], flags=re.S)
        body = re.sub(r"<pre.*?</pre>", "\n", body, flags=re.S)
        body = re.sub(r"</(?:p|div|h\d|li|dt|dd|tr)>", "\n", body)
        text = html.unescape(re.sub(r"<[^>]*>", "", body.partition(">")[2]))
        lines = [" ".join(line.split()) for line in text.splitlines()]
        yield f"postgresql/{path.name}", "\n".join(line for line in lines if line) + "\n"


def jargon_documents(root: Path) -> Iterator[Document]:
    text = gzip.decompress((root / "usr/share/dictd/jargon.dict.dz").read_bytes()).decode("utf-8")
    entries = re.split(r"\n(?=\S)", text)
    for start in range(0, len(entries), 40):
        lines = (line.strip() for line in "\n".join(entries[start : start + 40]).splitlines())
        yield f"jargon/{start:05}", "\n".join(lines) + "\n"


def boost_documents(root: Path) -> Iterator[Document]:
    include = root / "usr/include/boost"
    for library in BOOST_LIBRARIES:
        for path in sorted((include / library).rglob("*.[hi]pp")):
            if "preprocessed" not in path.parts:
                yield f"boost/{path.relative_to(include)}", path.read_text(encoding="utf-8", errors="replace")


def is_text(text: str) -> bool:
    """Leaves out stubs and tables: most of a document should be letters and blanks."""
    return len(text) > 400 and sum(c.isalpha() or c.isspace() for c in text) > 0.7 * len(text)


def split_of(name: str) -> str:
    bucket = hashlib.sha256(name.encode()).digest()[0]
    return "profile" if bucket < 10 else "test" if bucket < 20 else "train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where packages are unpacked")
    parser.add_argument("--out", type=Path, required=True, help="where KIND.SET.jsonl files are written")
    arguments = parser.parse_args()
    root = fetch_packages(arguments.work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = {
        "python": list(python_documents()),
        "prose": [*bible_documents(root), *postgresql_documents(root), *jargon_documents(root)],
        "cpp": list(boost_documents(root)),
    }
    for kind, documents in kinds.items():
        sets: dict[str, list[str]] = {"train": [], "profile": [], "test": []}
        seen: set[str] = set()
        for name, text in documents:
            digest = hashlib.sha256(text.encode()).hexdigest()
            if is_text(text) and digest not in seen:
                seen.add(digest)
                sets[split_of(name)].append(json.dumps({"name": name, "text": text}, ensure_ascii=False))
        for set_name, lines in sets.items():
            path = arguments.out / f"{kind}.{set_name}.jsonl"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{path}: {len(lines)} documents, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
