"""What a GGUF says about its experts: the one place that knows the names of tensors and metadata."""

from __future__ import annotations

import contextlib
import hashlib
import re
import reprlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coe_native.errors import InputError
from coe_native.files.reading import read_exactly
from coe_native.model.gguf_file import GgufFile, Tensor, encode_entry
from coe_native.model.limits import MOST_BLOCKS
from coe_native.model.router_shape import RouterShape
from coe_native.model.surgery_record import SurgeryRecord, read_record

# Tensors with one slice for each expert. `ffn_gate_inp.scale` (hidden size), `ffn_gate_inp_shexp` (shared
# expert) and `ffn_norm_exps` are not among them.
_EXPERT_WEIGHTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.(weight|bias|scale|input_scale)")
_ROUTER_PARTS = re.compile(r"blk\.(\d+)\.(?:ffn_gate_inp\.(?:weight|bias)|exp_probs_b(?:_vl)?(?:\.bias)?)")
_MTP = re.compile(r"blk\.(\d+)\.nextn\.")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_ROUTER = re.compile(r"blk\.(\d+)\.ffn_gate_inp\.weight")
_EXPERT_TABLE = re.compile(r"blk\.(\d+)\.ffn_gate_tid2eid\.weight")
# Experts that belong to several others (GroveMoE), and whatever else may come to be called so.
_OTHER_EXPERTS = re.compile(r"blk\.\d+\.ffn_(?!norm_)\w+exps\.")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")

# llama.cpp tells some variants of an architecture by their number of experts: with exactly this number, a
# model has another graph than with any other.
_COUNT_WITH_A_MEANING = {"llama4": 128}

_LONGEST_NAME = 200
"""Characters of what a file calls itself; more is cut off, or refused where it would be another name."""

_GATING = {1: "softmax", 2: "sigmoid", 3: "softmax after top-k", 4: "square-root softplus"}


