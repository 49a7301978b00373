"""Find how small a specialist can be: judge loaded models of one parent under many live masks."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.corpora import Corpus
from coe_native.errors import InputError, printable
from coe_native.evaluation.perplexity import Evaluation, Windows, count_tokens, judge_masks
from coe_native.evaluation.sweep_checkpoint import SweepCheckpoint
from coe_native.files import typed_json
from coe_native.files.atomic import check_target, replacing
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.memory import fit_side_by_side
from coe_native.llama.options import ModelOptions
from coe_native.masks.build import build
from coe_native.masks.check import check_cut
from coe_native.masks.expert_mask import ExpertMask
from coe_native.masks.options import MaskOptions, PassOptions
from coe_native.model.header import ModelHeader
from coe_native.profiling.run import Progress
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import default_method

FORMAT = "coe-native.sweep"
VERSION = 1

_KIND = typed_json.Kind(
    name=FORMAT,
    version=VERSION,
    most_bytes=16 << 20,
    what="sweep",
    advice="make one with `coe-native sweep -o NAME.json`",
)


ALL_EXPERTS = "all experts"
"""The method of a point that keeps all experts."""


@dataclass(frozen=True)
class SweepPoint:
    """One model under one mask, and its evaluations.

    Attributes:
        method: How experts were scored; ALL_EXPERTS where none is dropped.
        keep: Experts that it keeps in each layer.
        mask: The mask's digest; empty where no expert is dropped.
        n_bytes: Approximate size of a file with these experts only.
        evaluations: The evaluation of the live-masked model on each text.
        model: The model's file name.
        frontier: Whether no other point is as small and loses as little on the first text.
        memory: Bytes that such a file takes in use, if that was asked for.
    """

    method: str
    keep: int
    mask: str
    n_bytes: int
    evaluations: tuple[Evaluation, ...]
    model: str = ""
    frontier: bool = False
    memory: int | None = None


@dataclass(frozen=True)
class Sweep:
    """The evaluations of a parent, in one or several quantisations, under many masks.

    Attributes:
        model: The name of the reference model: the parent, or the one that was named as the reference.
        fingerprint: Its fingerprint.
        n_experts: Its experts in each layer.
        n_bytes: Size of its file.
        parent: Its evaluation on each text, without a mask.
        points: What was tried, by model, method and ascending `keep`. Models that keep all experts are among them
            if there are several.
        parent_memory: Bytes that the reference takes in use, if that was asked for.
    """

    model: str
    fingerprint: str
    n_experts: int
    n_bytes: int
    parent: tuple[Evaluation, ...]
    points: tuple[SweepPoint, ...]
    parent_memory: int | None = None

    @property
    def models(self) -> list[str]:
        """Return the names of all models' files."""
        return list(dict.fromkeys(point.model for point in self.points))

    @property
    def unmasked(self) -> SweepPoint:
        """Return the parent as if it were a mask that keeps all experts."""
        return SweepPoint(
            method="parent",
            keep=self.n_experts,
            mask="",
            n_bytes=self.n_bytes,
            evaluations=self.parent,
            memory=self.parent_memory,
        )

    @property
    def has_several(self) -> bool:
        """Return whether there are several models, or one that is compared with another."""
        return any(point.method == ALL_EXPERTS for point in self.points)

    @property
    def has_reference(self) -> bool:
        """Return whether the unmasked reference is among the points."""
        perplexities = [evaluation.perplexity for evaluation in self.parent]
        return any(
            point.method == ALL_EXPERTS and [e.perplexity for e in point.evaluations] == perplexities
            for point in self.points
        )

    @property
    def methods(self) -> list[str]:
        """Return the methods of all masks."""
        return list(dict.fromkeys(point.method for point in self.points if point.method != ALL_EXPERTS))

    def losses(self, point: SweepPoint) -> list[float]:
        """Return the increase of each text's perplexity over the parent's, as a share of the parent's."""
        return [found.loss(parent) for found, parent in zip(point.evaluations, self.parent, strict=True)]

    def smallest(self, method: str, max_loss: float) -> SweepPoint | None:
        """Return the smallest mask whose loss on the first text is small enough, of a sweep of one model.

        The losses of all larger masks must be small enough too.

        Args:
            method: How experts were scored.
            max_loss: The largest increase of the perplexity, as a share of the parent's.

        Returns:
            The mask, or None if even the largest one loses more.
        """
        best = None
        for point in sorted((p for p in self.points if p.method == method), key=lambda p: -p.keep):
            if self.losses(point)[0] > max_loss:
                break
            best = point
        return best

    def least_within(self, max_loss: float) -> SweepPoint | None:
        """Return the smallest point of all models whose loss on the first text is small enough, or None."""
        good = [point for point in self.points if self.losses(point)[0] <= max_loss]
        return min(good, key=lambda point: (point.n_bytes, self.losses(point)[0]), default=None)

    def with_frontier(self) -> Sweep:
        """Return the sweep with the points marked that are on the Pareto frontier of size and loss."""
        losses = [(point.n_bytes, self.losses(point)[0]) for point in self.points]
        on_frontier = frontier([*losses, (self.n_bytes, 0.0)] if not self.has_several else losses)
        points = [replace(point, frontier=is_on) for point, is_on in zip(self.points, on_frontier, strict=False)]
        return replace(self, points=tuple(points))

    def as_json(self) -> dict[str, Any]:
        """Return the sweep as a JSON object, as `save` writes it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def as_csv(self) -> str:
        """Return CSV with a line for each text of each point, and of the reference (method ``parent``)."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        columns = {"model": "model", "method": "method", "keep": "keep", "bytes": "n_bytes"}
        columns |= {"memory": "memory", "frontier": "frontier"}
        writer.writerow([*columns, "loss", *_EVALUATION_FIELDS])
        for point in (self.unmasked, *self.points):
            facts = [getattr(point, name) for name in columns.values()]
            for found, loss in zip(point.evaluations, self.losses(point), strict=True):
                writer.writerow([*facts, loss, *asdict(found).values()])
        return out.getvalue()

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Write the sweep as JSON, whole or not at all.

        Args:
            path: The file.
            force: Replace an existing file.

        Raises:
            InputError: The file exists (without `force`), or the path cannot be used.
            CoeError: It cannot be written.
        """
        path = Path(path)
        check_target(path, force=force)
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.as_json()), indent=1) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a sweep from JSON.

        Raises:
            InputError: The file is not a sweep, has a newer version, or is damaged.
        """
        path = Path(path)
        data = _KIND.read(path)
        try:
            sweep = typed_json.decode(data, Sweep)
        except InputError as error:
            raise InputError(f"{path}: is a damaged sweep ({error}); make it again") from error
        if not all(len(point.evaluations) == len(sweep.parent) for point in sweep.points):
            raise InputError(f"{path}: is a damaged sweep (some masks lack texts); make it again")
        return sweep


