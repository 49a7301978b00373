"""Checkpoints: the files from which interrupted profiling runs resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from coe_native.errors import InputError
from coe_native.files.atomic import clear_leftovers
from coe_native.files.checkpoints import START_OVER, checkpoint_path
from coe_native.masks.stability import Stability
from coe_native.model.gguf_file import GgufFile
from coe_native.routing.profile import RoutingProfile

_PREFIX = "coe.checkpoint."
_PREFIX_OF_RUN = "coe.checkpoint.run."
_LOOKS = "coe.checkpoint.looks"


RunKey = Mapping[str, "int | str"]
"""What must be the same for a run to continue, by the names that messages use."""


class Position(NamedTuple):
    """The next batch that a run will decode: a bundle and a batch of it, both counted from 0."""

    bundle: int = 0
    batch: int = 0


class Checkpoint:
    """The checkpoint of a run: a profile of the part that is done, in a file beside the run's output.

    Args:
        output: The profile that the run will write.
        every: Seconds between checkpoints.
        resume: Continue from the checkpoint if it exists.
        force: Start over if it exists, unless `resume` is set.
        inputs: Files that it must not replace, `force` or not.

    Attributes:
        path: The checkpoint's file.

    Raises:
        InputError: The checkpoint exists, and neither `resume` nor `force` is set; or it cannot be written.
    """

    def __init__(
        self,
        output: Path,
        *,
        every: float = 60.0,
        resume: bool = False,
        force: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        self.path = checkpoint_path(output, "run", resume=resume, force=force, inputs=inputs)
        self._every = every
        self._resume = resume
        self._run: RunKey = {}
        self._saved = time.monotonic()

    def begin(
        self, run: RunKey, old_run: Callable[[], RunKey], until: Stability | None = None
    ) -> tuple[Position, RoutingProfile | None]:
        """Return where to start, and what was counted before that.

        Args:
            run: What must be the same for the run to continue.
            old_run: The same as version 0.1.0 recorded it, called if `run` differs.
            until: Restores the masks of the interrupted run.

        Raises:
            InputError: The checkpoint belongs to another run (says what differs), or is damaged.
        """
        self._run = run
        if not self._resume or not self.path.exists():
            return Position(), None
        profile = RoutingProfile.load(self.path)
        file = GgufFile(self.path)
        position = Position(*(file.get(_PREFIX + part, -1) for part in Position._fields))
        if not all(isinstance(part, int) and part >= 0 for part in position):
            raise InputError(f"{self.path}: is not a checkpoint, or is damaged; {START_OVER}")
        found = {name: file.get(_PREFIX_OF_RUN + name) for name in run}
        # Of the two, the one that differs less says what differs.
        runs = [run] if found == run else [run, old_run()]
        differences = min(([name for name in run if found[name] != known.get(name)] for known in runs), key=len)
        if differences:
            name = differences[0]
            values = f" ({found[name]}, not {run[name]})" if len(f"{found[name]}{run[name]}") < 40 else ""
            raise InputError(
                f"{self.path}: belongs to a run with another {name}{values}; use the same, or {START_OVER}"
            )
        if until is not None:
            try:
                until.restore(str(file.get(_LOOKS, "[]")), profile)
            except InputError as error:
                raise InputError(f"{self.path}: is damaged ({error}); {START_OVER}") from error
        return position, profile

    def past_the_end(self) -> InputError:
        """Return the error for a checkpoint whose position or corpora the run does not have."""
        return InputError(f"{self.path}: is damaged: its position is past the end of the run; {START_OVER}")

    def offer(
        self, position: Position, profile: Callable[[], RoutingProfile], until: Stability | None = None
    ) -> None:
        """Save a checkpoint if the last one is old enough."""
        if time.monotonic() - self._saved >= self._every:
            self.save(position, profile(), until)

    def save(self, position: Position, profile: RoutingProfile, until: Stability | None = None) -> None:
        """Save a checkpoint. It replaces the last one, whole or not at all.

        Args:
            position: The next batch to decode.
            profile: What was counted before it.
            until: Whose masks are saved too.
        """
        of_position = {_PREFIX + part: number for part, number in position._asdict().items()}
        of_run = {_PREFIX_OF_RUN + name: value for name, value in self._run.items()}
        looks = {} if until is None else {_LOOKS: until.state()}
        profile.save(self.path, more=of_position | of_run | looks)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the checkpoint, after the run has ended without an error."""
        self.path.unlink(missing_ok=True)
        clear_leftovers(self.path)
