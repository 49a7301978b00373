"""The command ``coe-native merge``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option, load_profile
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE


@click.command(name="merge", cls=Command)
@click.argument("profiles", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="Profile file to write.")
@click.option(
    "--stats",
    type=click.Choice(["routing"]),
    help="Leave out activation norms (profile --stats contribution), which some PROFILES may lack.",
)
@force_option
@json_option
def command(profiles: tuple[Path, ...], output: Path, stats: str | None, force: bool, as_json: bool) -> None:
    """Add up PROFILES of one model, as if all their text had been profiled at once.

    Merging all shards of a run (profile --shard) gives the same profile as one run over all documents.
    """
    from coe_native.files.atomic import check_target
    from coe_native.routing.profile import merge

    check_target(output, force=force, inputs=profiles)
    loaded = (load_profile(path) for path in profiles)
    merged = merge(replace(profile, outputs=None) if stats == "routing" else profile for profile in loaded)
    merged.save(output, force=force)
    missing = {record.name: record.missing for record in merged.corpora if record.missing}
    if as_json:
        print_json(
            {
                "profile": str(output),
                "profiles": len(profiles),
                "tokens": merged.n_tokens,
                "missing_shards": missing,
            }
        )
        return
    say(f"{output}: {merged.n_tokens} tokens of {len(profiles)} profiles")
    for name, shards in missing.items():
        say(f"{name}: shards missing: {', '.join(map(str, shards))}; merge their profiles too")
