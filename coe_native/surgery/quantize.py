"""Write a model in another quantisation, with llama.cpp's own quantiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.files.atomic import check_space, check_target, replacing, working_directory
from coe_native.llama.quantizer import ImatrixFile, QuantizeOptions, imatrix_metadata, quantize_file
from coe_native.llama.text_only import loadable
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.gguf_file import encode_entry, encode_header, tensor_layout
from coe_native.model.header import ModelHeader
from coe_native.model.imatrix_file import Imatrix
from coe_native.model.sampler_defaults import PUBLISHED_SAMPLING, SamplerDefaults
from coe_native.surgery.plan import SHARD_KEYS
from coe_native.surgery.write import prune


@dataclass(frozen=True)
class PlannedQuantization:
    """What quantising a model would write.

    Attributes:
        n_bytes: The size of the file.
        types: ggml's type of each tensor in the output, in upper case, by the tensor's name.
    """

    n_bytes: int
    types: dict[str, str]

    @property
    def type_numbers(self) -> dict[str, int]:
        """Return ggml's numbers of the types."""
        return {name: core.type_number(type_name.lower()) for name, type_name in self.types.items()}


def plan_quantization(
    model: str | Path, options: QuantizeOptions, *, imatrix: str | Path | None = None
) -> PlannedQuantization:
    """Find out how large a quantised file would be, without quantising anything.

    Args:
        model: The model.
        options: How it is quantised.
        imatrix: An importance matrix, which some mixes of types depend on; None: none.

    Raises:
        InputError: The model or the importance matrix cannot be read.
        CoeError: llama.cpp cannot quantise the model in this way.
    """
    header = ModelHeader(model)
    return _planned(header, options, _given(imatrix))


