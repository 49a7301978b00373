"""The command ``coe-native prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.checkpoints import gguf_option, prune_directory, refuse_other_options
from coe_native.cli.command import Command
from coe_native.cli.mask_options import MaskChoice, mask_options, say_fallback
from coe_native.cli.options import force_option, json_option, load_profile, placement_options, split_option
from coe_native.cli.output import print_json, say, size_of
from coe_native.cli.progress import byte_progress
from coe_native.cli.sampling_options import sampling_options
from coe_native.cli.types import FILE, MODEL
from coe_native.errors import InputError

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.model.header import ModelHeader
    from coe_native.model.sampler_defaults import SamplerDefaults


@click.command(name="prune", cls=Command)
@click.argument("model", type=MODEL)
@click.option("--mask", "mask_path", type=FILE, help="Mask file.")
@click.option(
    "--profile", type=FILE, help="Profile to build a mask from, instead of --mask; needs --keep or --fit."
)
@gguf_option
@mask_options
@placement_options()
@click.option("-o", "--output", type=FILE, required=True, help="GGUF file to write, or a checkpoint's directory.")
@click.option("--drop-mtp", is_flag=True, help="Leave out MTP layers (multi-token prediction).")
@click.option(
    "--keep-vision",
    is_flag=True,
    help="Keep vision and audio parts in the file, for Ollama; llama.cpp loads only files without them.",
)
@click.option("--type", "file_type", metavar="TYPE", help="Quantise the specialist too, as `quantize` does.")
@click.option("--imatrix", type=FILE, help="Importance matrix for --type, of MODEL or of the specialist.")
@sampling_options
@split_option
@force_option
@json_option
def command(
    model: Path,
    mask_path: Path | None,
    profile: Path | None,
    gguf: Path | None,
    output: Path,
    choice: MaskChoice,
    options: ModelOptions,
    drop_mtp: bool,
    keep_vision: bool,
    file_type: str | None,
    imatrix: Path | None,
    split_max_bytes: int | None,
    sampling: SamplerDefaults | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL with the kept experts only; everything else stays the same, byte for byte.

    The metadata also says what was done, and, for llama.cpp's programs, which temperature and repeat penalty to
    sample with.

    MODEL may also be the directory of a Hugging Face or MLX checkpoint in safetensors files. It is pruned with a
    --mask that was made with the same model's GGUF.
    """
    if model.is_dir():
        refuse_other_options("mask_path", "gguf", "output", "force", "as_json")
        prune_directory(model, mask_path, output, gguf=gguf, force=force, as_json=as_json)
        return
    if gguf is not None:
        raise InputError("--gguf is for checkpoints; leave it out for a GGUF file")
    from coe_native.llama.quantizer import QuantizeOptions
    from coe_native.model.header import ModelHeader
    from coe_native.surgery.notice import safety_notice
    from coe_native.surgery.quantize import prune_and_quantize
    from coe_native.surgery.write import prune

    if file_type is None and imatrix is not None:
        raise InputError("--imatrix is for quantising: give --type too")
    if file_type is not None and (keep_vision or split_max_bytes is not None):
        raise InputError(
            "--type writes one file with the language model: leave out --keep-vision and --split-max-size"
        )
    requantised = None if file_type is None else QuantizeOptions(file_type)
    parent = ModelHeader(model)
    mask = _mask(parent, mask_path, profile, choice, options)
    inputs = tuple(path for path in (mask_path, profile, *choice.passes.inputs) if path is not None)
    with byte_progress("pruning") as progress:
        if requantised is not None:
            path = prune_and_quantize(
                model,
                mask,
                requantised,
                output,
                imatrix=imatrix,
                drop_mtp=drop_mtp,
                sampling=sampling,
                force=force,
                inputs=inputs,
                progress=progress,
            )
        else:
            path = prune(
                model,
                mask,
                output,
                drop_mtp=drop_mtp,
                keep_vision=keep_vision,
                split_max_bytes=split_max_bytes,
                sampling=sampling,
                force=force,
                inputs=inputs,
                progress=progress,
            )
    written = ModelHeader(path)
    notice = safety_notice(mask.provenance.get("method"))
    if as_json:
        facts = {"output": str(written.path), "files": list(map(str, written.paths)), "bytes": written.n_bytes}
        print_json({**facts, "keep": mask.keep, "notice": notice})
    else:
        say(f"{size_of(written)}, {mask.keep} of {mask.n_experts} experts in each layer")
        if parent.other_parts and not keep_vision:
            say(f"without the vision and audio parts of {model}; pass --keep-vision to keep them for Ollama")
        say(notice)


def _mask(
    moe: ModelHeader, mask_path: Path | None, profile: Path | None, choice: MaskChoice, options: ModelOptions
) -> ExpertMask:
    """Return the mask of a file, or one built from a profile."""
    from coe_native.masks.build import build
    from coe_native.masks.expert_mask import ExpertMask

    if (mask_path is None) == (profile is None):
        raise InputError("prune needs either --mask MASK, or --profile PROFILE with --keep or --fit")
    if profile is not None:
        mask = build(load_profile(profile), choice.load(moe, options))
        say_fallback(choice, mask)
        return mask
    if choice.is_given:
        raise InputError(
            f"{mask_path}: a mask says which experts to keep; use --keep, --fit, --method and the options of the "
            "passes with --profile only"
        )
    assert mask_path is not None
    return ExpertMask.load(mask_path)
