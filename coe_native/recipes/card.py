"""Write a model card: what a model is made from, what it needs, and what was measured."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import gguf
import jinja2

from coe_native import __version__
from coe_native.errors import InputError, printable
from coe_native.evaluation.attempts import Attempt, by_category, read_attempts
from coe_native.evaluation.intervals import Share
from coe_native.evaluation.sweep import Sweep
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.memory import simulated_memory
from coe_native.llama.options import Placement
from coe_native.model.header import ModelHeader
from coe_native.recipes.modelfile import usage
from coe_native.routing.profile import RoutingProfile
from coe_native.units import gibibytes, gigabytes

CONTEXTS = (16384, 65536)
"""Contexts of the memory table."""

_RUNS = {"passed": "programming problems", "looping": "loops"}
"""What a file of answers measures, by the result in it."""


@dataclass(frozen=True)
class Row:
    """One measured share."""

    name: str
    share: Share

    def __str__(self) -> str:
        """Return a row of a Markdown table."""
        low, high = self.share.interval
        cells = (self.name, f"{self.share.count} of {self.share.total}", f"{low:.1%} to {high:.1%}")
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Measured:
    """The results of one file of answers.

    Attributes:
        kind: What was measured: a value of _RUNS.
        rows: The shares, in all and by category.
    """

    kind: str
    rows: tuple[Row, ...]


def model_card(
    path: Path,
    *,
    runs: Sequence[Path] = (),
    sweeps: Sequence[Path] = (),
    profile: RoutingProfile | None = None,
    base_model: str | None = None,
) -> str:
    """Return a model card in Hugging Face's format: Markdown with YAML front matter.

    What was not measured is listed as not measured.

    Args:
        path: The model.
        runs: Files of answers that `humaneval`, `livecodebench` or `loops` have judged.
        sweeps: Files that `sweep` wrote for the parent.
        profile: The profile that the mask was made from.
        base_model: The parent's name on Hugging Face; None: the one in the model's metadata, if there is one.

    Raises:
        InputError: A file cannot be read, or has not been judged.
    """
    if base_model is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base_model) is None:
        raise InputError(f"{base_model!r} is not a name on Hugging Face; write OWNER/NAME")
    header = ModelHeader(path)
    if profile is not None and not _is_of(profile.fingerprint, header):
        raise InputError("the profile is of another model; give the one that the mask was made from")
    with LoadedModel(path, n_ctx=32, n_batch=32, tokenizer_only=True) as model:
        how = usage(model, may_be_split=True)
    measured = [_measured(run) for run in runs]
    read = [Sweep.load(sweep) for sweep in sweeps]
    for place, sweep in zip(sweeps, read, strict=True):
        if not _is_of(sweep.fingerprint, header):
            raise InputError(f"{place}: is a sweep of another model; give one of the parent of {path}")
    missing = [what for kind, what in _MISSING if kind not in {found.kind for found in measured}]
    if not read:
        missing.append("perplexity by number of experts (`coe-native sweep -o`)")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"yaml": _yaml, "cell": _cell}
    template = environment.from_string(files("coe_native.recipes").joinpath("card.md.j2").read_text("utf-8"))
    text: str = template.render(
        name=header.name,
        file=path.name,
        quoted=shlex.quote(path.name),
        n_files=len(header.paths),
        n_ctx=min(CONTEXTS[0], int(how.parameters["num_ctx"])),
        base_models=[base_model] if base_model else _base_models(header),
        license=_text(header, "general.license"),
        quantization=_quantization(header),
        facts=_facts(header, profile),
        corpora=() if profile is None else profile.corpora,
        memory=_memory(path),
        measured=measured,
        sweeps=[_sweep_rows(sweep, header) for sweep in read],
        missing=missing,
        how=how,
        is_specialist=header.surgery is not None,
        version=__version__,
    )
    return text


_MISSING = (
    ("programming problems", "programming problems (`coe-native humaneval`, `coe-native livecodebench`)"),
    ("loops", "how many answers loop (`coe-native loops`)"),
)


def _measured(path: Path) -> Measured:
    attempts = read_attempts(path)
    for name, kind in _RUNS.items():
        judged = [attempt for attempt in attempts if getattr(attempt, name) is not None]
        if judged:
            groups: list[tuple[str, list[Attempt]]] = [("all", judged), *by_category(judged)]
            return Measured(
                kind,
                tuple(
                    Row(
                        f"{path.stem}, {_cell(group)}",
                        Share(sum(bool(getattr(attempt, name)) for attempt in members), len(members)),
                    )
                    for group, members in groups
                ),
            )
    raise InputError(
        f"{path}: its answers have not been judged; run the command again with --allow-code-execution"
    )


def _is_of(fingerprint: str, header: ModelHeader) -> bool:
    """Return whether a fingerprint is that of the model's parent, or of the model if it has none."""
    made_from = header.metadata("coe.mask.parent_fingerprint")
    return header.has_fingerprint(fingerprint) if header.surgery is None else made_from == fingerprint


