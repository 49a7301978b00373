"""The command ``coe-native verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import json_option
from coe_native.cli.output import print_json
from coe_native.cli.progress import byte_progress
from coe_native.cli.types import FILE, MODEL


@click.command(name="verify", cls=Command)
@click.argument("written", type=FILE)
@click.option("--parent", type=MODEL, required=True, help="Model that WRITTEN was made from.")
@click.option("--mask", "mask_path", type=FILE, help="Mask file; none for a model that was only requantised.")
@json_option
def command(written: Path, parent: Path, mask_path: Path | None, as_json: bool) -> None:
    """Check WRITTEN, a pruned, zeroed or requantised model, against its parent and mask.

    Bytes and norms are compared, and llama.cpp must be able to run the model. Of requantised tensors, the
    difference from the parent's values must be rounding.
    """
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.surgery.verify import verify

    with byte_progress("verifying") as progress:
        mask = None if mask_path is None else ExpertMask.load(mask_path)
        checks = verify(written, parent, mask, progress=progress)
    passed = all(check.passed for check in checks)
    if as_json:
        print_json({"model": str(written), "passed": passed, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{'ok    ' if check.passed else 'FAILED'}  {check.name:<{width}}  {check.detail}")
    if not passed:
        raise click.exceptions.Exit(1)
