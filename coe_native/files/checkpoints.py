"""Where checkpoints lie, and when one may be written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from coe_native.errors import InputError
from coe_native.files.atomic import check_target

START_OVER = "start over with --force and without --resume"


def checkpoint_path(output: Path, what: str, *, resume: bool, force: bool, inputs: Iterable[Path]) -> Path:
    """Return the path of an output's checkpoint, after checking that it may be written.

    Args:
        output: The output of the run.
        what: What messages call the run.
        resume: Whether an existing checkpoint is continued.
        force: Whether it may be replaced, unless it is continued.
        inputs: Files that it must not replace, `force` or not.

    Raises:
        InputError: The checkpoint exists, and neither `resume` nor `force` is set; or it cannot be written.
    """
    path = output.with_name(f"{output.name}.checkpoint")
    # It may be in a directory of text, because no reader mistakes it for text.
    check_target(path, force=True, inputs=tuple(given for given in inputs if given.is_file()))
    if path.exists() and not resume and not force:
        raise InputError(f"{path}: belongs to an interrupted {what}; continue it with --resume, or {START_OVER}")
    return path
