"""The command ``coe-native modelfile``."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE, MODEL


@click.command(name="modelfile", cls=Command)
@click.argument("model", type=MODEL)
@click.option(
    "--domain", default="general", show_default=True, help="Domain of the system prompt: code, python, maths, …"
)
@click.option("--system", help="System prompt to use instead.")
@click.option("-o", "--output", type=FILE, help="File to write; standard output if not given.")
@force_option
@json_option
def command(model: Path, domain: str, system: str | None, output: Path | None, force: bool, as_json: bool) -> None:
    """Print the Ollama Modelfile for MODEL, with parameters, a system prompt and the prefill for raw APIs.

    The sampling parameters are those in the file, or the published ones. The prefill is how the model's own chat
    template begins an answer with the thinking block closed.
    """
    from coe_native.files.atomic import check_target, replacing
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.recipes.modelfile import usage

    if output is not None:
        check_target(output, force=force, inputs=(model,))
    with LoadedModel(model, n_ctx=32, n_batch=32, tokenizer_only=True) as loaded:
        how = usage(loaded, domain=domain, system=system)
    if output is not None:
        with replacing(output) as file:
            file.write(how.modelfile().encode())
    if as_json:
        fields = {"modelfile": how.modelfile(), "parameters": how.parameters, "system": how.system}
        print_json({**fields, "prefill": how.prefill or None, "think": bool(how.open_block)})
    elif output is None:
        click.echo(how.modelfile(), nl=False)
    else:
        say(f"{output}: ollama create NAME -f {output}")
    if how.open_block:
        say(f"The chat template opens a block of thinking that cannot be closed here: {how.open_block}")
    elif not how.prefill and not as_json:
        say("The model has no chat template, so there is no prefill for raw APIs.")