def quantize(
    model: str | Path,
    options: QuantizeOptions,
    out: str | Path,
    *,
    imatrix: str | Path | None = None,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a model in another quantisation. The result is llama-quantize's, byte for byte.

    The record of surgery is kept. Of a model in a file with vision and audio parts, the language model is written.

    Args:
        model: The model; of a split one, the first file. The output is one file.
        options: How it is quantised.
        out: The file to write.
        imatrix: An importance matrix, in llama.cpp's format; None: none.
        force: Replace an existing file.
        inputs: Files, in addition to the model's, that must not be replaced, `force` or not.
        progress: Called with tensors done and tensors in all.

    Returns:
        The file.

    Raises:
        InputError: The model, the importance matrix or the output cannot be used.
        CoeError: llama.cpp cannot quantise the model in this way, or the output cannot be written.
    """
    header, out, given = ModelHeader(model), Path(out), _given(imatrix)
    check_target(out, force=force, inputs=(*header.paths, *inputs, *(() if given is None else (given.path,))))
    write_quantized(header, options, out, given, progress)
    return out


def _given(imatrix: str | Path | None) -> ImatrixFile | None:
    return None if imatrix is None else ImatrixFile(Path(imatrix), str(imatrix))


def write_quantized(
    header: ModelHeader,
    options: QuantizeOptions,
    out: Path,
    imatrix: ImatrixFile | None,
    progress: Callable[[int, int], None],
) -> None:
    """Write a model in another quantisation, without a check of what is replaced: see `quantize`."""
    check_space(out, _planned(header, options, imatrix).n_bytes)
    with loadable(header) as source, replacing(out) as file:
        quantize_file(source, Path(file.name), options, imatrix, progress)
    header.check_unchanged()


def prune_and_quantize(
    parent: str | Path,
    mask: ExpertMask,
    options: QuantizeOptions,
    out: str | Path,
    *,
    imatrix: str | Path | None = None,
    drop_mtp: bool = False,
    sampling: SamplerDefaults | None = PUBLISHED_SAMPLING,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a specialist in another quantisation: what `prune` and `quantize` write one after the other.

    The pruned file lies in a temporary directory beside the output until the work is done.

    Args:
        parent: The parent's file.
        mask: The mask.
        options: How the specialist is quantised.
        out: The file to write.
        imatrix: An importance matrix, of the parent or of the specialist; None: none.
        drop_mtp: See `prune`.
        sampling: See `prune`.
        force: Replace an existing file.
        inputs: Files, in addition to the parent's, that must not be replaced, `force` or not.
        progress: Called with the bytes that are pruned, then with tensors that are quantised, and those in all.

    Returns:
        The file.

    Raises:
        InputError: The mask, the parent, the importance matrix or the output cannot be used.
        CoeError: llama.cpp cannot quantise the model in this way, or the output cannot be written.
    """
    header, out, given = ModelHeader(parent), Path(out), _given(imatrix)
    check_target(out, force=force, inputs=(*header.paths, *inputs, *(() if given is None else (given.path,))))
    with working_directory(out) as directory:
        if given is not None:
            fitting = directory / "imatrix.gguf"
            imatrix_for(given.load(), header, mask, given.path).save(fitting)
            given = ImatrixFile(fitting, given.name)
        pruned = prune(
            header.path, mask, directory / "pruned.gguf", drop_mtp=drop_mtp, sampling=sampling, progress=progress
        )
        try:
            write_quantized(ModelHeader(pruned), options, out, given, progress)
        except CoeError as error:  # the temporary files are gone by the time that it is read
            said = str(error).replace(str(pruned), str(header.path))
            if given is not None:
                said = said.replace(str(given.path), given.name)
            raise type(error)(said) from error
    return out


def imatrix_for(imatrix: Imatrix, parent: ModelHeader, mask: ExpertMask, path: Path) -> Imatrix:
    """Return an importance matrix for a specialist: the parent's is cut to the kept experts.

    Args:
        imatrix: That of the parent or of the specialist.
        parent: The parent.
        mask: The specialist's mask.
        path: The file that it is from, for messages.

    Raises:
        InputError: It is of another model or mask.
    """
    if imatrix.mask:
        if imatrix.mask != mask.digest:
            raise InputError(f"{path}: is of another mask ({imatrix.mask[:12]}..., not {mask.digest[:12]}...)")
        return imatrix
    kept = {
        tensor.name: mask.kept[layer.block]
        for layer in parent.layers
        if layer.block in mask.kept
        for tensor in layer.tensors
    }
    is_parents = any(
        name in kept and len(entry.counts) == mask.n_experts > mask.keep for name, entry in imatrix.entries.items()
    )
    if not is_parents:
        return imatrix
    _check_imatrix(imatrix, parent, path)
    return imatrix.of_kept(kept, mask.digest)


def _planned(header: ModelHeader, options: QuantizeOptions, imatrix: ImatrixFile | None) -> PlannedQuantization:
    if imatrix is not None:
        _check_imatrix(imatrix.load(), header, imatrix.path)
    with loadable(header, with_weights=False) as source:
        changed = quantize_file(source, source, options, imatrix, lambda *_: None, dry_run=True)
    others = set(header.other_parts)
    tensors = [tensor for tensor in header.tensors.values() if tensor not in others]
    types = {tensor.name: changed.get(tensor.name, tensor.type_name).upper() for tensor in tensors}
    infos = [(t.name, t.shape, t.type, core.tensor_bytes(types[t.name].lower(), t.shape)) for t in tensors]
    first = header.files[0]
    added = _added_metadata(imatrix)
    entries = [first.raw_entry(key) for key in first.keys if key not in SHARD_KEYS]
    entries += [encode_entry(key, added[key]) for key in added if key not in first.keys]
    alignment = first.header.alignment
    head = encode_header(first.header.version, entries, infos, alignment)
    _, n_bytes = tensor_layout([size for *_, size in infos], alignment)
    return PlannedQuantization(len(head) + n_bytes, types)


def _added_metadata(imatrix: ImatrixFile | None) -> dict[str, int | str]:
    """Return the metadata that the quantiser adds where it is missing."""
    added: dict[str, int | str] = {"general.quantization_version": 2, "general.file_type": 0}
    return added if imatrix is None else added | imatrix_metadata(imatrix)


def _check_imatrix(imatrix: Imatrix, header: ModelHeader, path: Path) -> None:
    """Check that an importance matrix fits a model. llama.cpp ends the process for some that do not."""
    for name, entry in imatrix.entries.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            continue
        n_columns, n_matrices = tensor.shape[0], math.prod(tensor.shape[2:])
        if entry.sums.shape not in ((n_matrices, n_columns), (1, n_matrices * n_columns)):
            raise InputError(
                f"{path}: has {entry.sums.shape[0]} x {entry.sums.shape[1]} values for {name}, and {header.path} "
                f"{n_matrices} x {n_columns}; it is of another model or mask"
            )
    done = header.surgery
    if imatrix.mask and done is not None and imatrix.mask != done.digest:
        raise InputError(f"{path}: is of another mask than {header.path}")
    if not set(imatrix.entries) & set(header.tensors):
        raise InputError(f"{path}: has no tensor of {header.path}; it is of another model")
