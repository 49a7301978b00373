"""The command ``coe-native serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option, model_options, needs_extra
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE, MODEL
from coe_native.errors import InputError
from coe_native.routing.scores import BEST_METHOD, FALLBACK_METHOD, METHODS, needs_outputs
from coe_native.routing.stats import STATS, Stats, parse_stats

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions


@click.command(name="serve", cls=Command)
@click.argument("model", type=MODEL)
@click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    help="Profile file to write; those of prompts and of generated tokens are written beside it.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 for any free one."
)
@click.option(
    "--api-key",
    envvar="COE_NATIVE_API_KEY",
    metavar="KEY",
    help="Key that clients must send as `Authorization: Bearer KEY`. Required unless the address is local; `auto` "
    "prints a random one. COE_NATIVE_API_KEY sets it too, and does not appear in process lists. Without a key, "
    "every user of this machine can read the counts and apply masks.",
)
@click.option(
    "--uds",
    type=FILE,
    help="Listen on a Unix socket at this path instead of --host and --port. Only you can use it.",
)
@click.option(
    "--save-every",
    type=click.FloatRange(0.1, 1e9),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between saves. Profiles are also saved at the end.",
)
@click.option("--resume", is_flag=True, help="Continue the counts of an earlier run's files.")
@click.option(
    "--mask", "mask_path", type=FILE, help="Live mask to start with: the model answers as the specialist would."
)
@click.option("--keep", type=int, help="Experts of the mask whose stability is shown; half if not given.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How experts are scored for that mask; by utility if not given, or by contribution with its --stats.",
)
@click.option(
    "--stats",
    type=click.Choice(STATS),
    default=Stats.ROUTING.value,
    show_default=True,
    help="What to count: the routers' choices, or activation norms too (contribution), by which masks are best.",
)
@click.option(
    "--stable",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    metavar="SHARE",
    help="Agreement with the masks at half and at three quarters of the tokens that makes the mask stable.",
)
@click.option(
    "--logits-all",
    is_flag=True,
    help="Compute logits of every prompt token: for clients that ask for the log-probabilities of answers, and to "
    "count all prompt tokens in the last layer. Slower, and needs memory for context times vocabulary. Scores of "
    "prompts (echo with logprobs) do without.",
)
@model_options(ctx=4096, rpc=False)
@force_option
@json_option
def command(
    model: Path,
    output: Path,
    host: str,
    port: int,
    api_key: str | None,
    uds: Path | None,
    save_every: float,
    resume: bool,
    mask_path: Path | None,
    keep: int | None,
    method: str | None,
    stats: str,
    stable: float,
    logits_all: bool,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Serve MODEL through an OpenAI-compatible API, and count which experts prompts and answers need.

    GET /routing returns the counts, POST /routing/save writes the profiles, and POST /routing/mask applies
    the mask in its body, or removes the mask if the body is empty. No text is stored.
    """
    from coe_native.files.atomic import check_target
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.masks.options import MaskOptions
    from coe_native.model.header import ModelHeader

    with needs_extra("serve"):
        from coe_native.live.address import Address, new_key
        from coe_native.live.routing_server import serve
        from coe_native.live.routing_state import LiveRouting
    from coe_native.masks.stability import Stability

    moe = ModelHeader(model)
    if resume and force:
        raise InputError("--resume continues existing files and --force overwrites them; give only one of them")
    for path in LiveRouting.paths(output):
        check_target(path, force=force or resume, inputs=moe.paths)
    if api_key == "auto":
        api_key = new_key()
        say(f"API key: {api_key}")
    with_norms = parse_stats(stats) is Stats.CONTRIBUTION
    method = method or (BEST_METHOD if with_norms else FALLBACK_METHOD)
    if needs_outputs(method) and not with_norms:
        raise InputError(f"{method} scores by activation norms: count them too (--stats contribution)")
    keep = moe.router_shape.half if keep is None else keep
    moe.router_shape.check_keep(keep)
    saved = serve(
        model,
        output,
        address=Address(host, port, api_key, uds),
        options=options,
        stability=Stability(stable, MaskOptions(keep=keep, method=method)),
        stats=stats,
        mask=None if mask_path is None else ExpertMask.load(mask_path),
        logits_all=logits_all,
        save_every=save_every,
        resume=resume,
        say=say,
    )
    if as_json:
        print_json({"saved": [str(path) for path in saved]})
    elif saved:
        say(f"saved: {', '.join(map(str, saved))}")
    else:
        say("no tokens were counted, so nothing was saved")
