"""A directory of good and bad files of every kind."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter

import coe_native as coe
from support.random_models import split_model, write_random_model

SMALL: dict[str, Any] = {"n_layers": 2, "n_experts": 8, "top_k": 2, "n_embd": 64, "n_ff_expert": 32}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
"""A vocabulary by the byte, so that a text has as many tokens as bytes, and one for BOS."""


CHAT = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"


def byte_tokenizer(template: str = CHAT) -> dict[str, Any]:
    """The metadata of a tokenizer with PIECES, and of a chat template."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [0.0] * len(PIECES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": template,
    }


def write_reader(path: Path, template: str = CHAT) -> None:
    """A model with a tokenizer and a chat template."""
    write_random_model(path, "qwen3moe", n_vocab=len(PIECES), extra_metadata=byte_tokenizer(template), **SMALL)


BAD_MASKS: dict[str, tuple[dict[str, Any], str]] = {
    "newer": ({"version": 2}, r"\b2\b"),
    "foreign": ({"format": "something else"}, "mask"),
    "keyless": ({"layers": None}, "missing|layers"),
    "twice": ({"layers": {"0": [1, 1, 2, 3], "1": [0, 1, 2, 3]}}, "block 0"),
    "beyond": ({"layers": {"0": [0, 1, 2, 3], "1": [0, 1, 2, 8]}}, r"\b7\b"),
    "starved": ({"keep": 1, "layers": {"0": [0], "1": [0]}}, r"\b2\b"),
    "wide": ({"expert_count": 2**31}, "expert_count"),
    "terminal": ({"architecture": "\x1b[2J\r"}, r"\\x1b\[2J\\r"),
}
"""What differs from a good mask (None: is missing), and the pattern of the message."""

BAD_TEXTS: dict[str, tuple[str, str]] = {
    "empty.txt": ("", r"empty\.txt"),
    "broken.jsonl": ('{"tokens": [1, 2]}\n{"tokens": [1,\n', r"broken\.jsonl:2\b"),
    "columnless.jsonl": ('{"body": "text"}\n', r"columnless\.jsonl:1\b.*--field.*body"),
    "outside.jsonl": ('{"tokens": [1]}\n{"tokens": [256]}\n', r"outside\.jsonl:2\b.*256"),
    "huge.jsonl": (json.dumps({"tokens": [1 + 2**31]}), r"huge\.jsonl:1\b"),
    "counted.jsonl": ('{"tokens": 5}\n', r"counted\.jsonl:1\b"),
}
"""Corpora that no model can read, and the pattern of the message."""


