"""Zero the dropped experts of a model in its own file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from coe_native.errors import CoeError, InputError
from coe_native.files.atomic import lock, resolved
from coe_native.files.holes import bytes_on_disk, write_zeros
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.model.names import is_name
from coe_native.model.surgery_record import SurgeryRecord, under_surgery
from coe_native.surgery.plan import plan_zero
from coe_native.surgery.write import Report, _quiet


class Zeroed(NamedTuple):
    """What zeroing in place did.

    Attributes:
        n_bytes: Bytes that are zero now.
        freed: Bytes of the disk that became free, because the file system may store zeros as holes.
    """

    n_bytes: int
    freed: int


def zero_in_place(parent: str | Path, mask: ExpertMask, *, progress: Report = _quiet) -> Zeroed:
    """Zero the dropped experts' weights and biases in the parent's own file.

    Kept experts are not touched. This cannot be undone without a copy of the file. While it runs, no program
    can load the (first) file. After an interruption, a call with the same mask finishes the work. A record of
    the mask stays after the data.

    Args:
        parent: The model's file.
        mask: The mask.
        progress: Called with bytes done and bytes in all.

    Raises:
        InputError: The mask is of another model, or another mask has zeroed experts of the parent.
        CoeError: The file cannot be changed, or another process is changing it.
    """
    if is_name(parent):
        raise InputError(f"{parent}: must not be changed, because other programs use it; copy the file first")
    model = ModelHeader(parent, surgery_goes_on=True)
    plan = plan_zero(model, mask)
    work = [(tensor, piece) for tensor in plan.tensors for piece in tensor.pieces() if piece.zero]
    total = sum(piece.count * tensor.slice_bytes for tensor, piece in work)
    record = SurgeryRecord("zero", mask.keep, mask.digest, in_place=True)
    recorded = model.surgery is not None and model.surgery.mode == "zero"
    done, begun = 0, False
    try:
        with contextlib.ExitStack() as opened:
            # All are opened before the first is changed, because one may be read-only.
            files = {file: opened.enter_context(resolved(file.path).open("r+b")) for file in model.files}
            # Unbuffered: data that could not be written would stay in a buffer and make later writes fail too.
            marked = opened.enter_context(resolved(model.paths[0]).open("r+b", buffering=0))
            lock(marked)
            # Another process may have changed or replaced them before it released the lock.
            model.files[0].check_opened(marked)
            for file, opened_file in files.items():
                file.check_opened(opened_file)
            bytes_before = sum(map(bytes_on_disk, model.paths))
            opened.enter_context(under_surgery(marked, None if recorded else record))
            begun = True
            for tensor, piece in work:
                offset, n_bytes = tensor.where(piece)
                write_zeros(files[tensor.source.file], offset, n_bytes)
                done += n_bytes
                progress(done, total)
            for opened_file in files.values():
                opened_file.flush()
                os.fsync(opened_file.fileno())
            for file, opened_file in files.items():
                file.check_same(opened_file)
            freed = max(0, bytes_before - sum(map(bytes_on_disk, model.paths)))
    except BlockingIOError as error:
        raise CoeError(f"{parent}: another process is changing it; wait until it has finished") from error
    except OSError as error:
        again = "; run the same command again" if begun else ""
        raise CoeError(f"{parent}: cannot be zeroed in place: {error.strerror or error}{again}") from error
    return Zeroed(total, freed)
