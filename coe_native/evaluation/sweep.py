"""How small a specialist can be: one loaded parent, judged under many live masks."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.documents import Corpus
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
from coe_native.routing.scores import DEFAULT_METHOD

FORMAT = "coe-native.sweep"
VERSION = 1

_KIND = typed_json.Kind(FORMAT, VERSION, 16 << 20, "sweep", "make one with `coe-native sweep -o NAME.json`")


@dataclass(frozen=True)
class SweepPoint:
    """One mask: how experts were scored, how many it keeps, its digest, about how many bytes a file with only
    those has, and what the live-masked parent makes of each text."""

    method: str
    keep: int
    mask: str
    n_bytes: int
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Sweep:
    """A parent's evaluation on each text, and all masks' that were tried, by method and ascending `keep`."""

    model: str
    fingerprint: str
    n_experts: int
    n_bytes: int
    parent: tuple[Evaluation, ...]
    points: tuple[SweepPoint, ...]

    @property
    def unmasked(self) -> SweepPoint:
        """The parent, as if it were a mask that keeps all."""
        return SweepPoint("parent", self.n_experts, "", self.n_bytes, self.parent)

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(point.method for point in self.points))

    def losses(self, point: SweepPoint) -> list[float]:
        """How much higher the perplexity on each text is than the parent's, as a share of that."""
        return [found.loss(parent) for found, parent in zip(point.evaluations, self.parent, strict=True)]

    def smallest(self, method: str, max_loss: float) -> SweepPoint | None:
        """The mask of the smallest `keep` with which the first text's perplexity rises by no more than the share
        `max_loss`, with it and with all larger ones; None where already the largest costs more."""
        best = None
        for point in sorted((p for p in self.points if p.method == method), key=lambda p: -p.keep):
            if self.losses(point)[0] > max_loss:
                break
            best = point
        return best

    def as_json(self) -> dict[str, Any]:
        """What a file says of it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def as_csv(self) -> str:
        """One line for each text of each mask, and of the parent, whose method is ``parent``."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "keep", "bytes", "loss", *_EVALUATION_FIELDS])
        for point in (self.unmasked, *self.points):
            for found, loss in zip(point.evaluations, self.losses(point), strict=True):
                writer.writerow([point.method, point.keep, point.n_bytes, loss, *asdict(found).values()])
        return out.getvalue()

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Writes the sweep as JSON, whole or not at all."""
        path = Path(path)
        check_target(path, force=force)
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.as_json()), indent=1) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Reads a sweep's JSON back. Raises InputError for another kind of file, a newer version, or damage."""
        path = Path(path)
        data = _KIND.read(path)
        try:
            sweep = typed_json.decode(data, Sweep)
        except InputError as error:
            raise InputError(f"{path}: is a damaged sweep ({error}); make it again") from error
        if not all(len(point.evaluations) == len(sweep.parent) for point in sweep.points):
            raise InputError(f"{path}: is a damaged sweep (it has not all texts of all masks); make it again")
        return sweep


_EVALUATION_FIELDS = tuple(Evaluation.__dataclass_fields__)


def default_keeps(moe: ModelHeader) -> list[int]:
    """Up to fifteen numbers of experts, in steps of a sixteenth, of those that the model can be cut to."""
    step = max(1, moe.n_experts // 16)
    return [keep for keep in moe.possible_keeps if keep % step == 0 and keep < moe.n_experts]


def sweep(
    parent: LoadedModel,
    profile: RoutingProfile,
    texts: Mapping[str, Corpus],
    *,
    keeps: Sequence[int],
    methods: Sequence[str] = (DEFAULT_METHOD,),
    passes: PassOptions | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Sweep:
    """Judges a loaded parent on named texts, under the masks that keep each of `keeps` experts by each of
    `methods`. The first text is the one that the specialist is for. `passes`: how the masks are
    built beyond that. Nothing is written.

    Raises InputError for a profile of another model, a number that it can't be cut to, and what `evaluate` does
    not take.
    """
    of_passes = vars(passes or PassOptions())
    masks = [
        (method, build(profile, MaskOptions(keep=keep, method=method, **of_passes)))
        for method in dict.fromkeys(methods)
        for keep in sorted(set(keeps))
    ]
    if not masks:
        raise InputError(f"{parent.moe.path}: say which numbers of experts to try; there are few to choose from")
    for _, mask in masks:
        parent.apply(mask)  # whatever is wrong with one is said at the start
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
        SweepPoint(method, mask.keep, mask.digest, parent.moe.specialist_bytes(mask.keep), evaluations)
        for (method, mask), evaluations in zip(masks, of_each_mask[1:], strict=True)
    ]
    return Sweep(
        parent.moe.name,
        parent.moe.fingerprint,
        parent.moe.n_experts,
        parent.moe.n_bytes,
        of_each_mask[0],
        tuple(points),
    )
