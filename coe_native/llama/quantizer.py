"""llama.cpp's quantiser, in a process of its own: it cannot be interrupted, and some errors end the process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coe_native.errors import CoeError, InputError, printable
from coe_native.helper_process import python_line
from coe_native.model.imatrix_file import Imatrix

TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11},
    **{"Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18},
    **{"IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25},
    **{"IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32},
    **{"TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41},
}
"""llama.cpp's file types (llama_ftype) by the names of llama-quantize."""

_NOT_FOR_WEIGHTS = ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")
"""ggml's types that its quantiser cannot write."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_LINE = re.compile(r"\[ *(\d+)/ *(\d+)\] (\S+) +- \[")
_NEW_TYPE = re.compile(r"-> +[\d.]+ MiB \((\w+)\)")

_INTEGER, _TEXT = 0, 3
"""Kinds of values that replace metadata (llama_model_kv_override_type)."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantised, as llama-quantize's options.

    Attributes:
        file_type: One of TYPES: the mix of types by tensor that llama.cpp has under this name.
        output_type: ggml's type of the output matrix, such as ``q6_K``; None: that of the mix.
        embedding_type: The same for the token embeddings.
        tensor_types: Patterns of tensors' names (regular expressions) with ggml types, which come before the mix.
        leave_output: Do not quantise the output matrix.
        pure: Give all tensors the same type.
        requantize: Allow tensors that are quantised already.
        n_threads: CPU threads; 0: all cores.
    """

    file_type: str
    output_type: str | None = None
    embedding_type: str | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()
    leave_output: bool = False
    pure: bool = False
    requantize: bool = True
    n_threads: int = 0

    def __post_init__(self) -> None:
        known = ALIASES.get(self.file_type.upper(), self.file_type.upper())
        if known not in TYPES:
            names = ", ".join(sorted(TYPES))
            raise InputError(f"{self.file_type!r} is not a quantisation type; choose one of {names}")
        object.__setattr__(self, "file_type", known)
        for name in (self.output_type, self.embedding_type, *(name for _, name in self.tensor_types)):
            if name is not None:
                _ggml_type(name)


@dataclass(frozen=True)
class ImatrixFile:
    """A file with an importance matrix.

    Attributes:
        path: The file.
        name: What the quantised model records of it.
    """

    path: Path
    name: str

    def load(self) -> Imatrix:
        """Read it.

        Raises:
            InputError: It is something else, or is damaged.
        """
        return Imatrix.load(self.path)


def quantize_file(
    source: Path,
    target: Path,
    options: QuantizeOptions,
    imatrix: ImatrixFile | None,
    progress: Callable[[int, int], None],
    *,
    dry_run: bool = False,
) -> dict[str, str]:
    """Quantise a file with llama.cpp.

    Args:
        source: The model.
        target: The file to write, which exists.
        options: How it is quantised.
        imatrix: An importance matrix; None: none.
        progress: Called with tensors done and tensors in all.
        dry_run: Write nothing.

    Returns:
        ggml's new type of each tensor whose type changes, in lower case, by its name. Only with `dry_run`.

    Raises:
        CoeError: llama.cpp fails; names the reason.
    """
    request = {
        "source": os.fspath(source),
        "target": os.fspath(target),
        "imatrix": None if imatrix is None else {"path": os.fspath(imatrix.path), "name": imatrix.name},
        "dry_run": dry_run,
        "options": asdict(options),
    }
    types: dict[str, str] = {}
    with _running() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # the process has ended; its answer is missing
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                reason = printable(said["error"])
                if reason.endswith("requires an imatrix!"):
                    reason = f"{reason.removesuffix('!')}; give one with --imatrix"
                raise CoeError(f"{source}: llama.cpp cannot quantise it: {reason}")
            if said.get("done"):
                return types
            progress(said["number"], said["of"])
            if "type" in said:
                types[said["name"]] = said["type"]
    raise CoeError(f"{source}: llama.cpp crashed while it quantised the model")


@contextlib.contextmanager
def _running() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        python_line("from coe_native.llama.quantizer import serve; serve()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C reaches this process only, which ends the other
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def serve() -> None:
    """Quantise what standard input asks for. Runs in the process of its own."""
    import llama_cpp

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    request = json.loads(input())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    reader = _LogReader(say)
    log = llama_cpp.llama_log_callback(lambda level, text, _: reader.read(level, text))
    llama_cpp.llama_log_set(log, None)
    held = _Held(request)
    source, target = os.fsencode(request["source"]), os.fsencode(request["target"])
    if llama_cpp.llama_model_quantize(source, target, ctypes.byref(held.params)):
        say(error=reader.error or "for an unknown reason")
    else:
        reader.end()
        say(done=True)


def _end_with_parent() -> None:
    """End this process once the one that asked has ended, even if it was killed."""
    sys.stdin.read()
    os._exit(1)


class _LogReader:
    """Reads llama.cpp's log: a line for each tensor, and errors."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._line = ""
        self.error = ""

    def read(self, level: int, text: bytes) -> None:
        """Take the next piece of the log."""
        piece = text.decode("utf-8", "replace")
        if level == _LOG_ERROR:
            self.error = piece.strip().removeprefix("llama_model_quantize: failed to quantize: ")
        if _LINE.match(piece):
            self._line = piece
        elif self._line:
            self._line += piece
        if self._line.endswith("\n"):
            self.end()

    def end(self) -> None:
        """Report the tensor of the last line."""
        found = _LINE.match(self._line)
        if found is not None:
            new = _NEW_TYPE.search(self._line)
            changed = {"type": new[1].lower()} if new else {}
            self._say(number=int(found[1]), of=int(found[2]), name=found[3], **changed)
        self._line = ""


