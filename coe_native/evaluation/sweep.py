"""Find how small a specialist can be: judge one loaded parent under many live masks."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.corpora import Corpus
from coe_native.errors import InputError
from coe_native.evaluation.perplexity import Evaluation, count_tokens, evaluate_masks
from coe_native.files import typed_json
from coe_native.files.atomic import check_target, replacing
from coe_native.llama.loaded_model import LoadedModel
from coe_native.masks.build import build
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


@dataclass(frozen=True)
class SweepPoint:
    """One mask and its evaluations.

    Attributes:
        method: How experts were scored.
        keep: Experts that it keeps in each layer.
        mask: Its digest.
        n_bytes: Approximate size of a file with these experts only.
        evaluations: The evaluation of the live-masked parent on each text.
    """

    method: str
    keep: int
    mask: str
    n_bytes: int
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Sweep:
    """The evaluations of a parent under many masks.

    Attributes:
        model: The parent's name.
        fingerprint: Its fingerprint.
        n_experts: Its experts in each layer.
        n_bytes: Size of its file.
        parent: Its evaluation on each text, without a mask.
        points: The masks, by method and ascending `keep`.
    """

    model: str
    fingerprint: str
    n_experts: int
    n_bytes: int
    parent: tuple[Evaluation, ...]
    points: tuple[SweepPoint, ...]

    @property
    def unmasked(self) -> SweepPoint:
        """Return the parent as if it were a mask that keeps all experts."""
        return SweepPoint(
            method="parent", keep=self.n_experts, mask="", n_bytes=self.n_bytes, evaluations=self.parent
        )

    @property
    def methods(self) -> list[str]:
        """Return the methods of all masks."""
        return list(dict.fromkeys(point.method for point in self.points))

    def losses(self, point: SweepPoint) -> list[float]:
        """Return the increase of each text's perplexity over the parent's, as a share of the parent's."""
        return [found.loss(parent) for found, parent in zip(point.evaluations, self.parent, strict=True)]

    def smallest(self, method: str, max_loss: float) -> SweepPoint | None:
        """Return the smallest mask whose loss on the first text is small enough.

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

    def as_json(self) -> dict[str, Any]:
        """Return the sweep as a JSON object, as `save` writes it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def as_csv(self) -> str:
        """Return CSV with a line for each text of each mask, and of the parent (method ``parent``)."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "keep", "bytes", "loss", *_EVALUATION_FIELDS])
        for point in (self.unmasked, *self.points):
            for found, loss in zip(point.evaluations, self.losses(point), strict=True):
                writer.writerow([point.method, point.keep, point.n_bytes, loss, *asdict(found).values()])
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


def default_keeps(moe: ModelHeader) -> list[int]:
    """Return up to fifteen numbers of experts that the model can be cut to, in steps of a sixteenth."""
    step = max(1, moe.n_experts // 16)
    return [keep for keep in moe.possible_keeps if keep % step == 0 and keep < moe.n_experts]


def sweep(
    parent: LoadedModel,
    profile: RoutingProfile,
    texts: Mapping[str, Corpus],
    *,
    keeps: Sequence[int],
    methods: Sequence[str] = (),
    passes: PassOptions | None = None,
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
        progress: Called after each run of a window.

    Raises:
        InputError: There is no mask to try, the profile is of another model, the parent cannot be cut to a
            number, or a text cannot be used (`evaluate`).
        CoeError: A perplexity or a divergence is not finite.
    """
    of_passes = vars(passes or PassOptions())
    masks = [
        (method, build(profile, MaskOptions(keep=keep, method=method, **of_passes)))
        for method in dict.fromkeys(methods or [default_method([profile])])
        for keep in sorted(set(keeps))
    ]
    if not masks:
        raise InputError(f"{parent.moe.path}: there are no numbers of experts to try; give some")
    for _, mask in masks:
        parent.apply(mask)  # so that an unusable mask is an error at the start
    parent.clear_mask()
    total = sum(count_tokens(parent, text) for text in texts.values()) * (1 + len(masks))
    started, done = time.monotonic(), 0

    def count(n_tokens: int) -> None:
        nonlocal done
        done += n_tokens
        progress(Progress(done, total, time.monotonic() - started))

    judged = []
    for name, text in texts.items():
        of_parent, of_masks = evaluate_masks(parent, text, [mask for _, mask in masks], progress=count)
        judged.append([replace(found, text=name) for found in (of_parent, *of_masks)])
    of_each_mask = list(zip(*judged, strict=True))
    points = [
        SweepPoint(
            method=method,
            keep=mask.keep,
            mask=mask.digest,
            n_bytes=parent.moe.specialist_bytes(mask.keep),
            evaluations=evaluations,
        )
        for (method, mask), evaluations in zip(masks, of_each_mask[1:], strict=True)
    ]
    return Sweep(
        model=parent.moe.name,
        fingerprint=parent.moe.fingerprint,
        n_experts=parent.moe.n_experts,
        n_bytes=parent.moe.n_bytes,
        parent=of_each_mask[0],
        points=tuple(points),
    )
