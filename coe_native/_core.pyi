from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ggml_version: str
ggml_commit: str

class GgufError(ValueError): ...

class GgufType:
    U8: GgufType
    I8: GgufType
    U16: GgufType
    I16: GgufType
    U32: GgufType
    I32: GgufType
    F32: GgufType
    BOOL: GgufType
    STRING: GgufType
    ARRAY: GgufType
    U64: GgufType
    I64: GgufType
    F64: GgufType
    @property
    def name(self) -> str: ...
    def __int__(self) -> int: ...

class GgufEntry:
    key: str
    type: GgufType
    element_type: GgufType
    count: int
    begin: int
    value: int
    end: int

class GgufTensor:
    name: str
    shape: list[int]
    type: int
    offset: int
    n_bytes: int

class GgufHeader:
    version: int
    alignment: int
    data_offset: int
    entries: list[GgufEntry]
    tensors: list[GgufTensor]

class GgufFile:
    header: GgufHeader
    def __init__(self, path: bytes, buffer: Any, file_size: int) -> None: ...
    def header_bytes(self, begin: int, end: int) -> bytes: ...

class RouterShape:
    n_experts: int
    top_k: int
    n_groups: int
    n_groups_used: int
    def __init__(self, n_experts: int, top_k: int, n_groups: int, n_groups_used: int) -> None: ...
    def check_keep(self, keep: int) -> None: ...

class MoeLayer:
    block: int
    top_k: int
    by_table: bool
    is_mtp: bool
    router: tuple[int, int]
    tensors: list[tuple[int, int]]
    weights: list[tuple[int, int]]

class RouterLayout:
    architecture: str
    model_name: str
    fingerprint: str
    shape: RouterShape
    n_blocks: int
    first_mtp_block: int
    layers: list[MoeLayer]
    obstacle: str
    cannot_count: str
    def has_fingerprint(self, fingerprint: str) -> bool: ...
    def check_countable(self) -> None: ...
    def check_keep(self, keep: int) -> None: ...

def shard_paths(first: GgufFile) -> list[bytes]: ...
def check_shards(files: Sequence[GgufFile]) -> None: ...
def find_router_layout(files: Sequence[GgufFile]) -> RouterLayout: ...
def find_fingerprints(files: Sequence[GgufFile], layout: RouterLayout, sha256: Callable[[], Any]) -> None: ...

MASK_FORMAT: str
MASK_VERSION: int
MOST_MASK_BYTES: int

class Mask:
    architecture: str
    fingerprint: str
    n_experts: int
    keep: int
    kept: dict[int, list[int]]
    def __init__(
        self, architecture: str, fingerprint: str, n_experts: int, keep: int, kept: Mapping[int, Sequence[int]]
    ) -> None: ...
    def check(self) -> None: ...
    def check_model(self, layout: RouterLayout) -> None: ...
    def check_cut(self, layout: RouterLayout) -> None: ...

class MaskFile:
    mask: Mask
    swaps: list[tuple[int, int, int, int, float, float]]
    unplaced: list[tuple[int, int]]
    provenance: str

def parse_mask(text: bytes) -> MaskFile: ...

class Profile:
    @property
    def architecture(self) -> str: ...
    @architecture.setter
    def architecture(self, text: bytes) -> None: ...
    @property
    def model_name(self) -> str: ...
    @model_name.setter
    def model_name(self, text: bytes) -> None: ...
    @property
    def fingerprint(self) -> str: ...
    @fingerprint.setter
    def fingerprint(self, text: bytes) -> None: ...
    @property
    def corpora(self) -> str: ...
    @corpora.setter
    def corpora(self, json: bytes) -> None: ...
    blocks: list[int]
    n_experts: int
    n_ranks: int
    n_chosen: int
    n_groups: int
    n_groups_used: int
    n_tokens: int
    layer_tokens: list[int]
    has_weights: bool
    histograms: NDArray[np.int64]
    weight_sum: NDArray[np.float64]
    weight_sum_rest: NDArray[np.float64]
    outputs: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None
    def __init__(self) -> None: ...
    def set_counts(
        self, histograms: NDArray[np.int64], weight_sum: NDArray[np.float64], rest: NDArray[np.float64], /
    ) -> None: ...
    def set_outputs(
        self,
        norm_sum: NDArray[np.float64],
        weighted_norm_sum: NDArray[np.float64],
        norm_rest: NDArray[np.float64],
        weighted_rest: NDArray[np.float64],
        /,
    ) -> None: ...
    def check(self) -> None: ...
    def add(self, other: Profile) -> None: ...
    def encode(self, extra: Sequence[tuple[str, int | str]]) -> bytes: ...

