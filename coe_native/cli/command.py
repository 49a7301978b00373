"""The class of all commands."""

from __future__ import annotations

from typing import Any

import click


class Command(click.Command):
    """A command that reports a crash of llama.cpp in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; crashes are reported unless --debug is given."""
        from coe_native.llama.crashes import report_crashes

        if not ctx.find_root().params.get("debug"):
            report_crashes("coe-native: ")
        return super().invoke(ctx)
