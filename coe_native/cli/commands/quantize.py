"""The command ``coe-native quantize``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option
from coe_native.cli.output import print_json, say
from coe_native.cli.progress import byte_progress
from coe_native.cli.types import FILE, MODEL, THREADS
from coe_native.errors import InputError
from coe_native.units import gigabytes


class _TensorType(click.ParamType["tuple[str, str]"]):
    """A pattern of tensors' names and a type, written ``PATTERN=TYPE``."""

    name = "tensor type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        pattern, _, kind = str(value).rpartition("=")
        if not pattern or not kind:
            self.fail(f"{value!r} is not a pattern and a type; write it like ffn_down=q6_K", param, ctx)
        return pattern, kind


@click.command(name="quantize", cls=Command)
@click.argument("model", type=MODEL)
@click.option(
    "--type", "file_type", required=True, metavar="TYPE", help="Quantisation: Q4_K_M, IQ3_XXS, Q8_0 and others."
)
@click.option("-o", "--output", type=FILE, help="GGUF file to write.")
@click.option("--imatrix", type=FILE, help="Importance matrix, in llama.cpp's GGUF format.")
@click.option("--dry-run", is_flag=True, help="Only print the size of the file.")
@click.option(
    "--tensor-type",
    "tensor_types",
    type=_TensorType(),
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Type of the tensors whose names match (repeatable).",
)
@click.option("--output-tensor-type", "output_type", metavar="TYPE", help="Type of the output matrix.")
@click.option("--token-embedding-type", "embedding_type", metavar="TYPE", help="Type of the token embeddings.")
@click.option("--leave-output-tensor", "leave_output", is_flag=True, help="Do not quantise the output matrix.")
@click.option("--pure", is_flag=True, help="Give all tensors one type.")
@click.option("--threads", type=THREADS, help="CPU threads; all cores if not given.")
@force_option
@json_option
def command(
    model: Path,
    file_type: str,
    output: Path | None,
    imatrix: Path | None,
    dry_run: bool,
    tensor_types: tuple[tuple[str, str], ...],
    output_type: str | None,
    embedding_type: str | None,
    leave_output: bool,
    pure: bool,
    threads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL in another quantisation, with llama.cpp's quantiser.

    The file is what llama-quantize --allow-requantize writes with the same options.
    """
    from coe_native.llama.quantizer import QuantizeOptions
    from coe_native.surgery.quantize import plan_quantization, quantize

    options = QuantizeOptions(
        file_type=file_type,
        output_type=output_type,
        embedding_type=embedding_type,
        tensor_types=tensor_types,
        leave_output=leave_output,
        pure=pure,
        n_threads=threads or 0,
    )
    if (output is None) != dry_run:
        raise InputError("give either -o FILE to write, or --dry-run for the size alone")
    if output is None:
        planned = plan_quantization(model, options, imatrix=imatrix)
        counts = Counter(planned.types.values())
        if as_json:
            print_json({"bytes": planned.n_bytes, "types": planned.types})
        else:
            kinds = ", ".join(f"{n} {name}" for name, n in counts.most_common())
            say(f"{options.file_type}: {gigabytes(planned.n_bytes)} ({kinds})")
        return
    with byte_progress("quantising") as progress:
        quantize(model, options, output, imatrix=imatrix, force=force, progress=progress)
    n_bytes = output.stat().st_size
    if as_json:
        print_json({"output": str(output), "type": options.file_type, "bytes": n_bytes})
    else:
        say(f"{output}: {gigabytes(n_bytes)}, {options.file_type}")
