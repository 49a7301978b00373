"""How far a long run is, on the disk: what has been counted so far, and where to go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from coe_native.errors import InputError
from coe_native.files.atomic import check_target, clear_leftovers
from coe_native.masks.stability import Stability
from coe_native.model.gguf_file import GgufFile
from coe_native.routing.profile import RoutingProfile

_PREFIX = "coe.checkpoint."
_PREFIX_OF_RUN = "coe.checkpoint.run."
_LOOKS = "coe.checkpoint.looks"

_ANEW = "begin anew with --force and without --resume"

Run = Mapping[str, "int | str"]
"""What must be the same for a run to go on, by the name that a user knows it by."""


class Position(NamedTuple):
    """Where a run stands: before this batch of this bundle, both counted from 0."""

    bundle: int = 0
    batch: int = 0


class Checkpoint:
    """The checkpoint of a run whose result will be the profile `output`: a file beside it, itself a profile, of
    the part that has been run.

    `every`: seconds between two checkpoints. `resume`: go on from the file if it is there. `inputs`: files that
    it must not replace, whatever `force` says. Raises InputError where the file is there and neither `resume` nor
    `force`, which begins anew, says what to do with it.
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
        self.path = output.with_name(f"{output.name}.checkpoint")
        self._every = every
        self._resume = resume
        self._run: Run = {}
        self._saved = time.monotonic()
        # It may lie in a directory of text: no reader takes it for text.
        check_target(self.path, force=True, inputs=tuple(path for path in inputs if path.is_file()))
        if self.path.exists() and not resume and not force:
            raise InputError(
                f"{self.path}: is of a run that was interrupted; go on from it with --resume, or {_ANEW}"
            )

    def begin(
        self, run: Run, old_run: Callable[[], Run], until: Stability | None = None
    ) -> tuple[Position, RoutingProfile | None]:
        """Return where to start, and what was counted before that.

        Args:
            run: What must be the same for the run to continue.
            old_run: The same as version 0.1.0 recorded it, called where `run` differs.
            until: Takes over the masks that the interrupted run had seen.

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
            raise InputError(f"{self.path}: is no checkpoint, or damaged; {_ANEW}")
        found = {name: file.get(_PREFIX_OF_RUN + name) for name in run}
        if found != run and found != old_run():
            name = next(name for name, value in run.items() if found[name] != value)
            values = f" ({found[name]}, not {run[name]})" if len(f"{found[name]}{run[name]}") < 40 else ""
            raise InputError(f"{self.path}: is of a run with another {name}{values}; use the same, or {_ANEW}")
        if until is not None:
            try:
                until.restore(str(file.get(_LOOKS, "[]")), profile)
            except InputError as error:
                raise InputError(f"{self.path}: is damaged ({error}); {_ANEW}") from error
        return position, profile

    def past_the_end(self) -> InputError:
        """Return the error for a checkpoint whose position or corpora the run does not have."""
        return InputError(f"{self.path}: is damaged: its position is past the end of the run; {_ANEW}")

    def offer(
        self, position: Position, profile: Callable[[], RoutingProfile], until: Stability | None = None
    ) -> None:
        """Saves, if the last time is long enough ago."""
        if time.monotonic() - self._saved >= self._every:
            self.save(position, profile(), until)

    def save(self, position: Position, profile: RoutingProfile, until: Stability | None = None) -> None:
        """Replaces the file, whole or not at all."""
        where = {_PREFIX + part: number for part, number in position._asdict().items()}
        which = {_PREFIX_OF_RUN + name: value for name, value in self._run.items()}
        looks = {} if until is None else {_LOOKS: until.state()}
        profile.save(self.path, more=where | which | looks)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """When the run has ended well."""
        self.path.unlink(missing_ok=True)
        clear_leftovers(self.path)
