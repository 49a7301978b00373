"""Tasks: what a model is asked, and how it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from coe_native.corpus.batching import Tokens
from coe_native.corpus.documents import Message
from coe_native.errors import InputError
from coe_native.llama.generation import Generation, Prompt, Sampling, generate_all
from coe_native.llama.loaded_model import LoadedModel


def check_unicode(*texts: str) -> None:
    """Check that texts can be written as UTF-8; JSON can hold half of a surrogate pair.

    Raises:
        InputError: One cannot.
    """
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise InputError("holds half of a surrogate pair, which is not valid text") from error


@dataclass(frozen=True)
class Task:
    """What a model is asked.

    Attributes:
        task_id: Its name.
        messages: The conversation that the model answers, through its chat template.
        beginning: What the model continues instead, where no chat template is used.
        category: What it counts under, such as its difficulty; empty: nothing.

    Raises:
        InputError: A text is not valid Unicode.
    """

    task_id: str
    messages: tuple[Message, ...]
    beginning: str
    category: str = ""

    def __post_init__(self) -> None:
        check_unicode(self.task_id, self.beginning, self.category, *(each.content for each in self.messages))


@dataclass(frozen=True)
class Writer:
    """A loaded model that answers tasks, as many at once as it holds sequences.

    Attributes:
        model: The model.
        sampling: How tokens are drawn. Each task has a seed of its own that comes from this one, so that an
            answer does not depend on the tasks before.
        max_tokens: Most tokens of an answer.
        stop: Texts before which an answer ends.
        raw: Let the model continue `Task.beginning`, instead of asking through its chat template.
        thinking: Let it think first; off: its thinking block is closed.
        samples: Answers to each task.
    """

    model: LoadedModel
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16384
    stop: tuple[str, ...] = ()
    raw: bool = False
    thinking: bool = False
    samples: int = 1

    def write(
        self,
        wanted: Sequence[tuple[Task, int]],
        progress: Callable[[int], None] = lambda n_tokens: None,
    ) -> Iterator[tuple[Task, int, Generation]]:
        """Answer tasks.

        Args:
            wanted: Each task with the number of the answer.
            progress: Called with the tokens written so far.

        Yields:
            Each task, the number of the answer, and the answer, as soon as it has ended.

        Raises:
            InputError: A task does not fit into the context, or the model has no chat template.
        """
        self._check_template()
        answers = generate_all(
            self.model,
            [Prompt(self._prompt(task), self._seed(task, sample)) for task, sample in wanted],
            sampling=self.sampling,
            max_tokens=self.max_tokens,
            stop=self.stop,
            progress=progress,
        )
        for index, answer in answers:
            yield (*wanted[index], answer)

    def _seed(self, task: Task, sample: int) -> int:
        name = f"{task.task_id} {sample}" if sample else task.task_id
        digest = hashlib.sha256(f"{self.sampling.seed} {name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _prompt(self, task: Task) -> Tokens:
        try:
            prompt = self._rendered(task)
            if len(prompt) >= self.model.n_ctx:
                raise InputError(
                    f"its prompt needs {len(prompt)} tokens, but the context has {self.model.n_ctx} (--ctx)"
                )
        except InputError as error:
            raise InputError(f"task {task.task_id[:80]}: {error}") from error
        return prompt

    def _check_template(self) -> None:
        chat = self.model.text
        if self.raw:
            return
        if not chat.has_chat_template:
            raise InputError(f"{self.model.moe.path}: has no chat template; --raw lets it continue the prompts")
        if not self.thinking and chat.thinks:
            raise InputError(
                f"{self.model.moe.path}: its chat template opens a block of thinking that cannot be closed "
                f"({chat.thinks}), so thinking is not off; pass --thinking on, or --raw to continue the prompt"
            )

    def _rendered(self, task: Task) -> Tokens:
        chat = self.model.text
        if self.raw:
            return chat.tokenize(task.beginning)
        text = chat.render_chat(task.messages, reply=True, thinking=self.thinking)
        return chat.tokenize(text, parse_special=True)

    def run(self, tasks: Sequence[Task]) -> str:
        """Return a digest of the tasks, the model and the options, by which `Results` recognises a run."""
        what = {
            "tasks": [msgspec.to_builtins(task) for task in tasks],
            "model": self.model.moe.header_digest,
            "mask": None if self.model.mask is None else self.model.mask.digest,
            "ctx": self.model.n_ctx,
            "sampling": msgspec.to_builtins(self.sampling),
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "raw": self.raw,
            "thinking": self.thinking,
        }
        return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:16]
