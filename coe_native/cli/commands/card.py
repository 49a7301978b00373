"""The command ``coe-native card``."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, load_profile
from coe_native.cli.output import say
from coe_native.cli.types import FILE, MODEL


@click.command(name="card", cls=Command)
@click.argument("model", type=MODEL)
@click.option(
    "--runs",
    multiple=True,
    type=FILE,
    help="This model's answers, judged by humaneval, livecodebench or loops (repeatable).",
)
@click.option("--sweep", "sweeps", multiple=True, type=FILE, help="Sweep of the parent, .json (repeatable).")
@click.option(
    "--profile", "profile_path", type=FILE, help="Profile that the mask was made from, for its calibration corpus."
)
@click.option("--base-model", help="The parent's name on Hugging Face; that in MODEL's metadata if not given.")
@click.option("-o", "--output", type=FILE, help="File to write, such as README.md; standard output if not given.")
@force_option
def command(
    model: Path,
    runs: tuple[Path, ...],
    sweeps: tuple[Path, ...],
    profile_path: Path | None,
    base_model: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Write a model card for MODEL in Hugging Face's format, from what its file and result files record.

    It has where the model comes from, its memory, results with intervals, how to run it, and the safety notice.
    Results that are missing are listed as not measured.
    """
    from coe_native.files.atomic import check_target, replacing
    from coe_native.model.header import ModelHeader
    from coe_native.recipes.card import model_card

    given = (*ModelHeader(model).paths, *runs, *sweeps, *(() if profile_path is None else (profile_path,)))
    if output is not None:
        check_target(output, force=force, inputs=given)
    profile = None if profile_path is None else load_profile(profile_path)
    text = model_card(model, runs=runs, sweeps=sweeps, profile=profile, base_model=base_model)
    if output is None:
        click.echo(text, nl=False)
        return
    with replacing(output) as file:
        file.write(text.encode())
    say(f"{output}: check it, and add what only you know")
