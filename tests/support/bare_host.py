"""A program that runs llama.cpp by its C functions and knows nothing of coe-native, but for a callback that it is
given; and the C library, as such a program calls it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from coe_native._native import core


class BareHost:
    """One model and one context. `callback`: what ctypes takes for a ggml_backend_sched_eval_callback."""

    def __init__(
        self, path: Path, callback: Any, user_data: int | None = None, *, n_ctx: int = 128, n_ubatch: int = 128
    ) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = not core.has_amx()  # as in csrc/llama/placement.cpp, which says why
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(n_ubatch, n_ctx)
        params.n_threads = params.n_threads_batch = 1
        params.cb_eval = ctypes.cast(callback, type(params.cb_eval))
        params.cb_eval_user_data = user_data
        self._context = llama_cpp.llama_init_from_model(self._model, params)

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def run(self, window: Sequence[int], *, all_logits: bool = True) -> None:
        """A window in a decode of its own, from position 0 on, with the logits of all tokens or of the last."""
        batch = llama_cpp.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for i, token in enumerate(window):
            batch.token[i] = token
            batch.pos[i] = i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == len(window) - 1
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        assert llama_cpp.llama_decode(self._context, batch) == 0
        llama_cpp.llama_batch_free(batch)

    def warm_up(self) -> None:
        """Run two tokens as llama.cpp's tools do first, for which most architectures use all experts."""
        llama_cpp.llama_set_warmup(self._context, True)
        self.run([0, 1])
        llama_cpp.llama_set_warmup(self._context, False)

    def last_logits(self) -> NDArray[np.float32]:
        """Of the last token that was run, [n_vocab]."""
        n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        row = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(row, (n_vocab,)).copy()


_POINTER, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "coe_native_abi_version": (ctypes.c_int32,),
    "coe_last_error": (_TEXT,),
    "coe_profiler_open": (_POINTER, _TEXT),
    "coe_profiler_new": (_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _SIZE),
    "coe_profiler_free": (None, _POINTER),
    "coe_profiler_chain": (ctypes.c_int32, _POINTER, _POINTER, _POINTER),
    "coe_profiler_watch_norms": (ctypes.c_int32, _POINTER, ctypes.c_int32),
    "coe_profiler_snapshot": (_POINTER, _POINTER),
    "coe_profiler_reset": (ctypes.c_int32, _POINTER),
    "coe_profiler_load_mask": (ctypes.c_int32, _POINTER, _TEXT),
    "coe_profiler_mask": (ctypes.c_int32, _POINTER, _POINTER, _SIZE),
    "coe_profiler_clear_mask": (ctypes.c_int32, _POINTER),
    "coe_profiler_mask_applications": (ctypes.c_int32, _POINTER, _POINTER),
    "coe_profile_free": (None, _POINTER),
    "coe_profile_merge": (ctypes.c_int32, _POINTER, _POINTER),
    "coe_profile_save": (ctypes.c_int32, _POINTER, _TEXT, _TEXT),
}


def load_c_library() -> ctypes.CDLL:
    """libcoe_native, as it is installed."""
    name = {"darwin": "libcoe_native.dylib", "win32": "coe_native.dll"}.get(sys.platform, "libcoe_native.so")
    path = Path(core.__file__).parent / "lib" / name
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class CProfiler:
    """A profiler of the C library, for a model's file."""

    def __init__(self, path: Path, *, norms: bool = False) -> None:
        self.library = load_c_library()
        self.pointer = self.library.coe_profiler_open(str(path).encode())
        assert self.pointer, self.error
        if norms:
            assert self.library.coe_profiler_watch_norms(self.pointer, 1) == 0, self.error

    @property
    def callback(self) -> Any:
        return self.library.coe_profiler_callback

    @property
    def error(self) -> str:
        return str(self.library.coe_last_error().decode())

    def mask(self, path: Path) -> None:
        assert self.library.coe_profiler_load_mask(self.pointer, str(path).encode()) == 0, self.error

    def reset(self) -> None:
        assert self.library.coe_profiler_reset(self.pointer) == 0, self.error

    def save(self, path: Path, source: str) -> Path:
        profile = self.library.coe_profiler_snapshot(self.pointer)
        assert profile, self.error
        assert self.library.coe_profile_save(profile, str(path).encode(), source.encode()) == 0, self.error
        self.library.coe_profile_free(profile)
        return path

    def close(self) -> None:
        self.library.coe_profiler_free(self.pointer)