_LOG_ERROR = 4


class _Held:
    """The parameters of the quantiser, and everything that they point to."""

    def __init__(self, request: dict[str, Any]) -> None:
        import llama_cpp

        options = request["options"]
        self.params = llama_cpp.llama_model_quantize_default_params()
        self.params.ftype = TYPES[options["file_type"]]
        self.params.nthread = options["n_threads"]
        self.params.allow_requantize = options["requantize"]
        self.params.quantize_output_tensor = not options["leave_output"]
        self.params.pure = options["pure"]
        self.params.dry_run = request["dry_run"]
        for field, name in (("output_tensor_type", "output_type"), ("token_embedding_type", "embedding_type")):
            if options[name] is not None:
                setattr(self.params, field, _ggml_type(options[name]))
        self._overrides: list[Any] = []
        if options["tensor_types"]:
            self._overrides = [
                llama_cpp.llama_model_tensor_override(os.fsencode(pattern), _ggml_type(name))
                for pattern, name in options["tensor_types"]
            ]
            self.params.tt_overrides = _array(llama_cpp.llama_model_tensor_override, self._overrides)
        if request["imatrix"] is not None:
            self._take(ImatrixFile(Path(request["imatrix"]["path"]), request["imatrix"]["name"]))

    def _take(self, file: ImatrixFile) -> None:
        """Take an importance matrix, and the metadata about it that llama-quantize writes."""
        import llama_cpp

        entries_by_name = file.load().entries.items()
        self._values = {name.encode(): np.ascontiguousarray(entry.weights) for name, entry in entries_by_name}
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [
            llama_cpp.llama_model_imatrix_data(name, values.ctypes.data_as(pointer), values.size)
            for name, values in self._values.items()
        ]
        self.params.imatrix = self._imatrix = _array(llama_cpp.llama_model_imatrix_data, entries)
        facts = [_override(key, value) for key, value in imatrix_metadata(file).items()]
        self.params.kv_overrides = self._facts = _array(llama_cpp.llama_model_kv_override, facts)


def imatrix_metadata(file: ImatrixFile) -> dict[str, int | str]:
    """Return what llama-quantize records about an importance matrix. Texts have at most 127 bytes."""
    imatrix = file.load()
    facts: dict[str, int | str] = {"file": file.name}
    if imatrix.datasets:
        facts["dataset"] = imatrix.datasets[0]
    facts["entries_count"] = len(imatrix.entries)
    if imatrix.n_chunks > 0:
        facts["chunks_count"] = imatrix.n_chunks
    for key, value in facts.items():
        if isinstance(value, str):
            facts[key] = os.fsencode(value)[:127].decode("utf-8", "replace")
    return {f"quantize.imatrix.{key}": value for key, value in facts.items()}


def _array(kind: Any, values: list[Any]) -> Any:
    """Return a C array that ends with an element of zeros."""
    return (kind * (len(values) + 1))(*values)


def _override(key: str, value: int | str) -> Any:
    import llama_cpp

    made = llama_cpp.llama_model_kv_override()
    made.key = key.encode()
    if isinstance(value, int):
        made.tag, made.value.val_i64 = _INTEGER, value
    else:
        made.tag, made.value.val_str = _TEXT, os.fsencode(value)[:127]
    return made


def _ggml_type(name: str) -> int:
    """Return the number of a ggml type.

    Raises:
        InputError: ggml has no type of this name.
    """
    from gguf import GGMLQuantizationType

    if name.upper() in _NOT_FOR_WEIGHTS:
        raise InputError(f"{name!r} is not a type for weights; write one like q4_K or f16")
    try:
        return int(GGMLQuantizationType[name.upper()])
    except KeyError as error:
        raise InputError(f"{name!r} is not a tensor type; write it like q4_K or f16") from error