_EVALUATION_FIELDS = tuple(Evaluation.__dataclass_fields__)


def frontier(points: Sequence[tuple[int, float]]) -> list[bool]:
    """Return which points are on the Pareto frontier of size and loss.

    A point is not if another one is at most as large and loses at most as much, and less of one of them. Of equal
    points, all are.

    Args:
        points: The size and the loss of each.
    """
    return [
        not any(
            size <= own_size and loss <= own_loss and (size, loss) != (own_size, own_loss) for size, loss in points
        )
        for own_size, own_loss in points
    ]


def default_keeps(moe: ModelHeader) -> list[int]:
    """Return up to fifteen numbers of experts that the model can be cut to, in steps of a sixteenth."""
    step = max(1, moe.n_experts // 16)
    return [keep for keep in moe.possible_keeps if keep % step == 0 and keep < moe.n_experts]


@dataclass(frozen=True)
class Cut:
    """A mask to judge a model under.

    Attributes:
        method: How experts were scored, or ALL_EXPERTS.
        keep: Experts that stay in each layer.
        mask: The mask; None: all experts stay.
    """

    method: str
    keep: int
    mask: ExpertMask | None

    @property
    def digest(self) -> str:
        """Return the mask's digest; empty without a mask."""
        return "" if self.mask is None else self.mask.digest


def cuts(
    profile: RoutingProfile, keeps: Sequence[int], methods: Sequence[str], passes: PassOptions | None
) -> list[Cut]:
    """Return the masks of each method and number of experts, in this order, each once."""
    of_passes = vars(passes or PassOptions())
    return [
        Cut(method, keep, build(profile, MaskOptions(keep=keep, method=method, **of_passes)))
        for method in dict.fromkeys(methods or [default_method([profile])])
        for keep in sorted(set(keeps))
    ]


def sweep(
    parent: LoadedModel,
    profile: RoutingProfile,
    texts: Mapping[str, Corpus],
    *,
    keeps: Sequence[int],
    methods: Sequence[str] = (),
    passes: PassOptions | None = None,
    checkpoint: SweepCheckpoint | None = None,
    memory: Callable[[ModelHeader, int], int] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Sweep:
    """Judge a loaded parent on texts, under a live mask for each number of experts and method.

    Args:
        parent: The loaded parent.
        profile: Its profile.
        texts: The held-out texts, by name. The first is the one that the specialist is for.
        keeps: Numbers of experts to keep.
        methods: How experts are scored: some of METHODS; empty: the default for the profile.
        passes: The other options of the masks; None: the defaults.
        checkpoint: Where to save the progress; an interrupted sweep continues from there.
        memory: Returns the bytes that a specialist with a number of experts takes in use; None: not recorded.
        progress: Called after each run of a window.

    Raises:
        InputError: There is no mask to try, the profile is of another model, the parent cannot be cut to a
            number, a text cannot be used (`evaluate`), or the checkpoint belongs to another sweep.
        CoeError: A perplexity or a divergence is not finite.
    """
    tried = cuts(profile, keeps, methods, passes)
    if not tried:
        raise InputError(f"{parent.moe.path}: there are no numbers of experts to try; give some")
    for cut in tried:
        assert cut.mask is not None
        check_cut(cut.mask, parent.moe)  # so that an unusable mask is an error at the start
    run = _Run([(parent.moe, tried)], parent.moe, texts, checkpoint, memory, progress)
    run.begin(parent, True)
    of_parent, points = run.judge(0, parent, parent)
    return run.result(of_parent, points)


def sweep_files(
    files: Sequence[str | Path],
    options: ModelOptions,
    profile: RoutingProfile,
    texts: Mapping[str, Corpus],
    *,
    keeps: Sequence[int] | None = None,
    methods: Sequence[str] = (),
    passes: PassOptions | None = None,
    reference: str | Path | None = None,
    checkpoint: SweepCheckpoint | None = None,
    memory: Callable[[ModelHeader, int], int] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Sweep:
    """Judge several files of one model, such as quantisations, each with all its experts and under live masks.

    Each file is loaded once. Losses and divergences are relative to the reference. There are no divergences where
    the reference does not fit into memory beside a file.

    Args:
        files: The models' files.
        options: How they are loaded.
        profile: A profile of the model, from any of the files.
        texts: See `sweep`.
        keeps: Numbers of experts to keep, besides all; None: `default_keeps`.
        methods: See `sweep`.
        passes: See `sweep`.
        reference: The file that others are compared with; None: the largest one.
        checkpoint: See `sweep`.
        memory: See `sweep`.
        progress: See `sweep`.

    Raises:
        InputError: A file is of another model, cannot be cut to a number or loaded; or as for `sweep`.
        CoeError: A perplexity or a divergence is not finite.
    """
    headers = [ModelHeader(file) for file in files]
    base = max(headers, key=lambda header: header.n_bytes) if reference is None else ModelHeader(reference)
    _check_names(headers)
    tried = cuts(profile, default_keeps(headers[0]) if keeps is None else keeps, methods, passes)
    for header in (*headers, base):
        for cut in tried:
            assert cut.mask is not None
            check_cut(cut.mask, header)
    all_experts = Cut(ALL_EXPERTS, base.n_experts, None)
    partial = [cut for cut in tried if cut.keep < base.n_experts]
    run = _Run(
        [(header, [all_experts, *partial]) for header in headers], base, texts, checkpoint, memory, progress
    )
    points: list[SweepPoint] = []
    with ExitStack() as leaving:
        others = [header for header in headers if not _same_file(header, base)]
        # Known before anything is loaded, and kept by a sweep that is resumed.
        compares = fit_side_by_side([base, *others], options)
        loaded_base: LoadedModel | None = leaving.enter_context(LoadedModel(base.path, options))
        assert loaded_base is not None
        compares = run.begin(loaded_base, compares)
        in_order = sorted(range(len(headers)), key=lambda index: not _same_file(headers[index], base))
        if _same_file(headers[in_order[0]], base):
            of_parent, points = run.judge(in_order.pop(0), loaded_base, loaded_base)
        else:
            of_parent = run.judge_reference(loaded_base)
        if in_order and not compares:
            leaving.close()
            loaded_base = None
        for index in in_order:
            with LoadedModel(headers[index].path, options) as model:
                _, found = run.judge(index, model, loaded_base)
                points += found
    return run.result(of_parent, points)


def _check_names(headers: Sequence[ModelHeader]) -> None:
    """Check that files can be told apart by their names."""
    names = [header.path.name for header in headers]
    for name, header in zip(names, headers, strict=True):
        if sum(other.path.samefile(header.path) for other in headers) > 1:
            raise InputError(f"{header.path}: is given twice; give each file once")
        if names.count(name) > 1:
            raise InputError(f"{name}: two of the files have this name; give each its own, by a link for example")


class _Run:
    """The order of judging, with its progress and its checkpoint."""

    def __init__(
        self,
        plan: Sequence[tuple[ModelHeader, Sequence[Cut]]],
        base: ModelHeader,
        texts: Mapping[str, Corpus],
        checkpoint: SweepCheckpoint | None,
        memory: Callable[[ModelHeader, int], int] | None,
        progress: Callable[[Progress], None],
    ) -> None:
        self._plan = plan
        self._base = base
        self._texts = texts
        self._checkpoint = checkpoint
        self._memory = memory
        self._progress = progress
        self._planned: dict[tuple[Path, int], int] = {}
        self._done = self._total = 0
        self._started = time.monotonic()

    def begin(self, base: LoadedModel, compares: bool) -> bool:
        """Count the tokens of the whole sweep, plan the memory of each point, and read the checkpoint.

        Args:
            base: The reference, loaded.
            compares: Whether divergences from it can be had.

        Returns:
            `compares`, or what it was in the interrupted sweep that is resumed.
        """
        of_texts = sum(count_tokens(base, text) for text in self._texts.values())
        runs = 0
        is_among = False
        for header, tried in self._plan:
            is_base = _same_file(header, self._base)
            is_among = is_among or is_base
            n_masks = sum(cut.mask is not None for cut in tried)
            runs += 1 + n_masks if is_base else len(tried) + compares
        self._total = of_texts * (runs + (not is_among))
        if self._memory is not None:
            for header, tried in [*self._plan, (self._base, [Cut(ALL_EXPERTS, self._base.n_experts, None)])]:
                for cut in tried:
                    self._planned[header.path, cut.keep] = self._memory(header, cut.keep)
        if self._checkpoint is None:
            return compares
        return self._checkpoint.begin(
            {
                "models": [_identity(header) for header, _ in self._plan],
                "reference": _identity(self._base),
                "masks": [[cut.digest for cut in tried] for _, tried in self._plan],
                "texts": [[name, text.sha256] for name, text in self._texts.items()],
                "options": [base.n_ctx, base.n_batch, base.text.printed_date],
            },
            compares,
        )

    def judge_reference(self, base: LoadedModel) -> tuple[Evaluation, ...]:
        """Judge the reference without a mask."""
        return tuple(judged[0] for judged in self._judge("reference", base, [None], None))

    def judge(
        self, index: int, model: LoadedModel, reference: LoadedModel | None
    ) -> tuple[tuple[Evaluation, ...], list[SweepPoint]]:
        """Judge one file of the plan.

        Args:
            index: Its place in the plan.
            model: The file, loaded.
            reference: The reference, or None: without divergences.

        Returns:
            Its evaluation on each text without a mask, and its points.
        """
        header, tried = self._plan[index]
        masks: list[ExpertMask | None] = [None, *(cut.mask for cut in tried if cut.mask is not None)]
        by_text = list(self._judge(str(index), model, masks, reference))
        of_masks = [tuple(judged[number] for judged in by_text) for number in range(len(masks))]
        after = iter(of_masks[1:])
        points = [
            SweepPoint(
                method=cut.method,
                keep=cut.keep,
                mask=cut.digest,
                n_bytes=header.specialist_bytes(cut.keep),
                evaluations=of_masks[0] if cut.mask is None else next(after),
                model=printable(header.path.name),
                memory=self._planned.get((header.path, cut.keep)),
            )
            for cut in tried
        ]
        return of_masks[0], points

    def _judge(
        self, part: str, model: LoadedModel, masks: Sequence[ExpertMask | None], reference: LoadedModel | None
    ) -> Iterator[list[Evaluation]]:
        """Yield, for each text, the evaluation under each mask."""
        for number, (name, text) in enumerate(self._texts.items()):
            windows = (
                Windows(len(masks))
                if self._checkpoint is None
                else self._checkpoint.windows(f"{part}.{number}", len(masks))
            )
            judged = judge_masks(model, text, masks, reference=reference, progress=self._count, windows=windows)
            yield [replace(found, text=printable(name)) for found in judged]

    def _count(self, n_tokens: int) -> None:
        self._done += n_tokens
        self._progress(Progress(min(self._done, self._total), self._total, time.monotonic() - self._started))

    def result(self, of_parent: tuple[Evaluation, ...], points: Sequence[SweepPoint]) -> Sweep:
        """Return the sweep, with points in the order of the plan."""
        order = {printable(header.path.name): place for place, (header, _) in enumerate(self._plan)}
        found = Sweep(
            model=self._base.name,
            fingerprint=self._base.fingerprint,
            n_experts=self._base.n_experts,
            n_bytes=self._base.n_bytes,
            parent=tuple(without_divergence(evaluation) for evaluation in of_parent),
            points=tuple(sorted(points, key=lambda point: order[point.model])),
            parent_memory=self._planned.get((self._base.path, self._base.n_experts)),
        )
        return found.with_frontier()


def _same_file(one: ModelHeader, other: ModelHeader) -> bool:
    return one.path.samefile(other.path)


def _identity(model: ModelHeader) -> list[Any]:
    """Return what tells a model's files from changed ones, without reading their data."""
    stats = [path.stat() for path in model.paths]
    return [model.header_digest, *([status.st_size, status.st_mtime_ns] for status in stats)]


def without_divergence(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation without its divergence from a reference."""
    return replace(evaluation, kl_divergence=None, top1_agreement=None, kl_error=None)
