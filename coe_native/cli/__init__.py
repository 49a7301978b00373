"""The command line ``coe-native``: thin commands over the library, one file each.

A command's module is imported when the command is called, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import click

from coe_native import __version__
from coe_native.errors import CoeError, printable

COMMANDS = {
    "inspect": "Show a model's experts, and the size of a specialist.",
    "profile": "Run text through a model and count which experts it needs.",
    "merge": "Add up profiles of one model.",
    "score": "Print the experts' scores.",
    "mask": "Choose the experts to keep.",
    "prune": "Write the specialist: a smaller GGUF with the kept experts only.",
    "zero": "Zero the dropped experts' weights, for study.",
    "verify": "Check a written model against its parent and mask.",
    "eval": "Measure perplexity on held-out text, live-masked if you like.",
    "sweep": "Judge live masks of many sizes: how small can it be?",
    "compare": "Show how far two masks overlap, beside chance.",
    "report": "Show profiles, masks and a sweep on a page of pictures.",
    "corpus": "Look at text, and draw samples from it.",
    "humaneval": "Let a model solve programming problems.",
    "modelfile": "Print how to use a model: Modelfile and prefill.",
    "serve": "Serve a model, and count what its users need.",
    "import": "Take over counts and masks of other tools.",
    "specialise": "Profile, mask, prune, verify and evaluate in one go.",
    "demo": "Specialise the model that comes with the package.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(
            f"coe_native.cli.commands.{'import_' if cmd_name == 'import' else cmd_name}"
        )
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _directory(name: str, use: str) -> dict[str, Any]:
    """An option that prints where a part of the C library is installed, for `use` to be set to."""

    def show(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            # The compiled module stands in the same place, wherever Python's files are.
            spec = importlib.util.find_spec("coe_native._core")
            if spec is None or spec.origin is None:
                raise CoeError("the compiled module is not there; build the package: pip install .")
            click.echo(Path(spec.origin).parent / "lib" / name)
            context.exit()

    return {
        "is_flag": True,
        "is_eager": True,
        "expose_value": False,
        "callback": show,
        "help": f"Print what {use} is to be, for programs that use the C library.",
    }


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="coe-native")
@click.option("--cmake-dir", **_directory("cmake/coe_native", "CMake's coe_native_DIR"))
@click.option("--pkg-config-dir", **_directory("pkgconfig", "PKG_CONFIG_PATH"))
@click.option("--debug", is_flag=True, help="Show a traceback where an error is reported.")
def group(debug: bool) -> None:
    """Domain specialists from quantised mixture-of-experts GGUFs.

    Results go to standard output, progress and messages to standard error. Exit status: 0 done, 1 an
    operation failed or a check did not hold, 2 bad usage or bad input.
    """


def main() -> None:
    """Runs the command line; every error ends here, as one line."""
    import os
    import signal
    import sys

    from coe_native.errors import InputError

    # Ends like an error, so that nothing half-written is left behind; 128 and the signal's number is custom.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on, it is reported
        # Not click's own main(): that one swallows the status of a command that exits by itself.
        with group.make_context("coe-native", sys.argv[1:]) as context:
            group.invoke(context)
        sys.stdout.flush()
        status = 0
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _report("interrupted")
        status = 1
    except BrokenPipeError:
        # The reader has gone, as `| head` does: nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except CoeError as error:
        _report(str(error))
        status = 2 if isinstance(error, InputError) else 1
    except MemoryError:
        _report("there is not enough memory for this; close something else, or take a smaller input")
        status = 1
    except (ImportError, OSError) as error:
        _report(str(error) or type(error).__name__)
        status = 1
    except Exception as error:  # a defect of ours: one line for the user, and --debug for the report about it
        _report(f"internal error ({type(error).__name__}: {error}); please report it with the output of --debug")
        status = 1
    sys.exit(status)


def _report(message: str) -> None:
    """An error as one line, whatever is in the names that it quotes; with --debug, how it came about."""
    import sys
    import traceback

    if "--debug" in sys.argv:
        traceback.print_exc()
    click.echo("coe-native: " + printable(message), err=True)
