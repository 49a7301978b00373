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
    "profile": "Run a calibration corpus through a model and count which experts it needs.",
    "merge": "Add up profiles of one model.",
    "score": "Print the experts' scores.",
    "mask": "Choose the experts to keep.",
    "prune": "Write the specialist: a smaller GGUF with the kept experts only.",
    "imatrix": "Write an importance matrix of a kind of text, for quantize.",
    "quantize": "Write a model in another quantisation, with llama.cpp's quantiser.",
    "zero": "Zero the dropped experts' weights, for study.",
    "verify": "Check a written model against its parent and mask.",
    "eval": "Measure perplexity on held-out text, with or without a live mask.",
    "sweep": "Evaluate live masks of many sizes and quantisations, to find the smallest good one.",
    "compare": "Show how far two masks overlap, compared with chance.",
    "report": "Write an HTML page with charts of profiles, masks and a sweep.",
    "corpus": "Show statistics of text, and draw samples from it.",
    "humaneval": "Evaluate a model on Python functions (pass@1): HumanEval, MBPP, MultiPL-E.",
    "livecodebench": "Evaluate a model on LiveCodeBench's problems (pass@1 by difficulty).",
    "loops": "Measure how many of a model's answers loop or never end.",
    "compare-runs": "Compare two runs of those, task by task.",
    "card": "Write a model card in Hugging Face's format.",
    "modelfile": "Print an Ollama Modelfile and the prefill for raw APIs.",
    "serve": "Serve a model, and count which experts its requests need.",
    "export": "Write a mask as the list of experts that vLLM-Ascend keeps.",
    "import": "Import counts and masks of other tools.",
    "specialise": "Profile, mask, prune, verify and evaluate in one step, or find what loses least.",
    "demo": "Make specialists of the model that comes with the package.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        name = "import_" if cmd_name == "import" else cmd_name.replace("-", "_")
        module = importlib.import_module(f"coe_native.cli.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _directory(name: str, variable: str) -> dict[str, Any]:
    """Return the settings of an option that prints where a part of the C library is installed."""

    def show(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            # Beside the compiled module, which may be elsewhere than Python's files.
            spec = importlib.util.find_spec("coe_native._core")
            if spec is None or spec.origin is None:
                raise CoeError("the compiled module coe_native._core is missing; build the package: pip install .")
            click.echo(Path(spec.origin).parent / "lib" / name)
            context.exit()

    return {
        "is_flag": True,
        "is_eager": True,
        "expose_value": False,
        "callback": show,
        "help": f"Print the directory for {variable}, for programs that use the C library.",
    }


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the version. With --json, also the environment: what a bug report needs."""
    if not wanted:
        return
    if context.params.get("as_json"):
        from coe_native.cli.output import print_json

        print_json(_environment())
    else:
        click.echo(f"coe-native, version {__version__}")
    context.exit()


def _environment() -> dict[str, Any]:
    import platform

    facts = {"coe_native": __version__, "python": platform.python_version(), "platform": platform.platform()}
    try:
        from coe_native.llama.versions import describe_llama_cpp
    except (ImportError, OSError) as error:
        return facts | {"error": printable(str(error))}
    return facts | describe_llama_cpp()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit; with --json, also versions of what it uses, and devices.",
)
@click.option("--json", "as_json", is_flag=True, is_eager=True, hidden=True)  # before --version
@click.option("--cmake-dir", **_directory("cmake/coe_native", "CMake's coe_native_DIR"))
@click.option("--pkg-config-dir", **_directory("pkgconfig", "PKG_CONFIG_PATH"))
@click.option("--debug", is_flag=True, help="Show a traceback with each error.")
def group(debug: bool, as_json: bool) -> None:  # noqa: ARG001
    """Make domain specialists from quantised mixture-of-experts GGUFs.

    Results go to standard output, progress and messages to standard error. Exit status: 0 success, 1 an
    operation or a check failed, 2 bad usage or bad input.
    """
    if as_json:
        raise click.UsageError("--json belongs after the command, or with --version")


def main() -> None:
    """Run the command line, and report every error in one line."""
    import os
    import signal
    import sys

    from coe_native.errors import InputError

    # Exit as after an error, so that half-written files are removed. The status is the customary one.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    completion = os.environ.get("_COE_NATIVE_COMPLETE")
    if completion:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(group, {}, "coe-native", "_COE_NATIVE_COMPLETE", completion))
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # reported from here on
        # click's own main() would lose the status of a command that exits by itself.
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
        # The reader has closed the pipe, as `| head` does: this is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except CoeError as error:
        _report(str(error))
        status = 2 if isinstance(error, InputError) else 1
    except MemoryError:
        _report("out of memory; close other programs, or use a smaller input")
        status = 1
    except (ImportError, OSError) as error:
        _report(str(error) or type(error).__name__)
        status = 1
    except Exception as error:  # our own defect: one line for the user; --debug shows the rest
        _report(f"internal error ({type(error).__name__}: {error}); please report it with the output of --debug")
        status = 1
    sys.exit(status)


def _report(message: str) -> None:
    """Print an error in one line; with --debug, print its traceback first."""
    import sys
    import traceback

    if "--debug" in sys.argv:
        traceback.print_exc()
    click.echo("coe-native: " + printable(message), err=True)
