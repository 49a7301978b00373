"""What a server has counted, and where that is saved."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from coe_native.errors import CoeError, InputError
from coe_native.live.attach import Capture
from coe_native.masks.stability import Stability
from coe_native.routing.profile import RoutingProfile, merge


class LiveRouting:
    """What a server has counted, with what earlier runs had, and where that is saved: all tokens in `output`, and
    those of prompts and of what was generated in files beside it. For use by several threads. `say` is told when
    the files cannot be written there."""

    def __init__(
        self,
        capture: Capture,
        output: Path,
        stability: Stability,
        *,
        resume: bool,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.capture = capture
        self._say = say
        self.stability = stability
        self._before = self._saved(output) if resume else None
        self._output = output
        self._lock = threading.RLock()
        self._saved_tokens = 0
        self._started = datetime.now()
        self._said = ""

    @property
    def files(self) -> tuple[Path, Path]:
        """The model and the output."""
        return self.capture.moe.path, self._output

    @staticmethod
    def paths(output: Path) -> tuple[Path, Path, Path]:
        """Of all tokens, of prompts, of what was generated."""
        prompts, generated = (
            output.with_name(f"{output.stem}.{part}{output.suffix}") for part in ("prompts", "generated")
        )
        return output, prompts, generated

    def _saved(self, output: Path) -> tuple[RoutingProfile, RoutingProfile] | None:
        """What an earlier run has left. Raises InputError for files that are not of one run with this model."""
        paths = self.paths(output)
        missing = [path for path in paths if not path.exists()]
        if len(missing) == len(paths):
            return None
        if missing:
            raise InputError(f"{output}: cannot be gone on with (--resume): {missing[0]} is not there")
        whole, prompts, generated = map(RoutingProfile.load, paths)
        for profile in (whole, prompts, generated):
            if profile.fingerprint != self.capture.moe.fingerprint:
                raise InputError(f"{profile.place}: is of another model than {self.capture.moe.path}")
        if (whole.histograms != prompts.histograms + generated.histograms).any():
            raise InputError(
                f"{output}: is not the sum of {prompts.place} and {generated.place}: choose another name"
            )
        return prompts, generated

    def profiles(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Of prompts, and of what was generated."""
        now = self.capture.parts
        if self._before is None:
            return now
        prompts, generated = map(_continued, self._before, now)
        return prompts, generated

    def status(self) -> dict[str, Any]:
        """The counts so far, for `GET /routing`."""
        with self._lock:
            prompts, generated = self.look()
            curve = [asdict(agreement) for agreement in self.stability.curve]
            stable = self.stability.stable
        parts = {"prompts": prompts, "generated": generated}
        mask = self.capture.mask
        return {
            "model": prompts.model_name,
            "architecture": prompts.architecture,
            "fingerprint": prompts.fingerprint,
            "experts": prompts.n_experts,
            "top_k": prompts.top_k,
            "tokens": {name: profile.n_tokens for name, profile in parts.items()},
            "layers": {
                str(block): {
                    name: {"tokens": profile.layer_tokens[i], "counts": profile.counts[i].tolist()}
                    for name, profile in parts.items()
                }
                for i, block in enumerate(prompts.layers)
            },
            "stability": {"threshold": self.stability.threshold, "stable": stable, "agreement": curve},
            "mask": None
            if mask is None
            else {"digest": mask.digest, "keep": mask.keep, "tokens": self.capture.masked.n_tokens},
        }

    def save(self) -> list[Path]:
        """Write what there is to write, each file whole or not at all, and return the paths: in the user's state
        directory where the output's own directory has vanished, or is full.

        Raises:
            CoeError: The files can be written nowhere.
        """
        with self._lock:
            prompts, generated = self.profiles()
            total = merge([prompts, generated])
            if total.n_tokens == 0:
                return []
            profiles = (total, prompts, generated)
            try:
                paths = _save_together(self.paths(self._output), profiles)
            except (CoeError, OSError) as error:
                paths = self._save_elsewhere(profiles, error)
            self._saved_tokens = total.n_tokens
        return list(paths)

    def _save_elsewhere(self, profiles: tuple[RoutingProfile, ...], error: Exception) -> tuple[Path, ...]:
        name = f"{self._output.stem}-{self._started:%Y%m%d-%H%M%S}{self._output.suffix}"
        try:
            paths = _save_together(
                self.paths(user_state_path("coe-native", appauthor=False, ensure_exists=True) / name), profiles
            )
        except (CoeError, OSError):
            raise error from None
        if str(error) != self._said:
            self._said = str(error)
            self._say(f"{error}; saved as {paths[0]} instead")
        return paths

    def save_at_the_end(self) -> list[Path]:
        """As `save`, but what went wrong in the last batch costs that batch only."""
        try:
            return self.save()
        except (CoeError, OSError):
            self.capture.recover()
            return self.save()

    @property
    def has_news(self) -> bool:
        """Whether there is something that has not been saved."""
        prompts, generated = self.profiles()
        return prompts.n_tokens + generated.n_tokens > self._saved_tokens

    def look(self) -> tuple[RoutingProfile, RoutingProfile]:
        """The profiles; and where it is time for that, whether their mask is stable."""
        with self._lock:
            prompts, generated = self.profiles()
            if self.stability.due(prompts.n_tokens + generated.n_tokens):
                # A layer that nobody has asked the outputs of has no mask yet.
                with contextlib.suppress(InputError):
                    self.stability.look(merge([prompts, generated]))
        return prompts, generated


def _save_together(paths: tuple[Path, ...], profiles: tuple[RoutingProfile, ...]) -> tuple[Path, ...]:
    """Save the sum last, so that where it is new, the parts are."""
    for path, profile in reversed(list(zip(paths, profiles, strict=True))):
        profile.save(path)
    return paths


def _continued(before: RoutingProfile, now: RoutingProfile) -> RoutingProfile:
    """Both, as one corpus."""
    total = before + now
    return replace(total, corpora=tuple(replace(record, tokens=total.n_tokens) for record in total.corpora[:1]))
