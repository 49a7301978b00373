"""The command ``coe-native profile``."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.command import Command
from coe_native.cli.options import (
    Reading,
    corpus_option,
    force_option,
    json_option,
    method_option,
    min_tokens_option,
    model_options,
    reading_options,
)
from coe_native.cli.output import print_json, print_table, say, say_few_tokens, say_skipped
from coe_native.cli.progress import token_progress
from coe_native.cli.types import FILE, MODEL
from coe_native.errors import InputError
from coe_native.routing.scores import BEST_METHOD, FALLBACK_METHOD
from coe_native.routing.stats import DEFAULT_STATS, STATS, Stats, parse_stats
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.corpus.bundles import Shard
    from coe_native.llama.options import ModelOptions
    from coe_native.masks.stability import Stability
    from coe_native.model.router_shape import RouterShape
    from coe_native.profiling.imatrix import InputWatcher
    from coe_native.routing.profile import RoutingProfile


class _Shard(click.ParamType["Shard"]):
    """A shard, written ``I/N``: the I-th of N parts."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        from coe_native.corpus.bundles import Shard

        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a shard; write it like 2/8, from 1/8 to 8/8", param, ctx)
        return Shard(int(match[1]), int(match[2]))


@click.command(name="profile", cls=Command)
@click.argument("model", type=MODEL)
@corpus_option
@click.option("-o", "--output", type=FILE, required=True, help="Profile file to write.")
@reading_options
@click.option(
    "--stats",
    type=click.Choice(STATS),
    default=DEFAULT_STATS,
    show_default=True,
    help="What to count: the routers' choices, or activation norms too (contribution), by which masks are best.",
)
@click.option(
    "--shard",
    type=_Shard(),
    metavar="I/N",
    help="Profile the I-th of N parts of the text; merge the N profiles afterwards. Divides long documents too.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(0, 1e9),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between checkpoints (OUTPUT.checkpoint).",
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out documents that cannot be read or tokenised, and print why."
)
@click.option("--resume", is_flag=True, help="Resume from OUTPUT.checkpoint if it exists.")
@click.option(
    "--until-stable",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Stop when the mask of --keep experts is stable: when its agreement with the masks at half and at three "
    "quarters of the text reaches SHARE, such as 0.99. Documents then run in random order.",
)
@click.option("--keep", type=int, help="Experts that the mask for --until-stable keeps; half if not given.")
@method_option
@click.option(
    "--imatrix", type=FILE, help="Importance matrix to write too, from the same run, which then has no checkpoint."
)
@min_tokens_option
@model_options(batch_by_device=True)
@force_option
@json_option
def command(
    model: Path,
    corpora: tuple[Path, ...],
    output: Path,
    reading: Reading,
    stats: str,
    shard: Shard | None,
    checkpoint_every: float,
    resume: bool,
    skip_bad: bool,
    until_stable: float | None,
    keep: int | None,
    method: str | None,
    imatrix: Path | None,
    min_tokens: int,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Run a calibration corpus through MODEL and write which experts its routers chose."""
    from coe_native.corpus.bundles import WHOLE
    from coe_native.files.atomic import check_target
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.model.header import ModelHeader
    from coe_native.profiling.checkpoint import Checkpoint
    from coe_native.profiling.run import DOCUMENTS_AT_ONCE, Progress, check_options, profile_corpora

    moe = ModelHeader(model)
    moe.check_countable()
    inputs = (*moe.paths, *corpora)
    check_target(output, force=force, inputs=inputs)
    checkpoint = Checkpoint(output, every=checkpoint_every, resume=resume, force=force, inputs=inputs)
    taken = (output, checkpoint.path)
    if imatrix is not None and shard is not None:
        raise InputError("importance matrices of shards cannot be added up: run `imatrix` over the whole text")
    summed = _input_watcher(imatrix, min_tokens, taken, resume=resume, force=force, inputs=inputs)
    with_norms = parse_stats(stats) is Stats.CONTRIBUTION
    until = _until(
        until_stable, keep, method or (BEST_METHOD if with_norms else FALLBACK_METHOD), moe.router_shape
    )
    check_options(shard or WHOLE, parse_stats(stats), until)
    read = reading.corpora(corpora, skip_bad=skip_bad)
    say_skipped(read)
    left_out = _LeftOut()
    for corpus in read:
        for reason in corpus.bad:
            left_out.add(reason)
    last = Progress(0, 0, 0.0, is_exact=False)
    with (
        LoadedModel(model, options, n_sequences=DOCUMENTS_AT_ONCE) as loaded,
        token_progress("profiling") as show,
    ):

        def follow(progress: Progress) -> None:
            nonlocal last
            last = progress
            show(progress)

        try:
            profile = profile_corpora(
                loaded,
                read,
                shard=shard or WHOLE,
                stats=stats,
                checkpoint=checkpoint if summed is None else None,
                until=until,
                skip_bad=left_out.add if skip_bad else None,
                inputs=summed,
                progress=follow,
            )
        except BaseException as error:
            if summed is None and checkpoint.path.exists() and not isinstance(error, InputError):
                say(f"{checkpoint.path}: has the counts so far; run the same command with --resume to continue")
            raise
        for reason in sorted(loaded.text.rendered_plainly):
            say(f"some conversations were rendered in a plainer way, because of the chat template ({reason})")
    profile.save(output, force=force)
    if imatrix is not None and summed is not None:
        summed.imatrix.save(imatrix, force=force)
        say_few_tokens(summed, min_tokens)
    checkpoint.remove()
    rate = last.tokens / last.seconds if last.seconds else 0.0
    if until is not None:
        _say_stable(until)
    if as_json:
        facts = _facts(profile, output, stats, shard, until)
        print_json({**facts, "left_out": len(left_out.reasons), "tokens_per_second": round(rate, 1)})
    else:
        _say_profile(profile, output, rate, shard)


class _LeftOut:
    """Documents that were left out, which are printed at once."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def add(self, reason: str) -> None:
        self.reasons.append(reason)
        say(f"left out: {reason}")


def _input_watcher(
    imatrix: Path | None,
    min_tokens: int,
    taken: tuple[Path, ...],
    *,
    resume: bool,
    force: bool,
    inputs: tuple[Path, ...],
) -> InputWatcher | None:
    """Return what makes an importance matrix too, if one is asked for. `taken`: other outputs."""
    from coe_native.files.atomic import check_target
    from coe_native.profiling.imatrix import InputWatcher

    if imatrix is None:
        return None
    if resume:
        raise InputError("a run with --imatrix cannot be resumed: checkpoints have no sums of inputs")
    if imatrix.resolve() in [path.resolve() for path in taken]:
        raise InputError(f"{imatrix}: is the profile or its checkpoint; give the importance matrix another name")
    check_target(imatrix, force=force, inputs=inputs)
    return InputWatcher(min_tokens=min_tokens)


def _say_profile(profile: RoutingProfile, output: Path, rate: float, shard: Shard | None) -> None:
    part = "" if shard is None else f", shard {shard.index} of {shard.count}"
    documents = counted(sum(corpus.documents for corpus in profile.corpora), "document")
    layers = counted(len(profile.layers), "MoE layer")
    say(f"{output}: {profile.n_tokens} tokens of {documents} through {layers}, {rate:,.0f} tokens/s{part}")


def _facts(
    profile: RoutingProfile, output: Path, stats: str, shard: Shard | None, until: Stability | None
) -> dict[str, Any]:
    return {
        "profile": str(output),
        "model": profile.model_name,
        "fingerprint": profile.fingerprint,
        "stats": stats,
        "tokens": profile.n_tokens,
        "shard": None if shard is None else [shard.index, shard.count],
        "documents": sum(corpus.documents for corpus in profile.corpora),
        "moe_layers": len(profile.layers),
        "experts": profile.n_experts,
        "top_k": profile.top_k,
        "stable": None if until is None else until.stable,
        "agreement": [] if until is None else [asdict(agreement) for agreement in until.curve],
    }


def _until(threshold: float | None, keep: int | None, method: str, shape: RouterShape) -> Stability | None:
    """Return the check that may end a run before its text does, or None."""
    from coe_native.masks.options import MaskOptions
    from coe_native.masks.stability import Stability

    if threshold is None:
        if keep is not None:
            raise InputError("--keep needs --until-stable: a profile counts all experts")
        return None
    keep = shape.half if keep is None else keep
    shape.check_keep(keep)
    return Stability(threshold, MaskOptions(keep=keep, method=method).for_profiles([]))


def _say_stable(until: Stability) -> None:
    """Print how the mask has changed, and whether it is stable."""
    if not any(look.half is not None for look in until.curve):
        say("the text is too short to tell whether the mask is stable: that takes about 10,000 tokens")
        return
    shares = ("quarter", "half", "three_quarters")
    rows = [
        [
            f"{look.tokens:,}",
            *("" if (share := getattr(look, name)) is None else f"{share:.3f}" for name in shares),
        ]
        for look in until.curve
    ]
    columns = ["tokens", "a quarter", "half", "three quarters"]
    print_table("agreement of the mask with the masks at parts of the tokens", columns, rows, to_stderr=True)
    if until.stable:
        say(f"the mask is stable: it agrees to {until.threshold:g} or more with those at half and three quarters")
    else:
        say(
            f"the corpus ended before the mask was stable (agreement of {until.threshold:g}): more text of "
            "the same kind would still change it"
        )