@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer: its block index, its router, all tensors with an expert dimension, router included, how
    many experts a token gets, and whether a table gives them by token (DeepSeek 4's hash layers) while the
    router only weighs them."""

    block: int
    router: Tensor
    tensors: tuple[Tensor, ...]
    top_k: int
    by_table: bool

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The experts' own weights and biases: what makes an expert's output zero when it is zero."""
        return tuple(t for t in self.tensors if (m := _EXPERT_WEIGHTS.fullmatch(t.name)) and m[2] in _ZEROED)


_ZEROED = ("weight", "bias")


class MoeModel:
    """The header of a mixture-of-experts GGUF, all shards of a split one together.

    Raises InputError for a file that is no GGUF, has no experts, is not the first shard, or is being zeroed in
    place (but for who brings that to its end: `surgery_goes_on`).
    """

    def __init__(self, path: str | Path, *, surgery_goes_on: bool = False) -> None:
        self.path = Path(path)
        self.files = _open_shards(self.path, surgery_goes_on)
        self.tensors = {tensor.name: tensor for file in self.files for tensor in file.tensors}
        self.architecture = str(self.metadata("general.architecture", ""))
        if not 0 < len(self.architecture) <= _LONGEST_NAME:
            raise InputError(f"{path}: names no architecture; it is not a model")
        self.n_experts = self._count("expert_count")
        if self.n_experts == 0:
            raise InputError(f"{path}: has no experts; it is not a mixture-of-experts model")
        self.n_blocks = self._count("block_count")
        if not 0 < self.n_blocks <= MOST_BLOCKS:
            raise InputError(f"{path}: counts {self.n_blocks} blocks; it is damaged")
        self.mtp_blocks = self._find_mtp_blocks()
        self.layers = self._find_layers()
        if not self.routed_layers:
            raise InputError(f"{path}: has experts only in layers that predict further tokens (MTP)")
        self.top_k = max(layer.top_k for layer in self.routed_layers)
        self.router_shape = self._router_shape()

    def metadata(self, key: str, default: Any = None) -> Any:
        """A metadata value of the first file."""
        return self.files[0].get(key, default)

    def arch(self, key: str, default: Any = None) -> Any:
        """A metadata value under the architecture's name."""
        return self.metadata(f"{self.architecture}.{key}", default)

    def _count(self, key: str) -> int:
        value = self.arch(key, 0)
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{self.path}: {self.architecture}.{key} is {reprlib.repr(value)}, not a count")
        return value

    def _find_mtp_blocks(self) -> range:
        """The last blocks, if they predict further tokens: their tensors say so too. Without those, a block that
        the metadata counts among them is one like all others (DeepSeek 4)."""
        last = range(self.n_blocks - self._count("nextn_predict_layers"), self.n_blocks)
        found = {int(match[1]) for name in self.tensors if (match := _MTP.match(name))}
        return range(min((block for block in found if block in last), default=self.n_blocks), self.n_blocks)

    def _find_layers(self) -> tuple[MoeLayer, ...]:
        tensors_of: dict[int, list[Tensor]] = {}
        tables = set()
        for tensor in self.tensors.values():
            if match := _EXPERT_TABLE.fullmatch(tensor.name):
                tables.add(int(match[1]))
            match = _EXPERT_WEIGHTS.fullmatch(tensor.name) or _ROUTER_PARTS.fullmatch(tensor.name)
            if match:
                if tensor.shape[-1] == self.n_experts:
                    tensors_of.setdefault(int(match[1]), []).append(tensor)
                    continue
                raise InputError(
                    f"{self.path}: {tensor.name} holds {tensor.shape[-1]} slices, not one for each of the "
                    f"{self.n_experts} experts; it is damaged or of a kind that cannot be cut"
                )
        n_by_table = self._count("hash_layer_count")
        layers = []
        for block, tensors in sorted(tensors_of.items()):
            router = next((t for t in tensors if _ROUTER.fullmatch(t.name)), None)
            if router is None or len(router.shape) != 2:
                raise InputError(f"{self.path}: block {block} has experts but no router")
            top_k = self._of_block("expert_used_count", block)
            if not 0 < top_k <= self.n_experts and block not in self.mtp_blocks:
                raise InputError(
                    f"{self.path}: chooses {top_k} of {self.n_experts} experts in block {block}; it is damaged"
                )
            by_table = block in tables and block < n_by_table
            layers.append(MoeLayer(block, router, tuple(tensors), top_k, by_table))
        if not layers:
            raise InputError(f"{self.path}: counts {self.n_experts} experts but holds none")
        return tuple(layers)

    def _router_shape(self) -> RouterShape:
        n_groups = max(1, self._count("expert_group_count"))
        n_used = self._count("expert_group_used_count") if n_groups > 1 else 1
        if self.n_experts % n_groups or not 0 < n_used < max(2, n_groups):
            raise InputError(
                f"{self.path}: chooses {n_used} of {n_groups} groups among {self.n_experts} experts; it is damaged"
            )
        most = max(self._of_block("expert_used_count", block) for block in range(self.n_blocks))
        return RouterShape(self.n_experts, most, n_groups, n_used)

    @property
    def obstacle(self) -> str | None:
        """Why the model cannot be cut to fewer experts at all, or None."""
        by_table = [layer.block for layer in self.layers if layer.by_table]
        if by_table:
            return (
                f"blocks {by_table} look their experts up in a table from tokens to experts, so none of them can "
                "go, and llama.cpp wants the same number of experts in all layers"
            )
        for name in self.tensors:
            if "_chexps." in name:
                return (
                    f"{name} belongs to groups of experts, whose weights llama.cpp takes from the experts of the "
                    "groups' numbers, so with fewer experts it would compute something else"
                )
            if _OTHER_EXPERTS.match(name) and not _EXPERT_WEIGHTS.fullmatch(name):
                return f"{name} holds experts of a kind that cannot be cut"
        if _COUNT_WITH_A_MEANING.get(self.architecture) == self.n_experts:
            return (
                f"llama.cpp takes {self.architecture} with {self.n_experts} experts for a variant of its own, "
                "which it computes in another way than with any other number"
            )
        return None

    def check_cut(self, keep: int) -> None:
        """Raises InputError, with the reason, where llama.cpp could not run the model with `keep` experts a
        layer, or would compute something else than the kept experts' share."""
        try:
            self.router_shape.check_keep(keep)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        if keep == self.n_experts:
            return
        if self.obstacle:
            raise InputError(f"{self.path}: {self.obstacle}")
        if _COUNT_WITH_A_MEANING.get(self.architecture) == keep:
            raise InputError(
                f"{self.path}: llama.cpp takes {self.architecture} with {keep} experts for a variant of its own, "
                "which it computes in another way; keep another number"
            )
        if self._count("expert_group_count") >= keep:
            raise InputError(f"{self.path}: llama.cpp wants more experts than groups of them; keep more")

    @property
    def possible_keeps(self) -> list[int]:
        """All numbers of experts that the model can be cut to, ascending; its own is the last."""
        possible = []
        for keep in range(1, self.n_experts + 1):
            with contextlib.suppress(InputError):
                self.check_cut(keep)
                possible.append(keep)
        return possible

    def in_mtp_block(self, tensor: Tensor) -> bool:
        """Whether a tensor belongs to a layer that predicts further tokens."""
        match = _BLOCK.match(tensor.name)
        return match is not None and int(match[1]) in self.mtp_blocks

    def entries_without_mtp(self) -> dict[str, bytes]:
        """The metadata entries that change where the layers that predict further tokens (MTP) are dropped:
        their count, the number of blocks, and lists with one number for each block."""
        first, n_left = self.files[0], self.mtp_blocks.start
        prefix = f"{self.architecture}."
        changed = {
            key: first.shortened_entry(key, n_left)
            for key in first.keys
            if key.startswith(prefix)
            and not key.endswith("dimension_sections")  # a list of another kind
            and first.numbers_at(key) == self.n_blocks
        }
        for key, count in (("block_count", n_left), ("nextn_predict_layers", 0)):
            changed[prefix + key] = encode_entry(prefix + key, count)
        return changed

    @cached_property
    def surgery(self) -> SurgeryRecord | None:
        """What was done to the model already, as far as its files say."""
        return read_record(self.files[0])

    def check_unchanged(self) -> None:
        """Raises CoeError where one of the files is not the one any more whose header was read."""
        for file in self.files:
            file.check_unchanged()

    @property
    def mtp_layers(self) -> tuple[MoeLayer, ...]:
        """The layers that predict further tokens (MTP): no forward pass runs them, so no profile sees them."""
        return tuple(layer for layer in self.layers if layer.block in self.mtp_blocks)

    @property
    def routed_layers(self) -> tuple[MoeLayer, ...]:
        """The layers that run for every token: all but those that predict further tokens (MTP)."""
        return tuple(layer for layer in self.layers if layer.block not in self.mtp_blocks)

    @property
    def blocks(self) -> list[int]:
        """Block index of each layer that runs, ascending."""
        return [layer.block for layer in self.routed_layers]

    @property
    def name(self) -> str:
        return str(self.metadata("general.name", self.path.stem))[:_LONGEST_NAME]

    @property
    def is_causal(self) -> bool:
        """Whether tokens see only those before them, so that a window can be computed in parts."""
        return bool(self.arch("attention.causal", True))

    @property
    def gating(self) -> str:
        """What the metadata says turns router logits into weights; most architectures leave it to the code."""
        return _GATING.get(self._count("expert_gating_func"), "as the architecture has it")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The model's files: more than one where it is split."""
        return tuple(file.path for file in self.files)

    @property
    def n_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all tensors with an expert dimension, routers included."""
        return sum(tensor.n_bytes for layer in self.layers for tensor in layer.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over architecture, expert counts and every router's shape and bytes.

        Routers stay F32 in every quantisation, so all files of one model share it.
        """
        digest = hashlib.sha256()
        digest.update(f"{self.architecture}\0{self.n_blocks}\0{self.n_experts}\0{self.top_k}\0".encode())
        for layer in self.layers:
            router = layer.router
            digest.update(f"{router.name}\0{router.shape}\0{router.type}\0".encode())
            with router.file.open() as file:
                digest.update(read_exactly(file, router.offset, router.n_bytes))
        return digest.hexdigest()

    def specialist_bytes(self, keep: int) -> int:
        """About the size of a file with `keep` experts in each layer."""
        dropped = self.n_experts - keep
        return self.n_bytes - self.expert_bytes // self.n_experts * dropped

    @cached_property
    def header_digest(self) -> str:
        """SHA-256 (hex) over the files' headers, and over the mask by which the model was zeroed in place, if it
        was: the same for no two quantisations."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.header_bytes)
        if self.surgery is not None and self.surgery.in_place:
            digest.update(self.surgery.digest.encode())
        return digest.hexdigest()

    @property
    def vocabulary_bytes(self) -> bytes:
        """The metadata entry with the tokens' texts, as it is in the file; empty without one."""
        key = "tokenizer.ggml.tokens"
        return self.files[0].raw_entry(key) if key in self.files[0].keys else b""

    def context_bytes(self, n_ctx: int, n_batch: int = 512) -> int:
        """Bytes of keys and values for `n_ctx` tokens in F16, estimated from the metadata alone.

        Layers with a sliding window keep the window and one batch. Recurrent state is not counted.
        """
        window = self._count("attention.sliding_window") or n_ctx
        return sum(
            self._kv_bytes_per_token(block)
            * (
                min(n_ctx, window + n_batch)
                if self._of_block("attention.sliding_window_pattern", block)
                else n_ctx
            )
            for block in range(self.mtp_blocks.start)
        )

    def _kv_bytes_per_token(self, block: int) -> int:
        suffix = "_swa" if self._of_block("attention.sliding_window_pattern", block) else ""
        heads = self._of_block("attention.head_count", block) or 1
        fallback = self._count("embedding_length") // heads
        kv_heads = self._of_block("attention.head_count_kv", block, heads)
        lengths = (
            self._of_block(f"attention.{part}_length{suffix}", block)
            or self._of_block(f"attention.{part}_length", block, fallback)
            for part in ("key", "value")
        )
        return 2 * kv_heads * sum(lengths)

    def _of_block(self, key: str, block: int, default: int = 0) -> int:
        """A number that the metadata gives once for all blocks or in a list for each."""
        value = self.arch(key, default)
        if isinstance(value, list) and block < len(value):
            value = value[block]
        # Some architectures give a sliding window's pattern as a period; only lists say which blocks slide.
        elif isinstance(value, int) and key.endswith("_pattern"):
            value = 0
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{self.path}: {self.architecture}.{key} gives no count for block {block}")
        return int(value)


def _open_shards(path: Path, surgery_goes_on: bool) -> tuple[GgufFile, ...]:
    first = GgufFile(path, surgery_goes_on=surgery_goes_on)
    count = first.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= 99999:
        raise InputError(f"{path}: says that it is one of {reprlib.repr(count)} shards; it is damaged")
    if count <= 1:
        return (first,)
    match = _SHARD.fullmatch(path.name)
    if not match or int(match[3]) != count:
        raise InputError(f"{path}: is one of {count} shards but is not named NAME-00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if path != paths[0]:
        raise InputError(f"{path}: is not the first shard; give {paths[0]}")
    if first.get("split.no", 0) != 0:
        raise InputError(f"{path}: says that it is not the first shard; give the shards their names back")
    missing = [str(shard) for shard in paths if not shard.exists()]
    if missing:
        raise InputError(f"{path}: is one of {count} shards; missing: {', '.join(missing)}; put them beside it")
    others = [GgufFile(shard) for shard in paths[1:]]
    names = [tensor.name for file in (first, *others) for tensor in file.tensors]
    for number, file in enumerate(others, 1):
        if file.get("split.no") != number or file.get("split.count") != count:
            raise InputError(
                f"{file.path}: is not shard {number + 1} of {count} of the model in {path}; give the shards their "
                "names back"
            )
    if len(set(names)) != len(names) or first.get("split.tensors.count", len(names)) != len(names):
        raise InputError(f"{path}: its {count} shards do not hold one model's tensors, each once")
    return (first, *others)
