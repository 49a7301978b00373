"""Checkpoints of sweeps: what each token's prediction was, of all windows that have been run."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.evaluation.perplexity import Values, Windows
from coe_native.files.atomic import clear_leftovers, replacing
from coe_native.files.checkpoints import START_OVER, checkpoint_path
from coe_native.files.regular import open_regular

_DAMAGE = (
    *(OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What NumPy and zipfile raise for files that are something else, or are damaged."""

_ARRAYS = ("log_probabilities", "divergences", "agreements")


class SweepCheckpoint:
    """The checkpoint of a sweep, in a file beside its output.

    Args:
        output: The file that the sweep will write.
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
        self.path = checkpoint_path(output, "sweep", resume=resume, force=force, inputs=inputs)
        self._every = every
        self._resume = resume
        self._run: Mapping[str, Any] = {}
        self._parts: dict[str, Windows] = {}
        self._found: dict[str, NDArray[Any]] = {}
        self._saved = time.monotonic()

    def begin(self, run: Mapping[str, Any], compares: bool) -> bool:
        """Read what an interrupted sweep has left.

        Args:
            run: What must be the same for the sweep to continue, by the names that messages use.
            compares: Whether files are compared with a loaded reference.

        Returns:
            `compares`, or what it was in the interrupted sweep.

        Raises:
            InputError: The checkpoint belongs to another sweep (says what differs), or is damaged.
        """
        self._run = {**run, "compares": compares}
        if not self._resume or not self.path.exists():
            return compares
        try:
            with open_regular(self.path) as opened, np.load(opened, allow_pickle=False) as file:
                self._found = {name: file[name] for name in file.files}
            found = json.loads(bytes(self._found.pop("run")))
        except _DAMAGE as error:
            raise InputError(
                f"{self.path}: is not a checkpoint of a sweep, or is damaged; {START_OVER}"
            ) from error
        for name, value in run.items():
            if not isinstance(found, dict) or found.get(name) != value:
                raise InputError(
                    f"{self.path}: belongs to a sweep with other {name}; use the same, or {START_OVER}"
                )
        self._run = {**run, "compares": bool(found.get("compares", compares))}
        return bool(self._run["compares"])

    def windows(self, part: str, n_masks: int) -> Windows:
        """Return the windows of one part of the sweep, with those that have been run.

        Args:
            part: The part: a model on a text.
            n_masks: Number of its masks.

        Raises:
            InputError: The checkpoint is damaged.
        """
        windows = Windows(n_masks, at_end=self._offer)
        lengths = self._found.get(f"{part}/lengths")
        if lengths is not None:
            try:
                if lengths.ndim != 1 or lengths.dtype != np.int64 or (lengths < 1).any():
                    raise ValueError("no lengths")
                windows.n_done = len(lengths)
                for number, values in enumerate(windows.of_masks):
                    self._restore(values, f"{part}/{number}", lengths)
            except (KeyError, ValueError, TypeError) as error:
                raise InputError(f"{self.path}: is damaged; {START_OVER}") from error
        self._parts[part] = windows
        return windows

    def _restore(self, values: Values, prefix: str, lengths: NDArray[Any]) -> None:
        for name in _ARRAYS:
            array = self._found[f"{prefix}/{name}"]
            expected = np.dtype(bool if name == "agreements" else np.float64)
            if name == "log_probabilities" or array.size:
                if array.dtype != expected or array.shape != (lengths.sum(),) or not np.isfinite(array).all():
                    raise ValueError("other numbers")
                getattr(values, name).extend(np.split(array, np.cumsum(lengths)[:-1]))

    def _offer(self) -> None:
        if time.monotonic() - self._saved >= self._every:
            self.save()

    def save(self) -> None:
        """Save a checkpoint. It replaces the last one, whole or not at all."""
        arrays: dict[str, NDArray[Any]] = {"run": np.frombuffer(json.dumps(self._run).encode(), np.uint8)}
        # What an interrupted run has left of parts that this one has not reached.
        reached = tuple(f"{part}/" for part in self._parts)
        arrays |= {name: array for name, array in self._found.items() if not name.startswith(reached)}
        for part, windows in self._parts.items():
            done = windows.n_done
            if not done:
                continue
            first = windows.of_masks[0].log_probabilities
            arrays[f"{part}/lengths"] = np.array([len(values) for values in first[:done]], np.int64)
            for number, of_mask in enumerate(windows.of_masks):
                for name in _ARRAYS:
                    of_windows = getattr(of_mask, name)[:done]
                    whole = np.concatenate(of_windows) if of_windows else np.empty(0)
                    arrays[f"{part}/{number}/{name}"] = whole
        with replacing(self.path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        self._saved = time.monotonic()

    @property
    def n_windows(self) -> int:
        """Return the number of windows that have been run."""
        return sum(windows.n_done for windows in self._parts.values())

    def remove(self) -> None:
        """Remove the checkpoint, after the sweep has ended without an error."""
        self.path.unlink(missing_ok=True)
        clear_leftovers(self.path)
