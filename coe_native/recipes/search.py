"""Find and write the specialist that loses least, over the number of experts and the quantisation."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from coe_native.corpus.batching import tokenize
from coe_native.corpus.corpora import Corpus
from coe_native.corpus.in_memory import corpus_of
from coe_native.errors import CoeError, InputError
from coe_native.evaluation.perplexity import Evaluation, check_text, evaluate
from coe_native.evaluation.sweep import default_keeps, frontier
from coe_native.files.atomic import check_space, replacing, working_directory
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.options import ModelOptions
from coe_native.llama.quantizer import ImatrixFile, QuantizeOptions
from coe_native.masks.build import build
from coe_native.masks.expert_mask import ExpertMask
from coe_native.masks.options import MaskOptions, PassOptions
from coe_native.model.header import ModelHeader
from coe_native.model.sampler_defaults import PUBLISHED_SAMPLING, SamplerDefaults
from coe_native.profiling.imatrix import InputWatcher
from coe_native.profiling.run import DOCUMENTS_AT_ONCE, profile_corpora
from coe_native.recipes.candidates import Candidate, find_candidates
from coe_native.recipes.specialise import UNWATCHED, Watchers, check_outputs, outputs_beside
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import check_method, default_method
from coe_native.surgery.fit import size_of_specialist
from coe_native.surgery.notice import safety_notice
from coe_native.surgery.quantize import write_quantized
from coe_native.surgery.verify import Check, verify
from coe_native.surgery.write import copy, prune

_ROUNDS = 5
"""Masks that are tried with other weights of domains, for one file and number of experts."""


@dataclass(frozen=True)
class Protected:
    """A text whose loss must stay below a bound.

    Attributes:
        name: Its name.
        text: The text. Half of its windows choose experts, the others judge.
        max_loss: The largest increase of its perplexity over the parent's, as a share of the parent's.
    """

    name: str
    text: Corpus
    max_loss: float


@dataclass(frozen=True)
class Goal:
    """What a specialist should be.

    Attributes:
        keep: Experts in each layer; None: as many as fit, or as few as the bounds allow.
        fit_bytes: Bytes of memory that it must fit into; None: any.
        use: How it will be used, which says what memory it takes.
        max_loss: The largest loss on the first text; None: any.
        protected: Other texts with bounds.
    """

    keep: int | None = None
    fit_bytes: int | None = None
    use: ModelOptions | None = None
    max_loss: float | None = None
    protected: tuple[Protected, ...] = ()

    @property
    def has_bounds(self) -> bool:
        """Return whether losses are bounded."""
        return self.max_loss is not None or bool(self.protected)


@dataclass(frozen=True)
class Trial:
    """A candidate that was judged under a live mask.

    Attributes:
        candidate: What it is made of, with the number of experts that was tried.
        mask: The mask; None: all experts stay.
        evaluations: Its evaluation on each text, then on each protected one.
        losses: The increases of their perplexities over the parent's, as shares.
        excess: By how much the worst bound is exceeded; 0 or less: all are kept.
        weights: Weights of the domains by which experts were chosen; empty: there was one.
        is_on_frontier: Whether no other trial is as small and loses as little on the first text.
    """

    candidate: Candidate
    mask: ExpertMask | None
    evaluations: tuple[Evaluation, ...]
    losses: tuple[float, ...]
    excess: float
    weights: tuple[float, ...] = ()
    is_on_frontier: bool = False


@dataclass(frozen=True)
class Found:
    """The specialist that was written, and what else was tried.

    Attributes:
        path: Its file.
        parent: The largest of the given files.
        judged_parent: The evaluation of the parent on each text, then on each protected one.
        chosen: The trial that was written.
        trials: All trials, from the largest to the smallest.
        skipped: Candidates that were not judged.
        written: The evaluation of the written file on each text.
        checks: The verification against the parent.
    """

    path: Path
    parent: ModelHeader
    judged_parent: tuple[Evaluation, ...]
    chosen: Trial
    trials: tuple[Trial, ...]
    skipped: tuple[Candidate, ...]
    written: tuple[Evaluation, ...]
    checks: tuple[Check, ...]

    def as_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        mask = self.chosen.mask
        return {
            "parent": str(self.parent.path),
            "parent_bytes": self.parent.n_bytes,
            "specialist": str(self.path),
            "specialist_bytes": self.path.stat().st_size,
            "keep": self.chosen.candidate.keep,
            "experts": self.parent.n_experts,
            "type": self.chosen.candidate.file_type,
            "mask": "" if mask is None else mask.digest,
            "provenance": {} if mask is None else dict(mask.provenance),
            "checks": [asdict(check) for check in self.checks],
            "evaluation": {
                "parent": [asdict(e) for e in self.judged_parent],
                "live_masked": [asdict(e) for e in self.chosen.evaluations],
                "written": [asdict(e) for e in self.written],
            },
            "points": [_trial_as_json(trial, trial is self.chosen) for trial in self.trials],
            "skipped": [{"model": c.name, "keep": c.keep, "reason": c.skipped} for c in self.skipped],
            "notice": "" if mask is None else safety_notice(mask.provenance.get("method")),
        }


def _trial_as_json(trial: Trial, is_chosen: bool) -> dict[str, object]:
    candidate = trial.candidate
    return {
        "model": candidate.name,
        "type": candidate.file_type,
        "keep": candidate.keep,
        "n_bytes": candidate.n_bytes,
        "memory": candidate.memory,
        "frontier": trial.is_on_frontier,
        "chosen": is_chosen,
        "weights": trial.weights,
        "losses": trial.losses,
        "evaluations": [asdict(e) for e in trial.evaluations],
    }


def specialise_to_goal(
    files: Sequence[ModelHeader],
    options: ModelOptions,
    corpora: Sequence[Corpus],
    out: Path,
    *,
    texts: Sequence[Corpus],
    goal: Goal,
    types: Sequence[str],
    only_types: bool = False,
    method: str | None = None,
    passes: PassOptions | None = None,
    sampling: SamplerDefaults | None = PUBLISHED_SAMPLING,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    watchers: Watchers = UNWATCHED,
    note: Callable[[str], None] = lambda text: None,
) -> Found:
    """Find the specialist that reaches a goal, and write and verify it.

    With memory to fit into, each candidate has as many experts as fit, and the one that loses least on the first
    text is chosen, of those that keep all bounds. Without, the smallest that keeps them is. Candidates are judged
    under live masks. Quantised files lie in a temporary directory beside the output, two of them at most.

    Args:
        files: Files of one model. The largest one is the parent: it is profiled, and losses are relative to it.
        options: How models are loaded.
        corpora: The calibration text.
        out: The file to write. Beside it are its profile, mask, importance matrix and report.
        texts: Held-out texts.
        goal: The goal.
        types: Names of file types that the parent may be quantised to.
        only_types: Whether the files themselves are no candidates.
        method: How experts are scored; None: the default.
        passes: The other options of masks.
        sampling: Sampling settings in the file, as for `prune`.
        force: Replace existing files.
        inputs: Files and directories that must not be replaced, `force` or not.
        watchers: Who is told about the progress.
        note: Called with a line about temporary files.

    Raises:
        InputError: An input or an output cannot be used, or nothing fits.
        CoeError: No candidate keeps all bounds (says which one is exceeded, and by how much), a step fails, or the
            written file fails verification and is removed.
    """
    beside = outputs_beside(out)
    check_outputs(out, force=force, inputs=(*(path for header in files for path in header.paths), *inputs))
    parent = max(files, key=lambda header: header.n_bytes)
    _check_files(files, parent)
    passes = passes or PassOptions()
    if passes.reasoning is not None:
        check_method(passes.reasoning, method or default_method([passes.reasoning]))
    watchers.step("planning")
    candidates = find_candidates(
        files, types, only_types=only_types, keep=goal.keep, fit_bytes=goal.fit_bytes, use=goal.use
    )
    tried = [candidate for candidate in candidates if not candidate.skipped]
    if not tried:
        reasons = "; ".join(f"{candidate.name}: {candidate.skipped}" for candidate in candidates)
        raise InputError(f"nothing fits: {reasons}" if goal.fit_bytes else f"nothing can be made: {reasons}")
    with working_directory(out) as directory:
        _announce(tried, out, note)
        search = _Search(parent, options, texts, goal, method, passes, watchers)
        search.prepare(corpora, with_imatrix=any(candidate.file_type for candidate in tried))
        workshop = _Workshop(directory, beside["imatrix.gguf"], search, watchers)
        trials, best, failed = _try_all(tried, search, workshop, options)
        if best.excess > 0:
            for trial in trials:
                note(search.described(trial))
            raise CoeError(search.missed(best))
        checks = search.write(best, workshop.path(best.candidate), out, sampling, force=force)
        search.save_beside(best, beside, force=force)
    watchers.step("judging the specialist")
    with LoadedModel(out, options) as written:
        of_written = tuple(evaluate(written, text) for text in search.judged_texts)
    marked = _with_frontier(trials)
    made = Found(
        path=out,
        parent=parent,
        judged_parent=search.of_parent,
        chosen=marked[trials.index(best)],
        trials=tuple(sorted(marked, key=lambda trial: -trial.candidate.n_bytes)),
        skipped=(*(candidate for candidate in candidates if candidate.skipped), *failed),
        written=of_written,
        checks=checks,
    )
    with replacing(beside["report.json"]) as file:
        file.write(json.dumps(made.as_json(), indent=1).encode() + b"\n")
    return made


def _check_files(files: Sequence[ModelHeader], parent: ModelHeader) -> None:
    """Check that files are of one model, each given once and with a name of its own."""
    names = [header.path.name for header in files]
    for header in files:
        if header.surgery is not None and header.surgery.mode == "zero":
            raise InputError(f"{header.path}: has zeroed experts; specialise the original model")
        if sum(other.path.samefile(header.path) for other in files) > 1:
            raise InputError(f"{header.path}: is given twice; give each file once")
        if names.count(header.path.name) > 1:
            raise InputError(
                f"{header.path}: another file has this name; give each its own, by a link for example"
            )
        if header.fingerprint != parent.fingerprint:
            raise InputError(f"{header.path}: is another model than {parent.path}; give files of one model")


def _try_all(
    candidates: Sequence[Candidate], search: _Search, workshop: _Workshop, options: ModelOptions
) -> tuple[list[Trial], Trial, list[Candidate]]:
    """Try all candidates, and keep the quantised file of the best one only.

    Returns:
        All trials, the best of them, and the candidates that could not be quantised, with the reason.

    Raises:
        CoeError: None could.
    """
    trials: list[Trial] = []
    failed: list[Candidate] = []
    best: Trial | None = None
    for candidate in candidates:
        try:
            with workshop.loaded(candidate, options) as model:
                found = search.try_out(candidate, model)
        except CoeError as error:
            if candidate.file_type is None or isinstance(error, InputError):
                raise
            workshop.remove(candidate)
            failed.append(replace(candidate, skipped=str(error)))
            continue
        trials += found
        winner = search.best_of([*found, *([] if best is None else [best])])
        if best is not None and winner is not best:
            workshop.remove(best.candidate)
        if winner.candidate.name != candidate.name:
            workshop.remove(candidate)
        best = winner
    if best is None:
        raise CoeError("; ".join(candidate.skipped for candidate in failed))
    return trials, best, failed


def _with_frontier(trials: Sequence[Trial]) -> list[Trial]:
    on_frontier = frontier([(trial.candidate.n_bytes, trial.losses[0]) for trial in trials])
    return [replace(trial, is_on_frontier=is_on) for trial, is_on in zip(trials, on_frontier, strict=True)]


def _announce(tried: Sequence[Candidate], out: Path, note: Callable[[str], None]) -> None:
    """Say how much room temporary files take, and check that there is so much."""
    sizes = sorted((candidate.whole_bytes for candidate in tried if candidate.file_type), reverse=True)
    temporary = sum(sizes[:2])
    check_space(out, temporary + max(candidate.n_bytes for candidate in tried))
    if temporary:
        size = f"{temporary / 1e9:.2f} GB"
        note(f"quantised files of up to {size} lie beside {out} for now, and are removed at the end")


class _Workshop:
    """The files of candidates: those that were given, and quantised ones in a temporary directory."""

    def __init__(self, directory: Path, imatrix: Path, search: _Search, watchers: Watchers) -> None:
        self._directory = directory
        self._imatrix_name = imatrix.name
        self._search = search
        self._watchers = watchers

    def path(self, candidate: Candidate) -> Path:
        """Return the file of a candidate."""
        return self._directory / f"{candidate.name}.gguf" if candidate.file_type else candidate.source.path

    @contextlib.contextmanager
    def loaded(self, candidate: Candidate, options: ModelOptions) -> Iterator[LoadedModel]:
        """Quantise the parent if that is the candidate, and load the file."""
        path = self.path(candidate)
        if candidate.file_type is not None:
            self._watchers.step(f"quantising to {candidate.file_type}")
            imatrix = None
            if self._search.inputs is not None:
                imatrix = ImatrixFile(self._directory / "imatrix.gguf", self._imatrix_name)
                if not imatrix.path.exists():
                    self._search.inputs.imatrix.save(imatrix.path)
            quantise = QuantizeOptions(candidate.file_type)
            write_quantized(candidate.source, quantise, path, imatrix, self._watchers.n_bytes)
        self._watchers.step(f"judging {candidate.name}")
        with LoadedModel(path, options) as model:
            yield model

    def remove(self, candidate: Candidate) -> None:
        """Remove the quantised file of a candidate."""
        if candidate.file_type is not None:
            self.path(candidate).unlink(missing_ok=True)


@dataclass
class _Search:
    """The search for the best candidate: profiles, bounds and results."""

    parent: ModelHeader
    options: ModelOptions
    texts: Sequence[Corpus]
    goal: Goal
    method: str | None
    passes: PassOptions
    watchers: Watchers
    inputs: InputWatcher | None = None
    profiles: list[RoutingProfile] = field(default_factory=list)
    judged_texts: list[Corpus] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    of_parent: tuple[Evaluation, ...] = ()

    def prepare(self, corpora: Sequence[Corpus], *, with_imatrix: bool) -> None:
        """Profile the parent on all domains, and judge it."""
        self.inputs = InputWatcher() if with_imatrix else None
        with LoadedModel(self.parent.path, self.options, n_sequences=DOCUMENTS_AT_ONCE) as parent:
            for text in self.texts:
                check_text(parent, text)
            halves = [_halves(parent, protected) for protected in self.goal.protected]
            self.watchers.step("profiling")
            progress = self.watchers.tokens
            self.profiles = [profile_corpora(parent, corpora, inputs=self.inputs, progress=progress)]
            for protected, (choosing, _) in zip(self.goal.protected, halves, strict=True):
                self.watchers.step(f"profiling {protected.name}")
                self.profiles.append(profile_corpora(parent, [choosing], progress=progress))
            self.judged_texts = [*self.texts, *(judging for _, judging in halves)]
            own = math.inf if self.goal.max_loss is None else self.goal.max_loss
            others = [math.inf] * (len(self.texts) - 1)
            self.bounds = [own, *others, *(protected.max_loss for protected in self.goal.protected)]
            self.watchers.step("judging the parent")
            self.of_parent = tuple(evaluate(parent, text) for text in self.judged_texts)

    def try_out(self, candidate: Candidate, model: LoadedModel) -> list[Trial]:
        """Judge a candidate: with its number of experts, or, if bounds decide, with the fewest that keep them."""
        whole = replace(candidate, keep=candidate.source.n_experts, n_bytes=candidate.whole_bytes)
        if self.goal.keep is not None or self.goal.fit_bytes is not None or not self.goal.has_bounds:
            return [self._judge(candidate, model)]
        trials = [self._judge(whole, model)]
        keeps = default_keeps(candidate.source)
        low, high = 0, len(keeps) if trials[0].excess <= 0 else 0
        while low < high:  # more experts keep more bounds
            middle = (low + high) // 2
            size = size_of_specialist(candidate.source, keeps[middle], types=candidate.types)
            trial = self._judge(replace(candidate, keep=keeps[middle], n_bytes=size), model)
            trials.append(trial)
            low, high = (low, middle) if trial.excess <= 0 else (middle + 1, high)
        return trials

    def _judge(self, candidate: Candidate, model: LoadedModel) -> Trial:
        """Judge a number of experts, with the best weights of domains."""
        if candidate.keep == candidate.source.n_experts:
            return self._trial(candidate, model, None, ())
        weights = np.ones(len(self.profiles))
        trials: list[Trial] = []
        for _ in range(_ROUNDS if self.goal.protected else 1):
            given = tuple(map(float, weights)) if self.goal.protected else ()
            mask_options = MaskOptions(
                keep=candidate.keep, method=self.method, **{**vars(self.passes), "weights": given}
            )
            mask = build(self.profiles, mask_options)
            if any(trial.mask is not None and trial.mask.kept == mask.kept for trial in trials):
                break  # the same experts by other weights
            trials.append(self._trial(candidate, model, mask, given))
            exceeded = self._exceeded(trials[-1])
            if not exceeded.any():
                break
            weights = weights * np.where(exceeded, 2.0, 1.0)
        return self.best_of(trials)

    def _trial(
        self, candidate: Candidate, model: LoadedModel, mask: ExpertMask | None, weights: tuple[float, ...]
    ) -> Trial:
        if mask is not None:
            model.apply(mask)
        try:
            evaluations = tuple(evaluate(model, text) for text in self.judged_texts)
        finally:
            model.clear_mask()
        losses = tuple(found.loss(parent) for found, parent in zip(evaluations, self.of_parent, strict=True))
        excess = max(loss - bound for loss, bound in zip(losses, self.bounds, strict=True))
        return Trial(candidate, mask, evaluations, losses, excess, weights)

    def _exceeded(self, trial: Trial) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which domains exceed their bounds: the own one, then the protected ones."""
        protected = trial.losses[len(self.texts) :], self.bounds[len(self.texts) :]
        pairs = [(trial.losses[0], self.bounds[0]), *zip(*protected, strict=True)]
        return np.array([loss > bound for loss, bound in pairs])

    def best_of(self, trials: Sequence[Trial]) -> Trial:
        """Return the best trial: that keeps the bounds, and then loses least or, without memory, is smallest."""
        by_size = self.goal.fit_bytes is None and self.goal.keep is None

        def rank(trial: Trial) -> tuple[float, float, float]:
            size, loss = trial.candidate.n_bytes, trial.losses[0]
            return (max(trial.excess, 0.0), *((size, loss) if by_size else (loss, size)))

        return min(trials, key=rank)

    @property
    def _names(self) -> list[str]:
        return [text.name for text in self.texts] + [protected.name for protected in self.goal.protected]

    def described(self, trial: Trial) -> str:
        """Return a trial in one line."""
        losses = ", ".join(f"{loss:+.1%} on {name}" for name, loss in zip(self._names, trial.losses, strict=True))
        return f"{trial.candidate.name} with {trial.candidate.keep} of {self.parent.n_experts} experts: {losses}"

    def missed(self, best: Trial) -> str:
        """Return which bound the best trial exceeds, as a message."""
        names = self._names
        excess = [loss - bound for loss, bound in zip(best.losses, self.bounds, strict=True)]
        worst = int(np.argmax(excess))
        candidate = best.candidate
        return (
            f"no specialist keeps all bounds: the best, {candidate.name} with {candidate.keep} of "
            f"{self.parent.n_experts} experts, loses {best.losses[worst]:.1%} on {names[worst]}, which may lose "
            f"{self.bounds[worst]:.1%}; allow {excess[worst]:.1%} more"
        )

    def write(
        self, best: Trial, source: Path, out: Path, sampling: SamplerDefaults | None, *, force: bool
    ) -> tuple[Check, ...]:
        """Write the best trial, and verify it against the file that was judged and against the parent."""
        self.watchers.step("writing")
        if best.mask is None:
            copy(source, out, force=force, progress=self.watchers.n_bytes)
        else:
            prune(source, best.mask, out, sampling=sampling, force=force, progress=self.watchers.n_bytes)
        self.watchers.step("verifying")
        is_given = best.candidate.file_type is None
        base = source if is_given else self.parent.path
        checks = tuple(verify(out, base, best.mask, progress=self.watchers.n_bytes))
        if not is_given:
            exact = verify(out, source, best.mask, progress=self.watchers.n_bytes)
            checks += tuple(
                replace(check, name="as judged", detail=f"{check.detail}, in the file that was judged")
                for check in exact
                if check.name == "bytes"
            )
        failed = [check for check in checks if not check.passed]
        if failed:
            out.unlink()
            raise CoeError(f"{out}: failed verification and was removed: {failed[0].name}: {failed[0].detail}")
        return checks

    def save_beside(self, best: Trial, beside: dict[str, Path], *, force: bool) -> None:
        """Write the profile, the mask and the importance matrix that the specialist was made with.

        Those of a specialist that was replaced are removed.
        """
        self.profiles[0].save(beside["profile.gguf"], force=force)
        beside["mask.json"].unlink(missing_ok=True)
        beside["imatrix.gguf"].unlink(missing_ok=True)
        if best.mask is not None:
            best.mask.save(beside["mask.json"], force=force)
        if best.candidate.file_type is not None and self.inputs is not None:
            self.inputs.imatrix.save(beside["imatrix.gguf"], force=force)


def _halves(model: LoadedModel, protected: Protected) -> tuple[Corpus, Corpus]:
    """Return the windows of a text that choose experts, and the others, which judge: every second one."""
    stream = np.concatenate([tokenize(document, model.text) for document in protected.text.documents])
    windows = [stream[start : start + model.n_ctx] for start in range(0, len(stream), model.n_ctx)]
    whole = [window for window in windows if len(window) == model.n_ctx]
    if len(whole) < 2:
        raise InputError(
            f"{protected.text.name}: has {len(stream)} tokens; to protect it takes {2 * model.n_ctx}, half of "
            "which choose experts and half of which judge"
        )
    halves = [[window.tolist() for window in whole[first::2]] for first in (0, 1)]
    name = protected.name
    return corpus_of(halves[0], f"{name}, the half that chooses"), corpus_of(halves[1], name)
