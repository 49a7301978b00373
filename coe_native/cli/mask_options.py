"""Options that choose how many experts to keep, and which."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from coe_native.cli.options import Function, combine_options, load_profile, method_option
from coe_native.cli.output import say
from coe_native.cli.types import FILE, Size
from coe_native.errors import InputError
from coe_native.masks.published import PUBLISHED
from coe_native.routing.scores import FALLBACK_METHOD
from coe_native.units import gibibytes

if TYPE_CHECKING:
    from coe_native.llama.memory import Memory
    from coe_native.llama.options import ModelOptions
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.masks.options import MaskOptions, PassOptions
    from coe_native.model.header import ModelHeader

keep_option = click.option("--keep", type=int, help="Experts to keep in each layer.")
fit_option = click.option(
    "--fit",
    "fit_bytes",
    type=Size(),
    metavar="SIZE",
    help="Keep as many experts as fit into this much memory (12GiB), with context and compute buffers.",
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
        help="Structural experts were chosen at least this often.",
    ),
    click.option(
        "--structural/--no-structural",
        default=None,
        help="Run the structural pass, or leave it out; if not given, it runs with methods that score by choices.",
    ),
    click.option("--reasoning", type=FILE, help="Profile of reasoning text, for the third pass."),
    click.option(
        "--reasoning-swaps",
        type=click.IntRange(0),
        default=3,
        show_default=True,
        help="Largest number of swaps in a layer in that pass.",
    ),
    click.option(
        "--published",
        is_flag=True,
        help="The published recipe: --method utility --structural, with the other options as they are by default.",
    ),
)


@dataclass(frozen=True)
class PassChoice:
    """The options of the passes, as they were given.

    Attributes:
        structural_rank: See PassOptions.
        structural_min: The same.
        structural: The same.
        reasoning_path: The file of the reasoning profile.
        reasoning_swaps: See PassOptions.
        published: Whether the published recipe was asked for.
    """

    structural_rank: float = 2.0
    structural_min: int = 10
    structural: bool | None = None
    reasoning_path: Path | None = None
    reasoning_swaps: int = 3
    published: bool = False

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Return the files that it names."""
        return () if self.reasoning_path is None else (self.reasoning_path,)

    def methods(self, given: Sequence[str]) -> tuple[str, ...]:
        """Return the methods: that of the published recipe if that was asked for, otherwise the given ones.

        Raises:
            InputError: Other options were given beside ``--published``.
        """
        if not self.published:
            return tuple(given)
        usual = PassChoice(reasoning_path=self.reasoning_path, published=True)
        if given or self != usual:
            raise InputError("--published sets the method and the passes; leave out their options")
        return (PUBLISHED["method"],)

    def load(self, combine: str | None = None) -> PassOptions:
        """Read the reasoning profile, and return the options of `build_mask`."""
        from coe_native.masks.options import PassOptions

        return PassOptions(
            combine=combine or "sum",
            structural=True if self.published else self.structural,
            structural_rank=self.structural_rank,
            structural_min=self.structural_min,
            reasoning=None if self.reasoning_path is None else load_profile(self.reasoning_path),
            reasoning_swaps=self.reasoning_swaps,
        )


