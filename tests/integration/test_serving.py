"""`coe-native serve` with the `openai` client: what is asked, streamed and asked at once is counted."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from support.llamas import load
from support.masks import unused_experts
from support.random_models import FAMILIES, write_random_model
from support.serving_client import DEMO, SECRET, Server, refused_with

import coe_native as coe
from coe_native.live.llama_cpp_python.scoring import predictions
from coe_native.llama.predictions import log_probabilities

GREEDY: dict[str, Any] = {"temperature": 0.0}
SIZES: dict[str, Any] = {"n_ctx": 512, "n_batch": 512, "flash_attn": True}  # as the server loads the model


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.process.kill()
    started.process.communicate()
    started.client.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that look neither at its counts nor at its mask."""
    started = Server(tmp_path_factory.mktemp("shared"))
    yield started
    started.kill()


def test_completions_chat_and_streams_are_counted(server: Server) -> None:
    """The texts are those of a Llama that nobody serves or watches, the counts those of an attached one."""
    assert server.routing()["tokens"] == {"prompts": 0, "generated": 0}
    sampled = {"temperature": 0.8, "seed": 7}
    texts = [server.complete(f"def {SECRET}(x):", **sampled), server.stream("import os\n")]
    messages: list[Any] = [{"role": "user", "content": f"What is a {SECRET}?"}]
    chat = server.client.chat.completions.create(model="demo", messages=messages, max_tokens=12, temperature=0.0)
    chunks = server.client.chat.completions.create(
        model="demo", messages=messages, max_tokens=12, temperature=0.0, stream=True
    )
    texts += [chat.choices[0].message.content, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)]

    llama = load(DEMO, **SIZES)
    with coe.attach(llama) as capture:
        expected = [
            llama(f"def {SECRET}(x):", max_tokens=12, **GREEDY | sampled)["choices"][0]["text"],
            llama("import os\n", max_tokens=12, **GREEDY)["choices"][0]["text"],
        ]
        for _ in range(2):
            answer = llama.create_chat_completion(messages, max_tokens=12, **GREEDY)
            expected.append(answer["choices"][0]["message"]["content"])
        prompts, generated = capture.parts
    assert texts == expected
    status = server.routing()
    assert status["tokens"] == {"prompts": prompts.n_tokens, "generated": generated.n_tokens}
    assert prompts.n_tokens > 20
    assert generated.n_tokens == 44  # the last token of an answer is not run
    for index, block in enumerate(prompts.layers):
        layer = status["layers"][str(block)]
        assert layer["prompts"] == {"tokens": prompts.n_tokens, "counts": prompts.counts[index].tolist()}
        assert layer["generated"]["counts"] == generated.counts[index].tolist()
    assert status["fingerprint"] == prompts.fingerprint
    assert status["mask"] is None

    saved = server.routing("/save", b"")["saved"]
    assert saved == ["live.gguf", "live.prompts.gguf", "live.generated.gguf"]
    both, of_prompts, of_generated = (coe.RoutingProfile.load(server.directory / name) for name in saved)
    np.testing.assert_array_equal(of_prompts.histograms, prompts.histograms)
    np.testing.assert_array_equal(of_generated.weight_sum, generated.weight_sum)
    np.testing.assert_array_equal(both.histograms, prompts.histograms + generated.histograms)
    assert [record.name for record in both.corpora] == ["prompts, live", "generated, live"]
    assert "live.gguf" in server.end()
    for path in server.directory.iterdir():
        assert SECRET.encode() not in path.read_bytes()


