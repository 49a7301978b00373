"""The counts of a server, and the files that they are saved in."""

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
    """The counts of a server and of the runs that it continues, and the files that they are saved in.

    May be used from several threads.

    Args:
        capture: Counts what the model runs.
        output: The profile file of all tokens; see `paths`.
        stability: Checks whether the mask is stable.
        resume: Continue the counts of an earlier run's files.
        say: Called with a line for the user if the files cannot be written there.

    Raises:
        InputError: The files of an earlier run cannot be continued.
    """

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
        """Return the paths of the model and of the output."""
        return self.capture.moe.path, self._output

    @staticmethod
    def paths(output: Path) -> tuple[Path, Path, Path]:
        """Return the files for all tokens, for prompts and for generated tokens.

        Args:
            output: The file for all tokens. The others are beside it.
        """
        prompts, generated = (
            output.with_name(f"{output.stem}.{part}{output.suffix}") for part in ("prompts", "generated")
        )
        return output, prompts, generated

    def _saved(self, output: Path) -> tuple[RoutingProfile, RoutingProfile] | None:
        """Return the profiles that an earlier run has saved, or None.

        Raises:
            InputError: The files are not of one run with this model.
        """
        paths = self.paths(output)
        missing = [path for path in paths if not path.exists()]
        if len(missing) == len(paths):
            return None
        if missing:
            raise InputError(f"{output}: cannot be continued (--resume): {missing[0]} is missing")
        whole, prompts, generated = map(RoutingProfile.load, paths)
        for profile in (whole, prompts, generated):
            if profile.fingerprint != self.capture.moe.fingerprint:
                raise InputError(f"{profile.place}: was made with another model than {self.capture.moe.path}")
        if (whole.histograms != prompts.histograms + generated.histograms).any():
            raise InputError(
                f"{output}: is not the sum of {prompts.place} and {generated.place}: choose another name"
            )
        if (whole.outputs is None) != (self.capture.profile.outputs is None):
            given = "routing" if whole.outputs is None else "contribution"
            raise InputError(f"{output}: was counted with --stats {given}; continue it with the same")
        return prompts, generated

    def profiles(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Return the profiles of prompts and of generated tokens."""
        now = self.capture.parts
        if self._before is None:
            return now
        prompts, generated = map(_continued, self._before, now)
        return prompts, generated

    def status(self) -> dict[str, Any]:
        """Return the counts so far, as JSON values for `GET /routing`."""
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
        """Write the profiles, each file whole or not at all.

        If the output's directory has vanished or is full, they go to the user's state directory.

        Returns:
            The paths that were written; none if there are no tokens.

        Raises:
            CoeError: The files cannot be written in either directory.
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
        """Save as `save` does; after an error in the last batch, without that batch."""
        try:
            return self.save()
        except (CoeError, OSError):
            self.capture.recover()
            return self.save()

    @property
    def has_news(self) -> bool:
        """Return whether there are tokens that have not been saved."""
        prompts, generated = self.profiles()
        return prompts.n_tokens + generated.n_tokens > self._saved_tokens

    def look(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Return the profiles, after checking whether their mask is stable if that is due."""
        with self._lock:
            prompts, generated = self.profiles()
            if self.stability.due(prompts.n_tokens + generated.n_tokens):
                # A layer whose outputs were not requested has no mask yet.
                with contextlib.suppress(InputError):
                    self.stability.look(merge([prompts, generated]))
        return prompts, generated


def _save_together(paths: tuple[Path, ...], profiles: tuple[RoutingProfile, ...]) -> tuple[Path, ...]:
    """Save the profiles, the sum last: if it is new, so are the parts."""
    for path, profile in reversed(list(zip(paths, profiles, strict=True))):
        profile.save(path)
    return paths


def _continued(before: RoutingProfile, now: RoutingProfile) -> RoutingProfile:
    """Return the sum of two profiles, as one corpus."""
    total = before + now
    return replace(total, corpora=tuple(replace(record, tokens=total.n_tokens) for record in total.corpora[:1]))