@dataclass(frozen=True)
class MaskChoice:
    """Everything that says which mask to build, as it was given.

    Attributes:
        keep: Experts to keep, or None.
        fit_bytes: Memory that they must fit into, or None.
        method: How experts are scored.
        passes: The options of the passes.
    """

    keep: int | None
    fit_bytes: int | None
    method: str | None
    passes: PassChoice

    @property
    def is_given(self) -> bool:
        """Return whether any option of it was given."""
        return self != MaskChoice(None, None, None, PassChoice())

    def load(self, header: ModelHeader | None, use: ModelOptions, combine: str | None = None) -> MaskOptions:
        """Return the options of `build_mask`, and say what fits into the memory where that was asked.

        Args:
            header: The model, which `--fit` needs.
            use: How the specialist will be used, for `--fit`.
            combine: How several domains are combined.

        Raises:
            InputError: Neither `--keep` nor `--fit` was given, or both.
        """
        from coe_native.masks.options import MaskOptions

        if (self.keep is None) == (self.fit_bytes is None):
            raise InputError("say how many experts to keep: --keep NUMBER or --fit SIZE, and not both")
        keep = self.keep if self.fit_bytes is None else self._fitting(header, self.fit_bytes, use)
        assert keep is not None
        methods = self.passes.methods(() if self.method is None else (self.method,))
        return MaskOptions(keep=keep, method=methods[0] if methods else None, **vars(self.passes.load(combine)))

    def _fitting(self, header: ModelHeader | None, n_bytes: int, use: ModelOptions) -> int:
        from coe_native.surgery.fit import largest_keep_that_fits

        if header is None:
            raise InputError("--fit needs the model whose experts must fit: --model MODEL")
        found = largest_keep_that_fits(header, n_bytes, use)
        say(
            f"{found.keep} of {header.n_experts} experts a layer fit into {gibibytes(n_bytes)}: "
            f"{format_memory(found.memory, use.n_ctx)}"
        )
        if slower := slower_on_cuda(header.n_experts, found.keep):
            say(slower)
        return found.keep


def pass_options(command: Function) -> Function:
    """Add the options of the passes, and pass them as one PassChoice, `passes`."""

    @functools.wraps(command)
    def with_passes(
        *,
        structural_rank: float,
        structural_min: int,
        structural: bool | None,
        reasoning: Path | None,
        reasoning_swaps: int,
        published: bool,
        **others: Any,
    ) -> Any:
        passes = PassChoice(structural_rank, structural_min, structural, reasoning, reasoning_swaps, published)
        return command(passes=passes, **others)

    return cast("Function", combine_options(_PASS_OPTIONS)(with_passes))


def mask_options(command: Function) -> Function:
    """Add all options that choose a mask, and pass them as one MaskChoice, `choice`."""

    @functools.wraps(command)
    def with_choice(
        *, keep: int | None, fit_bytes: int | None, method: str | None, passes: PassChoice, **others: Any
    ) -> Any:
        return command(choice=MaskChoice(keep, fit_bytes, method, passes), **others)

    options = (keep_option, fit_option, method_option, pass_options)
    return cast("Function", combine_options(options)(with_choice))


def format_memory(memory: Memory, n_ctx: int) -> str:
    """Return what a model takes, as text."""
    where = "of GPU memory" if memory.on_gpu else "of memory"
    return (
        f"{gibibytes(memory.total)} {where} ({gibibytes(memory.weights)} weights, {gibibytes(memory.context)} "
        f"context of {n_ctx} tokens, {gibibytes(memory.compute)} to compute in)"
    )


def has_fused_topk(n_experts: int) -> bool:
    """Return whether llama.cpp's CUDA backend has its fused top-k kernel for this number of experts."""
    return n_experts in (288, 576) or (n_experts <= 512 and n_experts & (n_experts - 1) == 0)


def slower_on_cuda(n_experts: int, keep: int) -> str:
    """Return a hint where the specialist lacks a kernel that its parent has; else nothing."""
    if not has_fused_topk(n_experts) or has_fused_topk(keep):
        return ""
    lower = 1 << (keep.bit_length() - 1)
    return f"{keep} experts have no fused top-k kernel on CUDA, which costs some speed; {lower} would have it"


def say_fallback(choice: MaskChoice, mask: ExpertMask) -> None:
    """Say that experts were scored by choices alone, where activation norms would have been better."""
    if choice.method is None and not choice.passes.published and mask.provenance.get("method") == FALLBACK_METHOD:
        say("scored by utility, because a profile has no activation norms; `profile` counts them by default")
