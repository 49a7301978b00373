"""Make a verified and judged specialist from a parent and a kind of text, in one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from coe_native.corpus.corpora import Corpus
from coe_native.errors import CoeError, InputError
from coe_native.evaluation.perplexity import Evaluation, check_text, evaluate
from coe_native.files.atomic import check_space, check_target, replacing
from coe_native.llama.loaded_model import LoadedModel
from coe_native.masks.build import build
from coe_native.masks.expert_mask import ExpertMask
from coe_native.masks.options import MaskOptions
from coe_native.model.sampler_defaults import PUBLISHED_SAMPLING, SamplerDefaults
from coe_native.profiling.run import Progress, profile_corpora
from coe_native.routing.scores import check_method, supports_method
from coe_native.surgery.notice import safety_notice
from coe_native.surgery.verify import Check, verify
from coe_native.surgery.write import Report, prune

SHOWN = ("contribution", "utility")
"""Methods whose masks are judged besides the chosen one, because the best one depends on the model."""


@dataclass(frozen=True)
class Specialist:
    """A written specialist, and what was found about it.

    Attributes:
        path: Its file.
        mask: Its mask.
        checks: The verification.
        parent: The parent's evaluation on each text.
        live_masked: The evaluation of the parent under the live mask, before the file was written.
        pruned: The evaluation of the file.
        other_methods: The evaluations of the parent under the masks of other methods of SHOWN, by method.
            They have no files.
    """

    path: Path
    mask: ExpertMask
    checks: tuple[Check, ...]
    parent: tuple[Evaluation, ...]
    live_masked: tuple[Evaluation, ...]
    pruned: tuple[Evaluation, ...]
    other_methods: Mapping[str, tuple[Evaluation, ...]]

    @property
    def method(self) -> str:
        """Return how the experts of the file were scored."""
        return str(self.mask.provenance["method"])


@dataclass(frozen=True)
class Watchers:
    """Functions that are called with the progress.

    Attributes:
        step: Called with the name of each step.
        tokens: Called with the progress of profiling.
        n_bytes: Called with bytes written or verified, and bytes in all.
    """

    step: Callable[[str], None] = lambda name: None
    tokens: Callable[[Progress], None] = lambda progress: None
    n_bytes: Report = lambda done, total: None


UNWATCHED = Watchers()


def judge(model: LoadedModel, texts: Sequence[Corpus]) -> tuple[Evaluation, ...]:
    """Return the evaluation of a loaded model on each text. A live mask stays in force."""
    return tuple(evaluate(model, text) for text in texts)


def outputs_beside(out: Path) -> dict[str, Path]:
    """Return the files that are written beside a specialist, by their kind."""
    kinds = ("profile.gguf", "imatrix.gguf", "mask.json", "report.json")
    return {kind: out.with_name(f"{out.stem}.{kind}") for kind in kinds}


def check_outputs(out: Path, *, force: bool, inputs: tuple[Path, ...]) -> None:
    """Check that all files can be written that `specialise` writes for an output.

    Args:
        out: The specialist's file.
        force: Whether files may be replaced.
        inputs: Files and directories that must not be replaced, `force` or not.

    Raises:
        InputError: One of them cannot be written.
    """
    for path in (out, *outputs_beside(out).values()):
        check_target(path, force=force, inputs=inputs)


def specialise(
    parent: LoadedModel,
    corpora: Sequence[Corpus],
    out: str | Path,
    *,
    texts: Sequence[Corpus],
    mask_options: MaskOptions,
    judged_parent: tuple[Evaluation, ...] | None = None,
    sampling: SamplerDefaults | None = PUBLISHED_SAMPLING,
    close_parent: bool = False,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    watchers: Watchers = UNWATCHED,
) -> Specialist:
    """Make a specialist: profile, build a mask, judge it live, prune, verify, and judge the file.

    Besides ``NAME.gguf`` it writes ``NAME.profile.gguf``, ``NAME.mask.json`` and ``NAME.report.json``.

    Args:
        parent: The loaded parent.
        corpora: The calibration corpus.
        out: The specialist's file.
        texts: The held-out texts.
        mask_options: How the mask is built.
        judged_parent: The parent's evaluation on each text; None: it is judged.
        sampling: Sampling settings in the file, as for `prune`.
        close_parent: Close the parent before the specialist is loaded, so that they never need memory together.
        force: Replace existing files.
        inputs: Files and directories that must not be replaced, `force` or not.
        watchers: Who is told about the progress.

    Raises:
        InputError: An input, an option or an output cannot be used.
        CoeError: A step fails, or the written file fails verification and is removed.
    """
    out = Path(out)
    check_outputs(out, force=force, inputs=(*parent.moe.paths, *inputs))
    beside = outputs_beside(out)
    # Everything that would fail late is checked before the long part.
    parent.moe.check_cut(mask_options.keep)
    if parent.moe.surgery is not None and parent.moe.surgery.mode == "zero":
        raise InputError(f"{parent.moe.path}: has zeroed experts; specialise the original model")
    check_space(out, parent.moe.specialist_bytes(mask_options.keep))
    for text in texts:
        check_text(parent, text)
    reasoning = mask_options.reasoning
    method = mask_options.for_profiles([]).method or ""
    if reasoning is not None:
        check_method(reasoning, method)
    others = [
        other for other in SHOWN if other != method and (reasoning is None or supports_method(reasoning, other))
    ]

    watchers.step("profiling")
    profile = profile_corpora(parent, corpora, progress=watchers.tokens)
    profile.save(beside["profile.gguf"], force=force)
    mask = build(profile, replace(mask_options, method=method))
    mask.save(beside["mask.json"], force=force)
    beside["imatrix.gguf"].unlink(missing_ok=True)  # of a specialist that this one replaces

    watchers.step("judging the mask live")
    if judged_parent is None:
        judged_parent = judge(parent, texts)
    live_masked = _judge_masked(parent, mask, texts)
    by_others = {}
    for other in others:
        watchers.step(f"judging the mask by {other} live")
        its_mask = build(profile, replace(mask_options, method=other))
        by_others[other] = _judge_masked(parent, its_mask, texts)

    if close_parent:
        parent.close()
    watchers.step("pruning")
    prune(parent.moe.path, mask, out, sampling=sampling, force=force, progress=watchers.n_bytes)
    watchers.step("verifying")
    checks = tuple(verify(out, parent.moe.path, mask, progress=watchers.n_bytes))
    failed = [check for check in checks if not check.passed]
    if failed:
        out.unlink()
        raise CoeError(f"{out}: failed verification and was removed: {failed[0].name}: {failed[0].detail}")
    watchers.step("judging the specialist")
    with parent.like(out) as written:
        pruned = judge(written, texts)
    specialist = Specialist(
        path=out,
        mask=mask,
        checks=checks,
        parent=judged_parent,
        live_masked=live_masked,
        pruned=pruned,
        other_methods=by_others,
    )
    _write_report(specialist, parent, beside["report.json"])
    return specialist


def _judge_masked(parent: LoadedModel, mask: ExpertMask, texts: Sequence[Corpus]) -> tuple[Evaluation, ...]:
    parent.apply(mask)
    try:
        return judge(parent, texts)
    finally:
        parent.clear_mask()


def _write_report(specialist: Specialist, parent: LoadedModel, path: Path) -> None:
    report = {
        "parent": str(parent.moe.path),
        "parent_bytes": parent.moe.n_bytes,
        "specialist": str(specialist.path),
        "specialist_bytes": specialist.path.stat().st_size,
        "keep": specialist.mask.keep,
        "experts": specialist.mask.n_experts,
        "mask": specialist.mask.digest,
        "provenance": dict(specialist.mask.provenance),
        "checks": [asdict(check) for check in specialist.checks],
        "evaluation": {
            "parent": [asdict(e) for e in specialist.parent],
            "live_masked": [asdict(e) for e in specialist.live_masked],
            "pruned": [asdict(e) for e in specialist.pruned],
            "other_methods": {
                method: [asdict(e) for e in evaluations]
                for method, evaluations in specialist.other_methods.items()
            },
        },
        "notice": safety_notice(specialist.method),
    }
    with replacing(path) as file:
        file.write(json.dumps(report, indent=1).encode() + b"\n")
