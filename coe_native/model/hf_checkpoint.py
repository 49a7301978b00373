"""Hugging Face checkpoints: a directory with a config, safetensors files, and an index where there are several."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from coe_native.errors import InputError, printable
from coe_native.files.regular import read_regular, unchanged_since_now
from coe_native.model.safetensors_file import SafetensorsFile, StoredTensor

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_MOST_CONFIG = 1 << 24
_MOST_INDEX = 1 << 28

_EXPERT_COUNT = re.compile(r"(?:moe_)?(?:n|num)_(?:local_|routed_|primary_)?experts")
"""Keys that count routed experts, such as num_experts, num_local_experts and n_routed_experts."""

_LIKE_A_COUNT = re.compile(r"expert.*num|num.*expert|n_.*expert|expert.*count")
_OTHER_COUNT = re.compile("per_tok|per_token|shared|size|dim|group|layer|select|activ|null|zero")
"""Of keys like a count, those that count something else."""

_LAYER_COUNT = re.compile("num_hidden_layers|n_layers?|num_layers")

_MTP_COUNT = re.compile("(?:num_)?(?:nextn|mtp)_.*(?:layers|modules)")
"""Keys that count layers which predict further tokens, such as num_nextn_predict_layers."""

_MOST_MTP = 64
"""Larger numbers count something else."""

_TOP_K = re.compile(
    r"(?:num_)?experts_per_tok(?:en)?|(?:moe_)?(?:router_)?top_?k(?:_experts)?|moe_k|"
    r"(?:moe_)?num_(?:selected|active|activated)_(?:primary_)?experts"
)
"""Keys that count the experts chosen for a token."""

_DEEPEST = 100
"""Levels of a config."""

Node = dict[str, Any]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class HfTensor:
    """A tensor of a checkpoint.

    Attributes:
        file: The file that holds it.
        stored: Its place there.
    """

    file: SafetensorsFile
    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape, the slowest dimension first."""
        return self.stored.shape


