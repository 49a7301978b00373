"""The command ``coe-native report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option, load_profile, method_option, needs_extra
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE
from coe_native.errors import InputError


@click.command(name="report", cls=Command)
@click.argument("profiles", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, help="HTML file to write.")
@click.option("--keep", type=int, help="Experts that the masks of PROFILES keep; half if not given.")
@click.option("--mask", "mask_paths", type=FILE, multiple=True, help="Mask to show instead of these (repeatable).")
@click.option("--sweep", "sweep_path", type=FILE, help="Sweep to show: a file of `sweep -o`.")
@method_option
@force_option
@json_option
def command(
    profiles: tuple[Path, ...],
    output: Path,
    keep: int | None,
    mask_paths: tuple[Path, ...],
    sweep_path: Path | None,
    method: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write an HTML page with charts of PROFILES of one model, their masks and a sweep.

    The page needs no network.
    """
    from coe_native.evaluation.sweep import Sweep
    from coe_native.files.atomic import check_target
    from coe_native.masks.expert_mask import ExpertMask

    if mask_paths and keep is not None:
        raise InputError("--keep builds masks from the profiles, and --mask shows others; give only one of them")
    inputs = (*profiles, *mask_paths, *(() if sweep_path is None else (sweep_path,)))
    check_target(output, force=force, inputs=inputs)
    with needs_extra("report"):
        from coe_native.report.page import report
    loaded = [load_profile(path) for path in profiles]
    report(
        output,
        dict(zip(_names(profiles), loaded, strict=True)),
        keep=loaded[0].router_shape.half if keep is None else keep,
        masks=dict(zip(_names(mask_paths), map(ExpertMask.load, mask_paths), strict=True)),
        sweep=None if sweep_path is None else Sweep.load(sweep_path),
        method=method,
    )
    if as_json:
        print_json({"report": str(output), "bytes": output.stat().st_size})
    else:
        say(f"{output}: open it in a browser")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return names for the files, as short as tells them apart."""
    for names in ([path.name.partition(".")[0] for path in paths], [path.name for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
