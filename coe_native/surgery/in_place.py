"""Zero the dropped experts of a model in its own file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from coe_native.errors import CoeError
from coe_native.files.atomic import lock, resolved
from coe_native.files.holes import bytes_on_disk, write_zeros
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.model.surgery_record import SurgeryRecord, under_surgery
from coe_native.surgery.plan import (
    plan_zero,
)
from coe_native.surgery.write import Report, _quiet


class Zeroed(NamedTuple):
    """What zeroing in place did: bytes that are zero now, and bytes of the disk that are free again, for the file
    system may keep zeros as holes."""

    n_bytes: int
    freed: int


def zero_in_place(parent: str | Path, mask: ExpertMask, *, progress: Report = _quiet) -> Zeroed:
    """Zeroes the dropped experts' weights and biases in the parent itself.

    Kept experts are not touched. There is no way back without a copy of the file. From the first byte on until
    the last is on the disk, the (first) file is no GGUF to any program; where this was interrupted, calling it
    again with the same mask brings it to its end. Behind the data stays a record of the mask.

    Raises InputError for a mask of another model, or where another mask's surgery was begun or done before, and
    CoeError where the file can't be changed.
    """
    model = ModelHeader(parent, surgery_goes_on=True)
    plan = plan_zero(model, mask)
    work = [(tensor, piece) for tensor in plan.tensors for piece in tensor.pieces() if piece.zero]
    total = sum(piece.count * tensor.slice_bytes for tensor, piece in work)
    record = SurgeryRecord("zero", mask.keep, mask.digest, in_place=True)
    recorded = model.surgery is not None and model.surgery.mode == "zero"
    done, begun = 0, False
    try:
        with contextlib.ExitStack() as opened:
            # All of them before the first is changed: one may be read-only.
            files = {file: opened.enter_context(resolved(file.path).open("r+b")) for file in model.files}
            # Unbuffered: a buffer that could not be written would be tried again with the next, and again fail.
            marked = opened.enter_context(resolved(model.paths[0]).open("r+b", buffering=0))
            lock(marked)
            # Another may have changed them until it gave up the lock, or put other files into their place.
            model.files[0].check_opened(marked)
            for file, opened_file in files.items():
                file.check_opened(opened_file)
            taken = sum(map(bytes_on_disk, model.paths))
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
            freed = max(0, taken - sum(map(bytes_on_disk, model.paths)))
    except BlockingIOError as error:
        raise CoeError(f"{parent}: another process is changing it; wait until that has ended") from error
    except OSError as error:
        again = "; run the same command again" if begun else ""
        raise CoeError(f"{parent}: cannot be zeroed in place: {error.strerror or error}{again}") from error
    return Zeroed(total, freed)
