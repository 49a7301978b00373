"""Convert the demo model to GGUF with llama.cpp's own converter, then quantise it with llama.cpp.

Needs torch, transformers, gguf and llama-cpp-python in one environment, and a llama.cpp source tree: the
one inside llama-cpp-python's source archive (``vendor/llama.cpp``) matches the library that reads the files.

    python convert.py --model model --llama-cpp llama.cpp --out gguf
    python convert.py --model second --llama-cpp llama.cpp --out gguf --name second
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp

FORMATS = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR

# The converter expects GPT-2's kind of tokenizer with a Qwen3 model; ours is of Gemma's kind for every model.
CONVERTER = """
import sys

sys.path.insert(0, sys.argv.pop(1))
from conversion.gemma import Gemma4Model
from conversion.qwen import Qwen3MoeModel
from convert_hf_to_gguf import main

Qwen3MoeModel.set_vocab = Gemma4Model.set_vocab
main()
"""

FAMILIES = {"gemma4_text": "Gemma 4", "qwen3_moe": "Qwen3"}


def model_card(name: str, family: str) -> str:
    """Becomes the `general.*` keys of the GGUF. It goes into a model card rather than into the converter's
    --metadata file because the latter cannot set `general.license`."""
    description = f"A small {family} mixture of experts for trying coe-native, trained on Python, prose and C++."
    card = {
        "name": f"coe-native {name}",
        "basename": f"coe-native-{name}",
        "description": description,
        "license": "mit",
        "language": ["en"],
        "tags": ["mixture-of-experts", "demo"],
    }
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in card.items())
    return f"---\n{lines}---\n"


def prepare(model: Path, name: str, copy: Path) -> None:
    """Copy `model` with all that the converter reads beside it: the checkpoint stays as it was saved."""
    shutil.copytree(model, copy)
    model_type = json.loads((copy / "config.json").read_text(encoding="utf-8"))["model_type"]
    (copy / "README.md").write_text(model_card(name, FAMILIES[model_type]), encoding="utf-8")

    # The converter takes only those tokens for control tokens that tokenizer_config.json names, so the turn
    # tokens would become plain text. Byte tokens it knows by their form.
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    added = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    config["extra_special_tokens"] = [token for token in special if not token.startswith("<0x")]
    path.write_text(json.dumps(config), encoding="utf-8")


def convert(model: Path, name: str, llama_cpp_source: Path, target: Path) -> None:
    """Write the float32 GGUF. A process of its own: the converter is a script that brings its own gguf."""
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / "model"
        prepare(model, name, copy)
        converter = [sys.executable, "-c", CONVERTER, str(llama_cpp_source)]
        command = [*converter, str(copy), "--outtype", "f32", "--outfile", str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama.cpp's converter failed:\n{done.stdout}{done.stderr}")


@llama_cpp.llama_log_callback
def print_errors(level: int, text: bytes, _data: object) -> None:
    """llama.cpp's log without the line that it has for every tensor."""
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


def quantise(source: Path, target: Path, file_type: int) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        raise SystemExit(f"llama.cpp could not quantise {source} to {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory that train.py wrote")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp source tree")
    parser.add_argument("--out", type=Path, required=True, help="directory for the NAME-*.gguf files")
    parser.add_argument("--name", default="demo", help="of the model and its files; default: %(default)s")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    source = arguments.out / f"{arguments.name}-F32.gguf"
    convert(arguments.model, arguments.name, arguments.llama_cpp, source)
    written = [source]
    llama_cpp.llama_log_set(print_errors, None)
    for name, file_type in FORMATS.items():
        written.append(arguments.out / f"{arguments.name}-{name}.gguf")
        quantise(source, written[-1], file_type)
    for path in written:
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