def decode_profile(file: GgufFile) -> Profile: ...
def type_name(type: int) -> str: ...
def type_number(type_name: str) -> int: ...
def tensor_bytes(type_name: str, shape: Sequence[int]) -> int: ...
def slice_norms(buffer: Any, type: int, n_slices: int) -> NDArray[np.float64]: ...
def first_not_finite(buffer: Any, type: int, n_slices: int) -> int | None: ...
def slice_differences(
    first: Any, first_type: int, second: Any, second_type: int, n_slices: int
) -> NDArray[np.float64]: ...
def has_norm(type: int) -> bool: ...
def report_crashes(prefix: str) -> None: ...

MOST_BLOCKS: int
MOST_EXPERTS: int

def prepare_thread_for_crashes() -> None: ...
def set_crash_advice(advice: str) -> None: ...
def set_crash_listener(descriptor: int) -> None: ...

class DeviceFacts:
    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def total_memory(self) -> int: ...
    @property
    def free_memory(self) -> int: ...

def describe_devices() -> list[DeviceFacts]: ...
def system_info() -> str: ...
def has_rpc() -> bool: ...
def has_amx() -> bool: ...
def free_gpu_memory() -> int: ...
def count_rpc_devices(endpoint: str) -> int: ...

class LiveProfiler:
    callback: int
    user_data: int
    def __init__(self, blocks: Sequence[int], n_experts: int, top_k: Sequence[int], n_parts: int) -> None: ...
    def watch_outputs(self, n_threads: int) -> None: ...
    def chain(self, callback: int, user_data: int) -> None: ...
    def select(self, part: int) -> None: ...
    def begin_decode(self) -> None: ...
    def end_decode(self) -> None: ...
    def hold(self, on: bool) -> None: ...
    def accept(self, n: int) -> None: ...
    def counts(
        self,
    ) -> list[
        tuple[
            NDArray[np.int64],
            NDArray[np.float64],
            NDArray[np.float64],
            list[int],
            tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None,
        ]
    ]: ...
    def reset(self) -> None: ...
    def recover(self) -> None: ...
    def mask(self, kept: Sequence[Sequence[int]]) -> None: ...
    def unmask(self) -> None: ...
    def mask_applications(self) -> list[int]: ...

class WeightPlacement:
    devices: int
    overrides: int
    repack: bool
    def __init__(self, *, devices: Sequence[str], n_cpu_moe: int) -> None: ...

class SessionOptions:
    n_ctx: int
    n_batch: int
    n_batch_on_gpu: int
    n_sequences: int
    n_threads: int
    n_gpu_layers: int
    n_cpu_moe: int
    devices: list[str]
    rpc: list[str]
    f32_kv: bool
    repack: bool
    mtp: bool
    simulate: bool
    n_nameless_tokens: int
    vocab_size_key: str

class Session:
    n_batch: int
    n_vocab: int
    has_tokenizer: bool
    has_logits: bool
    has_memory: bool
    bos_token: int
    eos_token: int
    chat_template: bytes
    histograms: NDArray[np.int64]
    weight_sum: NDArray[np.float64]
    weight_sum_rest: NDArray[np.float64]
    output_norms: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None
    input_sums: dict[str, tuple[NDArray[np.float64], NDArray[np.uint64]]] | None
    def __init__(self, path: bytes, options: SessionOptions) -> None: ...
    def tokenize(self, text: bytes, parse_special: bool) -> NDArray[np.int32]: ...
    def watch(
        self,
        blocks: Sequence[int],
        n_experts: int,
        top_k: Sequence[int],
        outputs: bool = False,
        inputs: bool = False,
    ) -> None: ...
    def unwatch(self) -> None: ...
    def mask(self, blocks: Sequence[int], kept: Sequence[Sequence[int]], n_experts: int) -> None: ...
    def unmask(self) -> None: ...
    def reset(self) -> None: ...
    def forget(self, sequence: int) -> None: ...
    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        first_output: int = 0,
    ) -> None: ...
    def logits(self, first: int, count: int) -> NDArray[np.float32]: ...
    def want_embeddings(self, on: bool) -> None: ...
    def embeddings(self, first: int, count: int) -> NDArray[np.float32]: ...
    def record_graph(self, on: bool) -> list[str]: ...
    def log_probabilities(self, first: int, targets: NDArray[np.int32]) -> NDArray[np.float64]: ...
    def normalisers(self, first: int, count: int) -> NDArray[np.float64]: ...
    def divergences(
        self, first: int, reference: NDArray[np.float32], normalisers: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]: ...
    def memory(self) -> list[dict[str, Any]]: ...
    def token_text(self, token: int) -> bytes: ...
    def ends(self, token: int) -> bool: ...

class Sampler:
    def __init__(
        self,
        n_vocab: int,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        repeat_last_n: int,
        seed: int,
    ) -> None: ...
    def accept(self, tokens: NDArray[np.int32]) -> None: ...
    @staticmethod
    def draw_all(session: Session, samplers: Sequence[Sampler], rows: Sequence[int]) -> list[int]: ...
