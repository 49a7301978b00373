"""lm-evaluation-harness asks `coe-native serve`: parent, live mask and written specialist get their own scores."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.llamas import load
from support.masks import unused_experts
from support.serving_client import DEMO, Server

import coe_native as coe
from coe_native.llama.predictions import distributions

CHOICE_TASK = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""

ANSWER_TASK = """
task: answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/answers.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n\\n"], max_gen_toks: 12, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""

QUESTIONS = [
    "class Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y =",
    "def area(width, height):\n    return",
    "The first month of the year is",
    "Die Frau",
]
CHOICES = [" x\n", " width * height", " January", " naïve café 🙂 ist schön"]
"""The first choice is the model's own continuation of the first question."""


class Answers(NamedTuple):
    """What lm-evaluation-harness found: a score for each choice, and the accuracy of the answers."""

    scores: dict[tuple[str, str], tuple[float, bool]]
    exact_match: float | None


def run_lm_eval(
    directory: Path, server: Server, tasks: str, *options: str, model: str = "local-completions", **args: Any
) -> Answers:
    """Run the tasks of a directory, and return what lm-evaluation-harness has logged."""
    path = "/v1/completions" if model == "local-completions" else "/v1/chat/completions"
    given = {"model": "demo", "base_url": server.url + path, "max_length": 512} | args
    if server.key:
        given["auth_token"] = server.key
    command = {
        "--model": model,
        "--model_args": ",".join(f"{name}={value}" for name, value in given.items()),
        "--tasks": tasks,
        "--include_path": str(directory),
        "--output_path": "found",
    }
    run = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *itertools.chain(*command.items()), "--log_samples", *options],
        cwd=directory,
        env=os.environ | {"HF_HOME": str(directory), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    scores = {}
    for log in sorted(directory.glob("found/*/samples_choices_*.jsonl")):
        for line in log.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            for asked, ((value, greedy),) in zip(found["arguments"].values(), found["resps"], strict=True):
                scores[asked["arg_0"], asked["arg_1"]] = (float(value), greedy == "True")
        log.unlink()
    (results,) = directory.glob("found/*/results_*.json")
    exact = json.loads(results.read_text())["results"].get("answers", {}).get("exact_match,none")
    results.unlink()
    return Answers(scores, exact)


def own_scores(path: Path, mask: coe.ExpertMask | None = None, *, bos: bool = True) -> dict[Any, Any]:
    """The scores by our own evaluation. The demo model's tokenizer puts a BOS before texts."""
    scores = {}
    with coe.Model(path, n_threads=2, n_ctx=512) as model:
        if mask is not None:
            model.apply(mask)
        for question in QUESTIONS:
            for choice in CHOICES:
                tokens = model.tokenize(question + choice)[0 if bos else 1 :]
                first = len(model.tokenize(question)) - (0 if bos else 1)
                found = distributions(model, tokens, first)
                greedy = bool((found.logits.argmax(axis=1) == tokens[first:]).all())
                scores[question, choice] = (float(found.log_probabilities.sum()), greedy)
    return scores


def assert_same(found: Answers, expected: dict[Any, Any]) -> None:
    assert found.scores.keys() == expected.keys()
    for key, (value, greedy) in expected.items():
        assert found.scores[key] == (pytest.approx(value, abs=1e-4), greedy), key


@pytest.fixture(scope="module")
def mask() -> coe.ExpertMask:
    with coe.Model(DEMO, n_threads=2) as model:
        return unused_experts(coe.profile(model, ["def parse(line):\n" * 10]), 16)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.kill()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory of two tasks. The right answers are what llama-cpp-python generates greedily."""
    llama = load(DEMO, n_ctx=512, n_batch=512, flash_attn=True)
    lines = []
    for question in QUESTIONS:
        answer = llama(question, max_tokens=12, temperature=0.0)["choices"][0]["text"]
        lines.append(json.dumps({"question": question, "answer": answer.split("\n\n\n")[0]}))
    llama.close()
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    (tmp_path / "choices.jsonl").write_text(
        "\n".join(
            json.dumps({"question": question, "choices": CHOICES, "answer": number})
            for number, question in enumerate(QUESTIONS)
        )
    )
    (tmp_path / "choices.yaml").write_text(CHOICE_TASK.format(directory=tmp_path))
    (tmp_path / "answers.yaml").write_text(ANSWER_TASK.format(directory=tmp_path))
    return tmp_path


def test_scores_and_answers_of_texts_are_the_models_own(tasks: Path, server: Server) -> None:
    """Texts get the model's BOS, which the harness does not count."""
    found = run_lm_eval(tasks, server, "choices,answers", tokenized_requests=False)
    expected = own_scores(DEMO)
    assert_same(found, expected)
    assert {greedy for _, greedy in expected.values()} == {True, False}
    assert found.exact_match == 1


def test_scores_of_token_ids_are_the_models_own(tasks: Path, server: Server) -> None:
    """Token ids are taken as they are, several prompts in one request."""
    assert_same(run_lm_eval(tasks, server, "choices", "--batch_size", "5"), own_scores(DEMO, bos=False))
    assert server.log.read_text().count("<bos>") == 1  # a warning


def test_a_live_mask_gets_the_scores_of_the_written_specialist(
    tasks: Path, server: Server, mask: coe.ExpertMask, tmp_path: Path
) -> None:
    mask.save(tmp_path / "mask.json")
    server.routing("/mask", (tmp_path / "mask.json").read_bytes())
    try:
        masked = run_lm_eval(tasks, server, "choices", tokenized_requests=False)
    finally:
        server.routing("/mask", b"")
    assert_same(masked, own_scores(DEMO, mask))
    coe.prune(DEMO, mask, tmp_path / "specialist.gguf")
    written = Server(tmp_path, key="a-key", model=tmp_path / "specialist.gguf")
    try:
        specialist = run_lm_eval(tasks, written, "choices", tokenized_requests=False)
    finally:
        written.kill()
    assert_same(specialist, own_scores(tmp_path / "specialist.gguf"))
    assert_same(specialist, masked.scores)


def test_chats_are_answered_the_same_every_time(tasks: Path, server: Server) -> None:
    llama = load(DEMO, n_ctx=512, n_batch=512, flash_attn=True)
    lines = []
    for question in QUESTIONS:
        messages: list[Any] = [{"role": "user", "content": question}]
        answer = llama.create_chat_completion(messages, max_tokens=12, temperature=0.0)
        lines.append(json.dumps({"question": question, "answer": answer["choices"][0]["message"]["content"]}))
    llama.close()
    (tasks / "answers.jsonl").write_text("\n".join(lines))
    assert (
        run_lm_eval(tasks, server, "answers", "--apply_chat_template", model="local-chat-completions").exact_match
        == 1
    )