class _Trap:
    """Unpickling it makes a directory, which the listing of `directory` would show."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def _write_arrays(directory: Path) -> None:
    """Corpora of token ids, of which only tokens.npy and short.npy are any good."""
    tokens = np.random.default_rng(3).integers(0, 256, (2, 64), dtype=np.int32)
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "short": tokens[0, :2],
        "floats": np.ones(4, np.float32),
        "pickled": np.array([_Trap()], dtype=object),
    }
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array, allow_pickle=True)
    good = (directory / "tokens.npy").read_bytes()
    damaged = {
        "cut": good[:-4],
        "header": good.replace(b"(2, 64)", b"((((((("),
        "shape": good.replace(b"(2, 64)", b"(2,-64)"),
        "zip": b"PK\x03\x04 and no more",
        # More rows, and more tokens, than any memory has.
        "rows": good.replace(b"(2, 64), }" + 10 * b" ", b"(999999999999, 0), }"),
        "claim": good.replace(b"(2, 64), }" + 10 * b" ", b"(999999999999, 9), }"),
    }
    assert len({len(good), len(damaged["rows"]), len(damaged["claim"])}) == 1
    assert good not in damaged.values()
    for name, data in damaged.items():
        (directory / f"{name}.npy").write_bytes(data)


def _write_models(directory: Path) -> None:
    """Models, of which parent, other, gemma and few are good, and damaged ones."""
    write_random_model(directory / "parent.gguf", "qwen3moe", **SMALL)
    write_random_model(directory / "other.gguf", "qwen3moe", seed=1, **SMALL)
    write_random_model(directory / "gemma.gguf", "gemma4", **SMALL)
    write_random_model(directory / "few.gguf", "qwen3moe", n_vocab=128, **SMALL)
    odd: dict[str, dict[str, Any]] = {
        "uneven": {"qwen3moe.expert_count": 4},
        "greedy": {"qwen3moe.expert_used_count": 9},
        "gating": {"qwen3moe.expert_gating_func": [1, 2]},
        "heads": {"qwen3moe.attention.head_count": [4]},
        "typed": {"general.name": 7},
        "blocks": {"qwen3moe.block_count": 2**32 - 1},
        "blockless": {"qwen3moe.block_count": 0},
    }
    for name, metadata in odd.items():
        write_random_model(directory / f"{name}.gguf", "qwen3moe", extra_metadata=metadata, **SMALL)
    write_reader(directory / "reader.gguf")
    write_reader(directory / "template.gguf", "{% if")
    key = b"tokenizer.ggml.model" + struct.pack("<IQ", 8, 5)
    reader = (directory / "reader.gguf").read_bytes()
    assert key + b"llama" in reader
    (directory / "garbled.gguf").write_bytes(reader.replace(key + b"llama", key + b"\xff\x1b[2J"))
    split_model(directory / "parent.gguf", directory, 2)
    split_model(directory / "other.gguf", directory, 2)[1].unlink()
    writer = GGUFWriter(directory / "dense.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    good = (directory / "parent.gguf").read_bytes()
    for name, length in {"magic": 3, "entries": 300, "tensors": 1500, "data": len(good) // 2}.items():
        (directory / f"cut-{name}.gguf").write_bytes(good[:length])
    (directory / "cut-end.gguf").write_bytes(good[:-1])
    _spoil(directory / "parent.gguf", "blk.1.ffn_up_exps.weight", directory / "nan.gguf", nan=True)


def _offset(path: Path, tensor: str) -> int:
    return next(int(t.data_offset) for t in GGUFReader(path).tensors if t.name == tensor)


def _spoil(path: Path, tensor: str, out: Path, *, nan: bool = False) -> None:
    """A copy with one wrong bit in the first number of a tensor, or with NaN in all experts of a block."""
    data = bytearray(path.read_bytes())
    at = _offset(path, tensor)
    if nan:
        n_bytes = next(t.n_bytes for t in GGUFReader(path).tensors if t.name == tensor)
        data[at : at + n_bytes] = np.full(n_bytes // 4, np.nan, np.float32).tobytes()
    else:
        data[at] ^= 1
    out.write_bytes(data)


def _write_profiles_and_masks(directory: Path) -> None:
    tokens = np.load(directory / "tokens.npy").tolist()
    for name, prefix in (("parent", ""), ("other", "other-"), ("gemma", "gemma-")):
        profile = coe.profile(directory / f"{name}.gguf", tokens, n_ctx=64, n_batch=64, n_threads=1)
        profile.save(directory / f"{prefix}profile.gguf")
        coe.build_mask(profile, 4).save(directory / f"{prefix}mask.json")
    good = (directory / "profile.gguf").read_bytes()
    version = b"coe.profile.version" + struct.pack("<I", 4)
    counted = b"coe.profile.tokens" + struct.pack("<I", 10)
    (directory / "newer.gguf").write_bytes(
        good.replace(version + struct.pack("<I", 1), version + struct.pack("<I", 4))
    )
    (directory / "miscounted.gguf").write_bytes(
        good.replace(counted + struct.pack("<Q", 128), counted + struct.pack("<Q", 129))
    )
    (directory / "cut-profile.gguf").write_bytes(good[:-1])
    document = json.loads((directory / "mask.json").read_text())
    for name, (changes, _) in BAD_MASKS.items():
        changed = {key: value for key, value in {**document, **changes}.items() if value is not None}
        (directory / f"{name}.json").write_text(json.dumps(changed))
    document["layers"] = {b: sorted(set(range(8)) - set(kept)) for b, kept in document["layers"].items()}
    (directory / "rest.json").write_text(json.dumps(document))
    (directory / "cut.json").write_text(json.dumps(document)[:200])


def _write_specialists(directory: Path) -> None:
    mask = coe.ExpertMask.load(directory / "mask.json")
    pruned = coe.prune(directory / "parent.gguf", mask, directory / "pruned.gguf")
    for name, tensor in (("expert", "ffn_up_exps"), ("attention", "attn_q"), ("router", "ffn_gate_inp")):
        _spoil(pruned, f"blk.1.{tensor}.weight", directory / f"flipped-{name}.gguf")
    _spoil(pruned, "blk.1.ffn_up_exps.weight", directory / "flipped-nan.gguf", nan=True)
    data = pruned.read_bytes()
    (directory / "cut-pruned.gguf").write_bytes(data[: len(data) // 2])
    coe.zero(directory / "parent.gguf", mask, directory / "zeroed.gguf")
    digest = mask.digest.encode()
    (directory / "flipped-digest.gguf").write_bytes(data.replace(digest, digest[::-1]))


def write_files(directory: Path) -> None:
    """Write good and bad files of every kind. The numbered copies are for commands that would destroy them."""
    _write_models(directory)
    _write_arrays(directory)
    _write_profiles_and_masks(directory)
    _write_specialists(directory)
    for name, (content, _) in BAD_TEXTS.items():
        (directory / name).write_text(content)
    (directory / "words.txt").write_text("Not a model, and not for one without a tokenizer.")
    (directory / "latin1.txt").write_bytes("déjà vu".encode("latin-1"))
    (directory / "surrogate.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud800"}\n')
    (directory / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    (directory / "empty.gguf").write_bytes(b"")
    (directory / "precious.gguf").write_text("not to be overwritten")
    (directory / "link.gguf").symlink_to("parent.gguf")
    (directory / "folder").mkdir()
    (directory / "corpus").mkdir()
    for i in (1, 2):
        shutil.copy(directory / "mask.json", directory / f"mask{i}.json")
        shutil.copy(directory / "profile.gguf", directory / f"profile{i}.gguf")
        shutil.copy(directory / "tokens.npy", directory / f"tokens{i}.npy")
    shutil.copy(directory / "tokens.npy", directory / "corpus" / "tokens.npy")