@dataclass(frozen=True)
class HfCheckpoint:
    """A checkpoint whose config, index and headers have been read.

    Attributes:
        path: Its directory.
        config: The contents of its config.
        files: Its safetensors files, in the order of their names.
        tensors: Its tensors by name.
        index: What its index says besides where the tensors are; None: it has no index.
        check_unchanged: Raises InputError if a file that was read has changed since.
    """

    path: Path
    config: Node
    files: tuple[SafetensorsFile, ...]
    tensors: Mapping[str, HfTensor]
    index: Mapping[str, Any] | None
    check_unchanged: Callable[[], None]

    @classmethod
    def read(cls, path: str | Path) -> HfCheckpoint:
        """Read what a checkpoint says about itself.

        Args:
            path: Its directory.

        Raises:
            InputError: It is not a checkpoint in safetensors files, a file is missing or damaged, or two files
                hold the same tensor.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: is not the directory of a checkpoint, such as `hf download` makes")
        if not (path / CONFIG).exists():
            raise InputError(
                f"{path}: is a directory without {CONFIG}; name a GGUF file, or a checkpoint's directory"
            )
        config = _read_config(path / CONFIG)
        index = _read_index(path / INDEX) if (path / INDEX).exists() else None
        if index is None and not (path / SINGLE).exists():
            raise InputError(
                f"{path}: has neither {SINGLE} nor {INDEX}; only safetensors checkpoints can be pruned"
            )
        if index is not None and (path / SINGLE).exists() and SINGLE not in index.weight_map.values():
            raise InputError(f"{path}: has {SINGLE} and an {INDEX} of other files; remove what is not the model")
        names = [SINGLE] if index is None else sorted(set(index.weight_map.values()))
        for name in names:
            if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
                raise InputError(f"{path / INDEX}: names a file outside the directory: {printable(name, 100)}")
        checks = [unchanged_since_now(path / name) for name in (CONFIG, *names)]
        files = tuple(SafetensorsFile.read(path / name) for name in names)
        tensors: dict[str, HfTensor] = {}
        for file in files:
            for name, stored in file.tensors.items():
                if name in tensors:
                    raise InputError(
                        f"{file.path}: has {printable(name, 200)}, which {tensors[name].file.path.name} has too"
                    )
                tensors[name] = HfTensor(file, stored)
        if index is not None:
            _check_index(path, index, tensors)

        def check_unchanged() -> None:
            for check in checks:
                check()

        return cls(path, config, files, tensors, None if index is None else index.metadata or {}, check_unchanged)

    @cached_property
    def n_experts(self) -> int:
        """Return the number of routed experts of a layer, by the config.

        Raises:
            InputError: The config counts no experts, or different ones.
        """
        counts: list[tuple[str, object]] = []
        others: dict[str, int] = {}
        for node in nodes(self.config):
            for key, value in node.items():
                if _EXPERT_COUNT.fullmatch(key) and value not in (None, 0, 1):
                    counts.append((key, value))
                elif _LIKE_A_COUNT.search(key) and not _OTHER_COUNT.search(key) and isinstance(value, int):
                    others[key] = value
        numbers = {value for _, value in counts if isinstance(value, int)}
        if not counts:
            raise InputError(
                f"{self.path / CONFIG}: counts no experts; only mixture-of-experts models can be pruned"
            )
        if len(numbers) != 1 or len(numbers) != len({json.dumps(value) for _, value in counts}):
            listed = ", ".join(f"{key} = {printable(json.dumps(value), 50)}" for key, value in counts[:5])
            raise InputError(f"{self.path / CONFIG}: experts are counted in different ways: {listed}")
        n_experts = numbers.pop()
        if unknown := next((key for key, value in others.items() if value == n_experts), None):
            raise InputError(f"{self.path / CONFIG}: {printable(unknown, 100)} may or may not count the experts")
        return n_experts

    @property
    def top_ks(self) -> list[int]:
        """Return the numbers in the config that may say how many experts are chosen for a token, or none."""
        for chosen in self._text_nodes():
            found = {number for number in _numbers(chosen, _TOP_K) if number > 0}
            if found:
                return sorted(found)
        return []

    @property
    def n_layers(self) -> int:
        """Return the number of layers, those that predict further tokens left out.

        A model of several parts counts the layers of each: those beside the number of experts are meant.

        Raises:
            InputError: The config does not say it.
        """
        for chosen in self._text_nodes():
            counts = set(_numbers(chosen, _LAYER_COUNT))
            if len(counts) == 1:
                return counts.pop()
        raise InputError(f"{self.path / CONFIG}: does not say how many layers the model has (num_hidden_layers)")

    def _text_nodes(self) -> tuple[list[Node], list[Node]]:
        """Return the configs that count experts, and those of all parts but vision and audio."""
        all_nodes = list(nodes(self.config, text_only=True))
        return [node for node in all_nodes if any(map(_EXPERT_COUNT.fullmatch, node))], all_nodes

    @property
    def groups(self) -> tuple[int, int] | None:
        """Return the number of groups of experts and how many of them a token uses, or None if there are none."""
        for node in (node for chosen in self._text_nodes() for node in chosen):
            groups, used = node.get("n_group"), node.get("topk_group")
            if isinstance(groups, int) and isinstance(used, int) and groups > 1:
                return groups, used
        return None

    @property
    def mtp_layer_counts(self) -> list[int]:
        """Return the numbers in the config that may say how many layers predict further tokens."""
        return sorted(n for n in set(_numbers(nodes(self.config), _MTP_COUNT)) if 0 < n <= _MOST_MTP)

    def with_experts(self, keep: int) -> Node:
        """Return the config of the same model with `keep` experts in each layer."""

        def cut(node: Any) -> Any:
            if isinstance(node, list):
                return [cut(inner) for inner in node]
            if not isinstance(node, dict):
                return node
            return {
                key: keep if _EXPERT_COUNT.fullmatch(key) and value == self.n_experts else cut(value)
                for key, value in node.items()
            }

        return dict(cut(self.config))


def _numbers(among: Iterable[Node], named: re.Pattern[str]) -> Iterator[int]:
    """Yield the whole numbers with such a name, and those in lists with such a name."""
    for node in among:
        for key, value in node.items():
            for number in value if isinstance(value, list) else [value]:
                if named.fullmatch(key) and isinstance(number, int) and not isinstance(number, bool):
                    yield number


def nodes(config: Node, *, text_only: bool = False) -> Iterator[Node]:
    """Yield a config and the configs in it. `text_only`: without those of vision and audio."""
    yield config
    for key, value in config.items():
        if text_only and re.search("vision|audio|quantization", key):
            continue
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from nodes(inner, text_only=text_only)


def _read_config(path: Path) -> Node:
    """Return a config. Python's own reader takes Infinity, which some have."""
    try:
        config = json.loads(read_regular(path, _MOST_CONFIG))
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
        _check_depth(config)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged: {printable(str(error), 200)}; download it again") from error
    return config


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [inner for inner in level if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _read_index(path: Path) -> _Index:
    try:
        return msgspec.json.decode(read_regular(path, _MOST_INDEX), type=_Index)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is damaged: {printable(str(error), 200)}; download it again") from error


def _check_index(path: Path, index: _Index, tensors: Mapping[str, HfTensor]) -> None:
    for name, file in index.weight_map.items():
        if name not in tensors or tensors[name].file.path.name != file:
            raise InputError(f"{path / INDEX}: says that {printable(name, 200)} is in {file}, where it is not")
    for name, tensor in tensors.items():
        if name not in index.weight_map:
            raise InputError(f"{path / INDEX}: does not list {printable(name, 200)} of {tensor.file.path.name}")