def _sweep_rows(sweep: Sweep, header: ModelHeader) -> list[tuple[str, str, str, str]]:
    """Return the model, the experts, the size and the loss on each text of each point."""
    record = header.surgery
    rows = []
    for point in sweep.points:
        losses = ", ".join(
            f"{_cell(found.text)} {loss:+.1%}"
            for found, loss in zip(point.evaluations, sweep.losses(point), strict=True)
        )
        is_this = record is not None and point.mask == record.digest
        kept = f"{point.keep} of {sweep.n_experts}, {point.method}" + (" (this model)" if is_this else "")
        rows.append((_cell(point.model or sweep.model), kept, gigabytes(point.n_bytes), losses))
    return rows


def _memory(path: Path) -> list[tuple[str, str, str, str]]:
    """Return contexts with the weights, keys and values with buffers, and all that llama.cpp would allocate."""
    rows = []
    for n_ctx in CONTEXTS:
        memory = simulated_memory(path, Placement(n_ctx=n_ctx))
        where = ", GPU" if memory.on_gpu else ""
        rows.append(
            (
                f"{n_ctx}{where}",
                gibibytes(memory.weights),
                gibibytes(memory.context + memory.compute),
                gibibytes(memory.total),
            )
        )
    return rows


def _facts(header: ModelHeader, profile: RoutingProfile | None) -> list[tuple[str, str]]:
    record = header.surgery
    facts = [
        ("architecture", header.architecture),
        ("file", f"{gigabytes(header.n_bytes)}, {_quantization(header) or 'unknown quantisation'}"),
        ("experts in each layer", str(header.n_experts)),
    ]
    if record is not None:
        of = header.metadata("coe.mask.parent_expert_count")
        what = "pruned to" if record.mode == "prune" else "all but these zeroed:"
        facts += [
            ("experts of the parent", str(of or header.n_experts)),
            ("surgery", f"{what} {record.keep} experts in each layer"),
            ("mask", record.digest),
            ("parent's fingerprint", str(header.metadata("coe.mask.parent_fingerprint", "unknown"))),
        ]
    if profile is not None:
        facts.append(("tokens of the calibration corpus", f"{profile.n_tokens:,}"))
    return [(name, _cell(value)) for name, value in facts]


def _quantization(header: ModelHeader) -> str:
    """Return the name of the mix of types that the file says it has; empty: it says none."""
    number = header.metadata("general.file_type")
    try:
        name: str = gguf.LlamaFileType(number).name
    except ValueError:
        return ""
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _base_models(header: ModelHeader) -> list[str]:
    """Return the names on Hugging Face of the models that this one comes from, as far as its metadata tells."""
    count = header.metadata("general.base_model.count", 0)
    found = []
    for index in range(min(count, 8) if isinstance(count, int) else 0):
        url = _text(header, f"general.base_model.{index}.repo_url")
        match = re.match(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?$", url)
        if match is not None:
            found.append(match[1])
    return found


def _text(header: ModelHeader, key: str) -> str:
    value = header.metadata(key)
    return printable(value) if isinstance(value, str) else ""


def _yaml(value: str) -> str:
    """Return a text as YAML, of which JSON's texts are a part."""
    return json.dumps(value, ensure_ascii=False)


def _cell(value: str) -> str:
    """Return a text that ends no cell of a Markdown table and begins no HTML."""
    return printable(value, 200).replace("|", "\\|").replace("<", "&lt;")
