"""Grammars that clients of the server send, followed in a helper process.

llama.cpp crashes on some grammars that cannot be parsed, throws where a grammar allows no token, and takes
memory that doubles with each character for others. The helper has the model's vocabulary; after each token it
says which ones the grammar allows next.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError, printable
from coe_native.helper_process import HelperError, HelperProcess, answer_questions

SECONDS = 5.0
"""Time limit for one token, or for making a grammar from a JSON schema."""

_LONGEST = 1 << 20
"""Maximum characters of a schema's grammar."""

_ERROR = 4
"""ggml.h's GGML_LOG_LEVEL_ERROR."""

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True)
"""llama.h's llama_token_data."""


class GrammarHelper:
    """The process that follows grammars for one model, one grammar at a time. `close` ends it."""

    def __init__(self, model: Path) -> None:
        self._helper = HelperProcess("from coe_native.live.grammar import serve; serve()", str(model))

    def from_schema(self, schema: str) -> str:
        """Return the grammar of a JSON schema.

        Args:
            schema: The schema.

        Raises:
            InputError: There is no grammar for it.
        """
        return str(self._ask({"schema": schema})["grammar"])

    def begin(self, grammar: str, root: str = "root") -> NDArray[np.bool_]:
        """Start a grammar, and return which tokens a text may begin with.

        Args:
            grammar: The grammar, in llama.cpp's GBNF.
            root: Name of its first rule.

        Returns:
            Whether each token of the vocabulary is allowed, bool [n_vocab].

        Raises:
            InputError: The grammar cannot be parsed, has no root, is left-recursive, allows no token, or
                takes too much time or memory.
        """
        return self._allowed({"grammar": grammar, "root": root})

    def accept(self, token: int) -> NDArray[np.bool_]:
        """Continue with an allowed token, and return which tokens may follow. Raises as `begin`."""
        return self._allowed({"accept": token})

    def _allowed(self, question: dict[str, Any]) -> NDArray[np.bool_]:
        answer = self._ask(question)
        bits = np.frombuffer(base64.b64decode(answer["allowed"]), np.uint8)
        allowed = np.unpackbits(bits, count=answer["tokens"]).astype(np.bool_)
        if not allowed.any():
            raise InputError("the grammar allows none of the model's tokens here")
        return allowed

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._helper.ask(question, SECONDS)
        except HelperError as error:
            raise InputError(f"the grammar is too expensive: {error}") from error
        if "error" in answer:
            raise InputError(answer["error"])
        return answer

    def close(self) -> None:
        """End the helper process."""
        self._helper.close()


def serve() -> None:
    """Load the vocabulary of the model that the helper's command line names, and answer questions."""
    import llama_cpp
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep_errors(level: int, text: bytes, _: int) -> None:
        if level == _ERROR:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(keep_errors, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    vocab = llama_cpp.llama_model_get_vocab(llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params))
    candidates = np.zeros(llama_cpp.llama_vocab_n_tokens(vocab), CANDIDATE)
    candidates["id"] = np.arange(len(candidates))
    following: Any = None

    def allowed() -> dict[str, Any]:
        candidates["logit"] = 0.0
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p), size=len(candidates), selected=-1
        )
        llama_cpp.llama_sampler_apply(following, ctypes.byref(array))
        bits = np.packbits(candidates["logit"] == 0.0)
        return {"allowed": base64.b64encode(bits.tobytes()).decode(), "tokens": len(candidates)}

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal following
        if "schema" in question:
            json.loads(question["schema"])
            grammar = json_schema_to_gbnf(question["schema"])
            if len(grammar) > _LONGEST:
                raise ValueError(f"the schema's grammar has more than {_LONGEST >> 20} MB")
            return {"grammar": grammar}
        if "accept" in question:
            llama_cpp.llama_sampler_accept(following, question["accept"])
            return allowed()
        if following is not None:
            llama_cpp.llama_sampler_free(following)
        errors.clear()
        following = llama_cpp.llama_sampler_init_grammar(
            vocab, question["grammar"].encode(), question["root"].encode()
        )
        if not following:
            following = None
            why = f" ({printable(errors[-1], 200)})" if errors else ""
            raise ValueError(f"the grammar cannot be parsed, has no root or is left-recursive{why}")
        return allowed()

    answer_questions(answer, SECONDS)
