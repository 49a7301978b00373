"""Changes good files into bad ones: any bytes of any file, and, by what a kind of file is made of, single numbers,
types, lengths and texts, so that what follows them is still read."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from coe_native._native import core

MOST_BYTES = 1 << 20

_EDGES = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63,
    2**64 - 1,
)
_JSON_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        8,
        2**31,
        2**63,
        2**64,
        10**400,
        -(2**63) - 1,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "x",
        "\ud800",
        "\x1b[2J\r\n",
        "x" * 300,
        [],
        {},
        [[]],
        {"a": 1},
        [1, 2, 3],
        "0",
        "../../etc/passwd",
        [0] * 300,
    ),
)
_NPY_HEADERS = (
    *(
        "'<i4'",
        "'<i8'",
        "'>i4'",
        "'<u8'",
        "'|u1'",
        "'<f4'",
        "'|O'",
        "'<c16'",
        "'|S5'",
        "'|V0'",
        "'<U0'",
        "'<m8'",
        "True",
    ),
    *(
        "(2, 3)",
        "()",
        "(0,)",
        "(1099511627776, 0)",
        "(-1,)",
        "(2, -3)",
        "(9223372036854775807,)",
        "(1, 1, 1)",
        "(2.5,)",
    ),
    *("None", "{}", "[('a', '<i4')]", "__import__('os')", "(" * 200, "9" * 5000),
)

Change = Callable[[bytes], bytes]


class Mutator:
    """The same seed gives the same changes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def change(self, seeds: Sequence[bytes], kind: str) -> bytes:
        """A changed copy of one of the seeds, of kind `gguf`, `json`, `jsonl` or `npy`; others are only bytes."""
        data = self.random.choice(seeds)
        by_kind: dict[str, Change] = {
            "gguf": self._gguf,
            "json": self._json,
            "jsonl": self._jsonl,
            "npy": self._npy,
        }
        if kind in by_kind and self.random.random() < 0.8:
            for _ in range(self.random.choice((1, 1, 1, 2, 3))):
                data = by_kind[kind](data)
        if kind not in by_kind or self.random.random() < 0.3:
            data = self._bytes(data, self.random.choice(seeds))
        return data[:MOST_BYTES]

    def _bytes(self, data: bytes, other: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            at = self.random.randint(0, len(changed))
            match self.random.randrange(7):
                case 0:
                    del changed[at:]
                case 1:
                    changed[at:at] = self.random.randbytes(self.random.randint(1, 8))
                case 2:
                    changed[at:at] = other[: self.random.randint(0, len(other))]
                case 3:
                    del changed[at : at + self.random.randint(0, 64)]
                case _:
                    number = self._number(self.random.choice((1, 2, 4, 8)))
                    changed[at : at + len(number)] = number[: len(changed) - at]
        return bytes(changed)

    def _number(self, n_bytes: int) -> bytes:
        value = self.random.choice(_EDGES) if self.random.random() < 0.7 else self.random.getrandbits(64)
        return (value % 256**n_bytes).to_bytes(n_bytes, "little")

    def _gguf(self, data: bytes) -> bytes:
        """One field of the header, as long as it is still one."""
        try:
            header = core.GgufFile(b"", data, 2**50).header
        except core.GgufError:
            return data
        fields = list(self._gguf_fields(data, header))
        at, n_bytes = self.random.choice(fields)
        return data[:at] + self._number(n_bytes) + data[at + n_bytes :]

    @staticmethod
    def _gguf_fields(data: bytes, header: Any) -> Iterator[tuple[int, int]]:
        """Place and length of each number, and of each text's first byte and length."""
        yield from ((4, 4), (8, 8), (16, 8))
        for entry in header.entries:
            yield from ((entry.begin, 8), (entry.begin + 8, 1))
            type_at = entry.begin + 8 + len(entry.key)
            yield (type_at, 4)
            if entry.value > type_at + 4:
                yield from ((type_at + 4, 4), (entry.value - 8, 8))
            if entry.end > entry.value:
                size = max(1, (entry.end - entry.value) // max(1, entry.count))
                yield (entry.value, size if size in (1, 2, 4, 8) else 8)
                if data[entry.value : entry.end].isascii():
                    yield (entry.end - 1, 1)
        at = max((entry.end for entry in header.entries), default=24)
        for tensor in header.tensors:
            shape_at = at + 8 + len(tensor.name)
            type_at = shape_at + 4 + 8 * len(tensor.shape)
            yield from ((at, 8), (at + 8, 1), (shape_at, 4), (type_at, 4), (type_at + 4, 8))
            for place in range(shape_at + 4, type_at, 8):
                yield (place, 8)
            at = type_at + 12

    def _json(self, data: bytes) -> bytes:
        """One value somewhere in a document, or its key."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return data
        places = list(_places(document))
        if not places:
            return json.dumps(self.random.choice(_JSON_VALUES)).encode()
        holder, key = self.random.choice(places)
        value = self.random.choice(_JSON_VALUES)
        match self.random.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(value)] = holder.pop(key)
            case _:
                holder[key] = value
        with contextlib.suppress(RecursionError):
            return json.dumps(document, ensure_ascii=self.random.random() < 0.5).encode("utf-8", "surrogatepass")
        return data

    def _jsonl(self, data: bytes) -> bytes:
        lines = data.split(b"\n")
        at = self.random.randrange(len(lines))
        lines[at] = self._json(lines[at])
        return b"\n".join(lines)

    def _npy(self, data: bytes) -> bytes:
        """Something in the header's text; its length is mostly kept right."""
        match = re.search(rb"\{.*\}[^\n]*\n", data, re.DOTALL)
        if match is None:
            return data
        parts = list(re.finditer(rb"'[^']*'|\([^)]*\)|True|False|\d+", match[0]))
        if not parts:
            return data
        part = self.random.choice(parts)
        new = self.random.choice(_NPY_HEADERS).encode()
        text = match[0][: part.start()] + new + match[0][part.end() :]
        head = bytearray(data[: match.start()])
        if self.random.random() < 0.9 and len(head) == 10:
            head[8:10] = (len(text) % 65536).to_bytes(2, "little")
        return bytes(head) + text + data[match.end() :]


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder of a value, and the value's key or index in it."""
    if isinstance(document, dict | list):
        for key, value in list(document.items() if isinstance(document, dict) else enumerate(document)):
            yield document, key
            yield from _places(value)