def test_requests_are_answered_as_openais_clients_expect(server: Server) -> None:
    """On a model without a chat template, for which llama-cpp-python has one of its own."""
    create = server.client.chat.completions.create
    history: list[Any] = [
        {"role": "developer", "content": "Be terse."},
        {"role": "user", "content": "What is 2 + 3?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "5"},
        {"role": "user", "content": "Thanks."},
    ]
    short = create(model="demo", messages=history, max_completion_tokens=4, temperature=0.0)
    assert short.usage is not None
    assert short.usage.completion_tokens == 4
    stream = create(
        model="demo",
        messages=history,
        max_tokens=4,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage) == ([], short.usage)
    texts = server.client.completions.create(
        model="demo", prompt="import os\n", max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    usage = list(texts)[-1].usage
    whole = server.client.completions.create(model="demo", prompt="import os\n", max_tokens=5)
    assert usage == whole.usage
    assert not any(chunk.usage for chunk in create(model="demo", messages=history, max_tokens=3, stream=True))
    with pytest.raises(openai.BadRequestError, match="one choice"):
        create(model="demo", messages=history, n=2)
    assert [model.id for model in server.client.models.list().data]


def test_concurrent_requests_get_their_own_answers(server: Server) -> None:
    """Each gets its own answer whole, streamed or not, and all tokens are counted, which can be seen meanwhile."""
    prompts = [f"class {name}:\n    def " for name in ("One", "Second", "Third", "Fourth", "Fifth", "Sixth")]
    alone = [server.complete(prompt, 24) for prompt in prompts]
    before = server.routing()["tokens"]["generated"]
    with ThreadPoolExecutor(7) as threads:
        ask = [server.stream, server.complete] * 3
        answers = [threads.submit(how, prompt, 24) for how, prompt in zip(ask, prompts, strict=True)]
        seen = []
        while not all(answer.done() for answer in answers):
            seen.append(server.routing()["tokens"]["generated"])
    assert [answer.result() for answer in answers] == alone
    assert seen == sorted(seen)
    assert server.routing()["tokens"]["generated"] == before + 6 * 23


def test_a_mask_can_be_posted(server: Server, tmp_path: Path) -> None:
    """What is served then is the specialist; without, the model again."""
    prompt = "def parse(line):\n"
    with coe.Model(DEMO, n_threads=2) as model:
        profile = coe.profile(model, [prompt * 10])
    mask = unused_experts(profile, 16)
    mask.save(tmp_path / "mask.json")
    coe.prune(DEMO, mask, tmp_path / "specialist.gguf")
    specialist = load(tmp_path / "specialist.gguf", **SIZES)
    expected = specialist(prompt, max_tokens=12, **GREEDY)["choices"][0]["text"]
    whole = server.complete(prompt)
    assert whole != expected
    applied = server.routing("/mask", (tmp_path / "mask.json").read_bytes())
    assert applied == {"mask": {"digest": mask.digest, "keep": 16}}
    counted = server.routing()["tokens"]
    assert server.complete(prompt) == expected
    # What is tried under a mask says nothing of the experts that it drops.
    status = server.routing()
    assert status["tokens"] == counted
    assert status["mask"].pop("tokens") > 11
    assert status["mask"] == applied["mask"]
    assert server.routing("/mask", b"") == {"mask": None}
    assert server.complete(prompt) == whole

    code, why = server.refused("/mask", b'{"format": "something"}')
    assert code == 422
    assert "mask" in why
    other = json.loads((tmp_path / "mask.json").read_bytes()) | {"fingerprint": "0" * 64}
    code, why = server.refused("/mask", json.dumps(other).encode())
    assert code == 422
    assert "model" in why
    assert server.refused("/mask", b" " * (17 << 20))[0] == 413
    assert server.routing()["mask"] is None


def test_counts_are_saved_and_resumed(tmp_path: Path) -> None:
    server = Server(tmp_path, "--save-every", "0.5")
    server.complete("def one():")
    for _ in range(600):
        if (tmp_path / "live.gguf").exists():
            break
        time.sleep(0.1)
    first = coe.RoutingProfile.load(tmp_path / "live.gguf")
    assert first.n_tokens >= 11
    server.complete("class Two:")
    assert "live.gguf" in server.end(signal.SIGTERM)
    whole = coe.RoutingProfile.load(tmp_path / "live.gguf")
    assert whole.n_tokens > first.n_tokens

    status, why = refused_with(tmp_path)
    assert status == 2
    assert "live.gguf" in why

    again = Server(tmp_path, "--resume")
    tokens = again.routing()["tokens"]
    assert sum(tokens.values()) == whole.n_tokens
    again.complete("def three():")
    again.end()
    total = coe.RoutingProfile.load(tmp_path / "live.gguf")
    added = total.n_tokens - whole.n_tokens
    assert added >= 11
    assert (total.histograms >= whole.histograms).all()
    assert [record.tokens for record in total.corpora] == [
        coe.RoutingProfile.load(tmp_path / f"live.{part}.gguf").n_tokens for part in ("prompts", "generated")
    ]


def test_logprobs_are_served(tmp_path: Path) -> None:
    """Those of generated tokens, which llama-cpp-python computes."""
    server = Server(tmp_path, "--logits-all")
    try:
        answer = server.client.completions.create(
            model="demo", prompt="import os\n", max_tokens=3, logprobs=2, temperature=0.0
        )
        found = answer.choices[0].logprobs
        assert found is not None
        assert "".join(found.tokens or []) == answer.choices[0].text
        # The same as if the answer were a prompt's end.
        scored = server.client.completions.create(
            model="demo",
            prompt="import os\n" + answer.choices[0].text,
            max_tokens=0,
            logprobs=2,
            echo=True,
            temperature=0.0,
        )
        again = scored.choices[0].logprobs
        assert again is not None
        assert found.token_logprobs == pytest.approx((again.token_logprobs or [])[-3:], abs=0.05)
        chat = server.client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=3,
            logprobs=True,
            top_logprobs=2,
        )
        assert chat.choices[0].logprobs is not None
    finally:
        server.end()


SCORING: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
"""As lm-evaluation-harness asks for the scores of prompts."""


def scored(server: Server, prompt: Any, **options: Any) -> list[Any]:
    status, answer = server.post("/v1/completions", SCORING | {"prompt": prompt} | options)
    assert status == 200, answer
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return list(answer["choices"])


def test_prompts_are_scored_as_by_the_evaluation(server: Server, tmp_path: Path) -> None:
    """Texts and token ids, several at once and longer than a batch, with and without a mask; all are counted."""
    text = "def parse(line):\n    return line.split('ä€🙂')\n" * 12
    with coe.Model(DEMO, n_threads=2, n_ctx=512) as model:
        tokens = model.tokenize(text).tolist()
        mask = unused_experts(coe.profile(model, [text]), 16)
        own, own_short = log_probabilities(model, tokens), log_probabilities(model, tokens[:5])
        greedy = int(model.logits(tokens)[-1].argmax())
        model.apply(mask)
        own_masked = log_probabilities(model, tokens)
    assert 256 < len(tokens) <= 512

    (of_text,) = scored(server, text)
    of_ids, short = scored(server, [tokens, tokens[:5]], max_tokens=0, logprobs=3)
    assert of_text["text"].startswith(text)
    found = of_text["logprobs"]
    assert len(found["tokens"]) == len(tokens)  # without the BOS, and with one more
    assert found["token_logprobs"][:-1] == pytest.approx(own, abs=1e-4)
    assert max(found["top_logprobs"][-1].values()) == found["token_logprobs"][-1]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if "\ufffd" not in token:
            assert of_text["text"][offset:].startswith(token)
    assert of_ids["logprobs"]["tokens"][0] == "<bos>"
    assert of_ids["logprobs"]["token_logprobs"][0] is of_ids["logprobs"]["top_logprobs"][0] is None
    assert of_ids["logprobs"]["token_logprobs"][1:] == pytest.approx(own, abs=1e-4)
    assert short["logprobs"]["token_logprobs"][1:] == pytest.approx(own_short, abs=1e-4)
    assert all(len(top) in (3, 4) for top in short["logprobs"]["top_logprobs"][1:])
    (next_one,) = server.post("/v1/completions", {"prompt": tokens, "max_tokens": 1, "temperature": 0})[1][
        "choices"
    ]
    assert of_text["text"] == text + next_one["text"]
    assert (
        greedy
        == server.post("/tokenize", {"prompt": next_one["text"], "add_special_tokens": False})[1]["tokens"][0]
    )

    before = server.routing()["tokens"]
    mask.save(tmp_path / "mask.json")
    server.routing("/mask", (tmp_path / "mask.json").read_bytes())
    (masked,) = scored(server, text)
    assert masked["logprobs"]["token_logprobs"][:-1] == pytest.approx(own_masked, abs=1e-4)
    assert np.abs(own - own_masked).max() > 0.1
    status = server.routing()
    assert status["tokens"] == before
    assert status["mask"]["tokens"] == len(tokens)
    server.routing("/mask", b"")
    scored(server, text)
    assert server.routing()["tokens"] == before | {"prompts": before["prompts"] + len(tokens)}
    assert server.routing()["layers"]["0"]["prompts"]["tokens"] == server.routing()["tokens"]["prompts"]


@pytest.mark.parametrize("row", [*FAMILIES, "granitehybrid", "qwen3next"])
def test_scores_are_those_of_every_family(tmp_path: Path, row: str) -> None:
    """Of attention, sliding windows and recurrence, in several batches, and twice in one context."""
    write_random_model(tmp_path / "model.gguf", row)
    llama = load(tmp_path / "model.gguf", n_batch=32, n_ubatch=32, flash_attn=True)
    tokens = np.random.default_rng(0).integers(0, llama._n_vocab, 100).tolist()
    with coe.attach(llama) as capture:
        first, again = predictions(llama, tokens, 3), predictions(llama, tokens, 3)
        assert set(capture.prompts.layer_tokens) == {200}
    with coe.Model(tmp_path / "model.gguf", n_ctx=256, n_batch=32, n_threads=2) as model:
        own, logits = log_probabilities(model, tokens), model.logits(tokens)
    np.testing.assert_allclose(first.log_probabilities, own, atol=1e-4)
    np.testing.assert_array_equal(first.log_probabilities, again.log_probabilities)
    np.testing.assert_array_equal(first.top, np.argsort(-logits, axis=1)[:, :3])


def test_several_prompts_are_answered_in_order(server: Server) -> None:
    prompts = ["def area(", "import os\n", "class Point:"]
    ids = [server.post("/tokenize", {"prompt": prompt})[1]["tokens"] for prompt in prompts]
    alone = [server.complete(prompt, 6) for prompt in prompts]
    for given in (prompts, ids, [prompts[0], ids[1], prompts[2]]):
        status, answer = server.post("/v1/completions", {"prompt": given, "max_tokens": 6, "temperature": 0})
        assert status == 200, answer
        assert [choice["text"] for choice in answer["choices"]] == alone
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    status, answer = server.post(
        "/v1/completions", {"prompt": ids[0][1:], "max_tokens": 1, "temperature": 0, "echo": True}
    )
    assert status == 200
    assert answer["choices"][0]["text"].startswith(prompts[0])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"prompt": [4096]}, "4095"),
        ({"prompt": [[5], [-1]]}, "4095"),
        ({"prompt": [2**62]}, "4095"),
        ({"prompt": [True, False]}, "token ids"),
        ({"prompt": [1.5]}, "token ids"),
        ({"prompt": [[5], []]}, "token ids"),
        ({"prompt": []}, "token ids"),
        ({"prompt": None}, "token ids"),
        ({"prompt": "x " * 600}, "context"),
        ({"prompt": [5] * 513}, "context"),
        ({"prompt": ["x"] * 257}, "256"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": -7}, "max_tokens"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"echo": "perhaps"}, "echo"),
        ({"stream": True}, "stream"),
        ({"temperature": 0.7}, "temperature"),
        ({"grammar": "root ::= [a-z]"}, "grammar"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": False, "max_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_prompts_are_refused(shared: Server, wrong: dict[str, Any], word: str) -> None:
    status, answer = shared.post("/v1/completions", SCORING | {"prompt": "x"} | wrong)
    assert status == 400
    assert word in answer["error"]["message"]
    assert scored(shared, "x")


def test_a_request_may_have_many_tokens_and_no_other_values(shared: Server) -> None:
    status, _ = shared.post("/v1/completions", SCORING | {"prompt": [[5] * 500] * 33})
    assert status == 200
    status, _ = shared.post("/v1/completions", SCORING | {"prompt": [[5] * 512] * 257})
    assert status == 413
    status, _ = shared.post("/v1/completions", SCORING | {"prompt": "x", "stop": ["x"] * 20_000})
    assert status == 413
    status, answer = shared.post("/v1/completions", SCORING | {"prompt": [[5] * 500] * 30, "logprobs": 20})
    assert status == 400
    assert "log-probabilities" in answer["error"]["message"]


def test_the_tokenizer_is_served(shared: Server) -> None:
    """As vLLM does, by which harnesses do without a tokenizer of their own."""
    with urllib.request.urlopen(f"{shared.url}/tokenizer_info") as answer:
        info = json.loads(answer.read())
    assert (info["bos_token"], info["eos_token"], info["add_bos_token"]) == ("<bos>", "<eos>", True)
    text = "def f(ä):\n  '🙂'<eos>"
    plain = shared.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"]
    assert shared.post("/tokenize", {"prompt": text})[1]["tokens"] == [2, *plain]
    assert shared.post("/detokenize", {"tokens": plain}) == (200, {"prompt": text})
    for path, wrong in (("/tokenize", {"prompt": 5}), ("/detokenize", {"tokens": [4096]}), ("/detokenize", {})):
        assert shared.post(path, wrong)[0] == 422


def test_health_needs_no_key(tmp_path: Path) -> None:
    server = Server(tmp_path, key="secret-key")
    try:
        with urllib.request.urlopen(f"{server.url}/health") as answer:
            assert json.loads(answer.read()) == {"status": "ok"}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{server.url}/v1/models")
    finally:
        server.end()


def test_requests_need_the_api_key(tmp_path: Path) -> None:
    server = Server(tmp_path, key="open sesame")
    try:
        assert server.complete("x = ", 2)
        assert sum(server.routing()["tokens"].values()) > 0
        for path, data in (("", None), ("/save", b""), ("/mask", b"")):
            assert server.refused(path, data, "open barley")[0] == 401
            assert server.refused(path, data, "")[0] == 401
        server.client.api_key = "open barley"
        with pytest.raises(openai.AuthenticationError):
            server.complete("x = ", 2)
    finally:
        server.end()


def test_the_stability_of_the_mask_is_shown(tmp_path: Path) -> None:
    server = Server(tmp_path, "--keep", "28", "--stable", "0.5")
    try:
        text = (DEMO.parent / "python.profile.jsonl").read_text()
        for start in range(0, 60_000, 800):
            server.complete(text[start : start + 800], 1)
            if server.routing()["stability"]["stable"]:
                break
        stability = server.routing()["stability"]
        assert stability["stable"]
        last = stability["agreement"][-1]
        assert min(last["half"], last["three_quarters"]) >= stability["threshold"] == 0.5
        assert sum(server.routing()["tokens"].values()) >= last["tokens"] > 8000
    finally:
        server.end()


def test_activation_norms_are_counted_on_request(tmp_path: Path) -> None:
    server = Server(tmp_path, "--stats", "contribution", "--keep", "16")
    try:
        answer = server.complete("def area(", 8)
        assert answer
    finally:
        server.end()
    for name in ("live.gguf", "live.prompts.gguf", "live.generated.gguf"):
        profile = coe.RoutingProfile.load(tmp_path / name)
        assert profile.outputs is not None
        assert ((profile.outputs.norm_sum > 0) == (profile.counts > 0)).all()
    assert coe.build_mask(coe.RoutingProfile.load(tmp_path / "live.generated.gguf"), 16).provenance["method"] == (
        "contribution"
    )
    status, why = refused_with(tmp_path, "--resume")
    assert status == 2
    assert "--stats contribution" in why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "contribution"], "--stats contribution"),
        (["--host", "0.0.0.0"], "key"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--keep", "2"], "4"),
        (["--ctx", "2000000000"], "2000000000"),
        (["--api-key", ""], "key"),
        (["--mask", "missing.json"], "missing.json"),
        (["--resume", "--force"], "--force"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    status, why = refused_with(tmp_path, *options)
    assert status == 2
    assert message in why
    assert not list(tmp_path.iterdir())


def test_a_used_port_is_reported(server: Server, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    status, why = refused_with(tmp_path, "-o", "other.gguf", "--port", port)
    assert status == 1
    assert why.startswith(f"coe-native: 127.0.0.1:{port}: ")


def test_resuming_counts_of_another_model_is_refused(tmp_path: Path) -> None:
    with coe.Model(DEMO, n_threads=2) as model:
        profile = coe.profile(model, ["some text"])
    profile = replace(profile, fingerprint="0" * 64)
    profile.save(tmp_path / "live.prompts.gguf")
    status, why = refused_with(tmp_path, "--resume")
    assert status == 2
    assert re.search(r"live\.gguf.*--resume", why)
    for name in ("live.gguf", "live.generated.gguf"):
        profile.save(tmp_path / name)
    status, why = refused_with(tmp_path, "--resume")
    assert status == 2
    assert re.search(r"live\.gguf.*model", why)
    profile = replace(profile, fingerprint=coe.MoeModel(DEMO).fingerprint)
    for name in ("live.gguf", "live.prompts.gguf", "live.generated.gguf"):
        profile.save(tmp_path / name)
    status, why = refused_with(tmp_path, "--resume")
    assert status == 2
    assert re.search(r"live\.gguf.*sum", why)


def test_a_mask_of_another_model_is_refused(tmp_path: Path) -> None:
    """Refused after the model has been loaded, and with nothing more to say about that."""
    with coe.Model(DEMO, n_threads=2) as model:
        mask = unused_experts(coe.profile(model, ["some text"]), 16)
    mask = replace(mask, fingerprint="0" * 64)
    mask.save(tmp_path / "mask.json")
    status, why = refused_with(tmp_path, "--mask", "mask.json")
    assert status == 2
    assert re.search(r"mask\.json.*model", why)


def test_the_server_stops_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """What nobody waits for any more is not brought to its end; what was counted is saved."""
    server = Server(tmp_path, "--json", "--ctx", "16384", json_output=True)
    n_tokens = 15_000
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(server.complete, "def f():", n_tokens, extra_body={"min_tokens": n_tokens})
        while server.routing()["tokens"]["generated"] < 20:
            assert not answer.done()
        saved = json.loads(server.end())["saved"]
        assert isinstance(answer.exception(), openai.OpenAIError)
    assert 20 < coe.RoutingProfile.load(tmp_path / saved[0]).n_tokens < n_tokens


def test_broken_requests_are_answered_and_not_logged(tmp_path: Path) -> None:
    """The one JSON object stays alone on standard output, and no text of a request is logged."""
    server = Server(tmp_path, "--json", json_output=True)
    chunks = server.client.completions.create(
        model="demo", prompt=SECRET, max_tokens=400, temperature=0.0, stream=True
    )
    next(iter(chunks))
    chunks.close()
    wrong: Any = [{"role": "narrator", "content": f"never say {SECRET}"}]
    with pytest.raises(openai.APIStatusError) as caught:
        server.client.chat.completions.create(model="demo", messages=wrong, max_tokens=4)
    assert caught.value.status_code == 422
    with pytest.raises(openai.APIStatusError):
        server.complete(f"{SECRET} " * 200, 4)  # longer than the context
    assert server.complete("x = ", 2)
    assert json.loads(server.end())["saved"]


def test_other_origins_and_hosts_are_refused(server: Server) -> None:
    """Neither by their origin, nor by a name that leads here."""

    def status_of(headers: dict[str, str], path: str = "/routing") -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{server.url}{path}", headers=headers)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    port = server.url.rpartition(":")[2]
    for path in ("/routing", "/v1/models"):
        assert status_of({}, path) == 200
        assert status_of({"Host": f"localhost:{port}"}, path) == 200
        assert status_of({"Origin": server.url}, path) == 200
        for wrong in ("https://evil.example", "null", "http://localhost.evil.example", "http://["):
            assert status_of({"Origin": wrong}, path) == 403, wrong
        assert status_of({"Host": f"evil.example:{port}"}, path) == 403


def test_environment_variables_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables by which llama-cpp-python's own server is told what to do."""
    monkeypatch.setenv("KV_OVERRIDES", '["gemma4.expert_used_count=int:2"]')
    monkeypatch.setenv("CONFIG_FILE", "/no/such/file")
    monkeypatch.setenv("API_KEY", "unknown to the client")
    server = Server(tmp_path)
    server.complete("x = ", 2)
    assert server.routing()["tokens"]["generated"] == 1
    server.end()


def test_a_run_of_prompts_alone_can_be_resumed(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.complete("x = ", 1)
    server.end()
    assert coe.RoutingProfile.load(tmp_path / "live.generated.gguf").n_tokens == 0
    again = Server(tmp_path, "--resume")
    assert again.routing()["tokens"]["prompts"] > 1
    again.complete("y = ", 3)
    again.end()
    assert coe.RoutingProfile.load(tmp_path / "live.generated.gguf").n_tokens == 2
