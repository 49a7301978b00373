"""Files that llama.cpp can load, of models whose files hold vision and audio parts too."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from coe_native.errors import InputError
from coe_native.files.atomic import check_space
from coe_native.files.copying import copy_range
from coe_native.model.gguf_file import encode_header, tensor_layout
from coe_native.model.header import ModelHeader

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def loadable(header: ModelHeader, *, with_weights: bool = True) -> Iterator[Path]:
    """Yield a file with the language model alone: its own file or, if that holds other parts, a temporary copy.

    The copy is removed when the block ends; llama.cpp may have mapped it by then, and keeps the mapping.

    Args:
        header: The model's header.
        with_weights: Whether weights are read. Otherwise the copy has a hole in their place, which takes no space.

    Raises:
        InputError: The model is split.
        CoeError: The copy does not fit on the disk.
    """
    if not header.other_parts:
        yield header.path
        return
    if len(header.files) > 1:
        raise InputError(
            f"{header.path}: is split and holds vision or audio parts; merge the files with llama-gguf-split"
        )
    place = _place(header) if with_weights else Path(tempfile.gettempdir())
    with tempfile.NamedTemporaryFile(dir=place, prefix=".coe-native-", suffix=".gguf") as target:
        file, others = header.files[0], set(header.other_parts)
        tensors = [tensor for tensor in file.tensors if tensor not in others]
        alignment = file.header.alignment
        infos = [(t.name, t.shape, t.type, t.n_bytes) for t in tensors]
        head = encode_header(file.header.version, [file.raw_entry(key) for key in file.keys], infos, alignment)
        offsets, n_bytes = tensor_layout([tensor.n_bytes for tensor in tensors], alignment)
        target.write(head)
        if with_weights:
            _say_copied(header, Path(target.name), n_bytes)
            with file.open() as source:
                for tensor, offset in zip(tensors, offsets, strict=True):
                    target.seek(len(head) + offset)
                    copy_range(source, tensor.offset, tensor.n_bytes, cast(BinaryIO, target))
        target.truncate(len(head) + n_bytes)
        target.flush()
        yield Path(target.name)


def _say_copied(header: ModelHeader, copy: Path, n_bytes: int) -> None:
    check_space(copy, n_bytes)
    _log.warning(
        "%s: holds vision and audio parts, which llama.cpp cannot load; copying the language model to %s, where "
        "it takes %.2f GB while it is loaded",
        *(header.path, copy.parent, n_bytes / 1e9),
    )


def _place(header: ModelHeader) -> Path:
    """Return the model's own directory if it can be written to and has room, otherwise that of temporary files."""
    beside = header.path.resolve().parent
    has_room = shutil.disk_usage(beside).free > header.n_bytes
    return beside if has_room and os.access(beside, os.W_OK) else Path(tempfile.gettempdir())
