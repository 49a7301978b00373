"""The class of all commands."""

from __future__ import annotations

from typing import Any

import click


class Command(click.Command):
    """A command whose end is one line, even where llama.cpp crashes."""

    def invoke(self, ctx: click.Context) -> Any:
        from coe_native.llama.crashes import report_crashes

        if not ctx.find_root().params.get("debug"):
            report_crashes("coe-native: ")
        return super().invoke(ctx)
