"""The demo: make specialists from the model and texts that come with the package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coe_native.corpus.corpora import Corpus
from coe_native.corpus.read import read_corpus
from coe_native.errors import InputError
from coe_native.evaluation.perplexity import Evaluation
from coe_native.files.atomic import check_target, replacing
from coe_native.llama.loaded_model import LoadedModel
from coe_native.masks.options import MaskOptions
from coe_native.profiling.run import DOCUMENTS_AT_ONCE
from coe_native.recipes.specialise import UNWATCHED, Specialist, Watchers, check_outputs, judge, specialise

DATA = Path(__file__).parents[1] / "demo_data"
MODEL = DATA / "demo-Q8_0.gguf"
KINDS = ("python", "prose", "cpp")


def corpus(kind: str, part: str) -> Corpus:
    """Return a part of the text of one kind.

    Args:
        kind: One of KINDS.
        part: ``profile``, the calibration corpus, or ``test``, the held-out text.
    """
    read = read_corpus(DATA / f"{kind}.{part}.jsonl")
    return Corpus(kind, read.documents)


@dataclass(frozen=True)
class Demo:
    """The result of the demo.

    Attributes:
        parent_bytes: Size of the parent's file.
        parent: The parent's evaluation on each kind of text.
        specialists: A specialist for each kind.
    """

    parent_bytes: int
    parent: tuple[Evaluation, ...]
    specialists: Mapping[str, Specialist]


def copy_inputs(directory: Path, *, force: bool = False) -> list[Path]:
    """Copy the demo's model, texts, problems and prompts into a directory, which is created if it does not exist.

    Args:
        directory: Where to copy them.
        force: Replace existing files.

    Returns:
        The copies.

    Raises:
        InputError: A file exists (without `force`), or the directory cannot be written to.
    """
    _create(directory)
    inputs = (MODEL, *sorted(DATA.glob("*.jsonl")), DATA / "prompts.txt")
    copies = {path: directory / path.name for path in inputs}
    for path, copy in copies.items():
        check_target(copy, force=force, inputs=(path,))
    for path, copy in copies.items():
        with path.open("rb") as source, replacing(copy) as target:
            shutil.copyfileobj(source, target)
    return list(copies.values())


def _create(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made a directory: {error.strerror or error}") from error


def run(
    directory: Path, *, n_threads: int | None = None, force: bool = False, watchers: Watchers = UNWATCHED
) -> Demo:
    """Make a specialist with half the experts for each kind of text, and judge each on all held-out texts.

    Args:
        directory: Where to write them. It is created if it does not exist.
        n_threads: CPU threads; None: all cores.
        force: Replace existing files.
        watchers: Who is told about the progress.

    Raises:
        InputError: An output exists (without `force`), or cannot be written.
        CoeError: A step fails.
    """
    _create(directory)
    outputs = {kind: directory / f"{kind}-specialist.gguf" for kind in KINDS}
    for out in outputs.values():
        check_outputs(out, force=force, inputs=(MODEL,))
    texts = [corpus(kind, "test") for kind in KINDS]
    with LoadedModel(MODEL, n_sequences=DOCUMENTS_AT_ONCE, n_threads=n_threads) as parent:
        watchers.step("judging the parent")
        judged = judge(parent, texts)
        specialists = {}
        for kind in KINDS:
            specialists[kind] = specialise(
                parent,
                [corpus(kind, "profile")],
                outputs[kind],
                texts=texts,
                mask_options=MaskOptions(keep=parent.moe.n_experts // 2),
                judged_parent=judged,
                force=force,
                watchers=_named(kind, watchers),
            )
        return Demo(parent.moe.n_bytes, judged, specialists)


def _named(kind: str, watchers: Watchers) -> Watchers:
    """Return watchers that are also told which kind of text a step is for."""
    return Watchers(lambda step: watchers.step(f"{kind}: {step}"), watchers.tokens, watchers.n_bytes)
