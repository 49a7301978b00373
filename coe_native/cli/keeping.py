"""How many experts to keep, and which: options of the commands that make a mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.options import load_profile, method_option, together
from coe_native.cli.output import say
from coe_native.cli.types import COUNT, FILE, Size
from coe_native.errors import InputError
from coe_native.units import gibibytes

if TYPE_CHECKING:
    from coe_native.model.header import MoeModel
    from coe_native.surgery.fit import Fit, Memory, Placement

keep_option = click.option("--keep", type=int, help="Experts to keep in each layer.")
fit_option = click.option(
    "--fit",
    "fit_bytes",
    type=Size(),
    metavar="SIZE",
    help="Keep as many experts as fit into so much memory (12GiB), with context and compute buffers.",
)

_PASS_OPTIONS = (
    click.option(
        "--structural-rank",
        default=2.0,
        show_default=True,
        help="Structural experts have a mean rank below this (0: always first).",
    ),
    click.option(
        "--structural-min",
        type=click.IntRange(0),
        default=10,
        show_default=True,
        help="Structural experts were chosen at least so often.",
    ),
    click.option("--no-structural", is_flag=True, help="Leave out the structural pass."),
    click.option("--reasoning", type=FILE, help="Profile of reasoning text, for the third pass."),
    click.option(
        "--reasoning-swaps",
        type=click.IntRange(0),
        default=3,
        show_default=True,
        help="Most swaps a layer in that pass.",
    ),
)

ctx_option = click.option(
    "--ctx", type=COUNT, default=8192, show_default=True, help="Tokens of the context that is to fit too."
)

pass_options = together(_PASS_OPTIONS)
"""What the passes of a mask take, but for how experts are scored and how many stay."""
mask_options = together((keep_option, fit_option, method_option, *_PASS_OPTIONS))


PASS_NAMES = ("structural_rank", "structural_min", "no_structural", "reasoning", "reasoning_swaps")
MASK_NAMES = ("keep", "fit_bytes", "method", *PASS_NAMES)
"""The options of `mask_options`."""


def pass_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `build_mask` by the values of `pass_options`."""
    reasoning: Path | None = options["reasoning"]
    return {
        "structural": not options["no_structural"],
        "structural_rank": options["structural_rank"],
        "structural_min": options["structural_min"],
        "reasoning": None if reasoning is None else load_profile(reasoning),
        "reasoning_swaps": options["reasoning_swaps"],
    }


def mask_arguments(options: Mapping[str, Any], moe: MoeModel | None, n_ctx: int) -> dict[str, Any]:
    """Arguments of `build_mask` by the values of `mask_options`, and of `placement_options` where `--fit` asks how
    many experts of `moe` fit with a context of `n_ctx` tokens."""
    keep, n_bytes = options["keep"], options["fit_bytes"]
    if (keep is None) == (n_bytes is None):
        raise InputError("say how many experts to keep: --keep NUMBER or --fit SIZE, and not both")
    if keep is None:
        if moe is None:
            raise InputError("--fit needs the model whose experts are to fit: --model MODEL")
        found = fitting(options, moe, n_ctx)
        keep = found.keep
        say(
            f"{keep} of {moe.n_experts} experts a layer fit into {gibibytes(n_bytes)}: {told(found.memory, n_ctx)}"
        )
        slower = slower_on_cuda(moe.n_experts, keep)
        if slower:
            say(slower)
    return {"keep": keep, "method": options["method"], **pass_arguments(options)}


def placement(options: Mapping[str, Any], n_ctx: int) -> Placement:
    """Where a model goes by the values of `placement_options`."""
    from coe_native.surgery.fit import Placement

    return Placement(
        n_ctx=n_ctx,
        n_gpu_layers=options["gpu_layers"],
        n_cpu_moe=-1 if options["cpu_moe"] else options["n_cpu_moe"],
        devices=options["device"],
    )


def fitting(options: Mapping[str, Any], moe: MoeModel, n_ctx: int) -> Fit:
    """What `--fit` finds."""
    from coe_native.surgery.fit import fit

    return fit(moe, options["fit_bytes"], placement(options, n_ctx))


def told(memory: Memory, n_ctx: int) -> str:
    """What a model takes, in words."""
    where = "of GPU memory" if memory.on_gpu else "of memory"
    return (
        f"{gibibytes(memory.total)} {where} ({gibibytes(memory.weights)} weights, {gibibytes(memory.context)} "
        f"context of {n_ctx} tokens, {gibibytes(memory.compute)} to compute in)"
    )


def has_fused_topk(n_experts: int) -> bool:
    """Whether llama.cpp's CUDA backend has its fused top-k kernel for so many experts."""
    return n_experts in (288, 576) or (n_experts <= 512 and n_experts & (n_experts - 1) == 0)


def slower_on_cuda(n_experts: int, keep: int) -> str:
    """A hint where the specialist loses a kernel that its parent has, or nothing."""
    if not has_fused_topk(n_experts) or has_fused_topk(keep):
        return ""
    lower = 1 << (keep.bit_length() - 1)
    return f"{keep} experts have no fused top-k kernel on CUDA, which costs some speed; {lower} would have it"
