"""The commands that judge, show and sample, as a user runs them, on the demo's model and texts."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_cli import ENVIRONMENT, ok, report, run
from test_humaneval import ADD, as_lines
from test_importing import histograms, torch_save
from test_masking import make_profile

import coe_native as coe
from coe_native.recipes import demo

RUN = ("--threads", "2")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short texts of two kinds, and profiles of them."""
    shop = tmp_path_factory.mktemp("shop")
    for kind in ("python", "prose"):
        for part in ("profile", "test"):
            documents = demo.corpus(kind, part).documents[:2]
            text = "\n".join(str(document.content)[:6000] for document in documents)
            (shop / f"{kind}.{part}.txt").write_text(text)
        ok("profile", demo.MODEL, "-c", shop / f"{kind}.profile.txt", "-o", shop / f"{kind}.gguf", *RUN)
    return shop


def test_a_sweep_says_how_small_it_can_be(shop: Path, tmp_path: Path) -> None:
    line = (
        *("sweep", demo.MODEL, "--profile", shop / "python.gguf", "--keep", "16,24", "--method", "utility"),
        *("--method", "frequency", "--text", f"own={shop / 'python.test.txt'}"),
        *("--text", f"other={shop / 'prose.test.txt'}", "--fit", "30MiB", *RUN),
    )
    told = report(*line, "--max-loss", "1000%", "-o", tmp_path / "s.json", "--plot", tmp_path / "s.html")
    assert told["smallest"] == {"utility": 16, "frequency": 16}
    assert [point["keep"] for point in told["points"]] == [16, 24, 16, 24]
    assert told["memory"]["16"] < 30 << 20 < told["memory"]["24"] < told["memory"]["32"]
    saved = json.loads((tmp_path / "s.json").read_text())
    assert {key: told[key] for key in saved} == saved
    assert "How small it can be" in (tmp_path / "s.html").read_text()
    rows = list(csv.DictReader(io.StringIO(ok(*line, "--csv").out)))
    assert len(rows) == 2 * 5
    assert {row["text"] for row in rows} == {"own", "other"}
    shown = ok(*line, "--max-loss", "0.01%")
    assert "every keep that was tried costs more than 0.0% perplexity on own" in shown.err
    assert all(len(line) < 100 for line in shown.out.splitlines()), "a terminal is not wider"
    assert "the largest that fits into 30.0 MiB with a context of 8192 tokens is keep 16" in shown.err
    assert "nothing that was tried fits into 5.0 MiB" in ok(*line[:-4], "--fit", "5MiB", *RUN).err
    again = run(*line, "-o", tmp_path / "s.json")
    assert again.status == 2
    assert "exists" in again.err
    # One text is judged as eval judges it.
    mask = tmp_path / "m.json"
    ok("mask", shop / "python.gguf", "--keep", 16, "-o", mask)
    judged = report(
        *("eval", demo.MODEL, "--mask", mask, "--reference", demo.MODEL, *RUN),
        *("--text", shop / "python.test.txt"),
    )["texts"][0]
    point = told["points"][0]["evaluations"][0]
    for name in ("perplexity", "kl_divergence", "top1_agreement"):
        assert judged[name] == pytest.approx(point[name], rel=1e-3)


def test_as_many_experts_as_fit(shop: Path, tmp_path: Path) -> None:
    size = ("--fit", "28MiB", "--ctx", "8192")
    shown = report("inspect", demo.MODEL, *size)
    keep = shown["specialist"]["keep"]
    assert 4 < keep < 32
    assert sum(shown["specialist"]["memory"][part] for part in ("weights", "context", "compute")) <= 28 << 20
    made = report("mask", shop / "python.gguf", *size, "--model", demo.MODEL, "-o", tmp_path / "m.json")
    assert made["keep"] == keep
    cut = report("prune", demo.MODEL, "--profile", shop / "python.gguf", *size, "-o", tmp_path / "out.gguf")
    assert cut["keep"] == keep
    by_mask = report("prune", demo.MODEL, "--mask", tmp_path / "m.json", "-o", tmp_path / "same.gguf")
    assert by_mask["bytes"] == cut["bytes"]
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    done = ok(
        *("specialise", demo.MODEL, "-c", shop / "python.profile.txt", "--fit", "28MiB"),
        *("-o", tmp_path / "s.gguf", *RUN),
    )
    assert f"{keep} of 32 experts a layer fit into 28.0 MiB" in done.err


def test_several_domains_make_a_mask(shop: Path, tmp_path: Path) -> None:
    profiles = [shop / "python.gguf", shop / "prose.gguf"]
    for combine in ("sum", "max"):
        ok("mask", *profiles, "--combine", combine, "--keep", 16, "-o", tmp_path / f"{combine}.json")
        made = coe.ExpertMask.load(tmp_path / f"{combine}.json")
        loaded = [coe.RoutingProfile.load(path) for path in profiles]
        assert made.kept == coe.build_mask(loaded, 16, combine=combine).kept


def test_the_report_command_writes_a_page(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    told = report("report", shop / "python.gguf", shop / "prose.gguf", "-o", out, "--keep", "8")
    assert told["bytes"] == out.stat().st_size
    page = out.read_text()
    for text in ("What python needs", "Mask: prose", "How far domains overlap", "keep 8, digest"):
        assert text in page


def test_a_profile_that_becomes_stable(shop: Path, tmp_path: Path) -> None:
    short = ok(
        "profile", demo.MODEL, "-c", shop / "prose.profile.txt", "--until-stable", "0.9", "-o", tmp_path / "s.gguf"
    )
    assert "too short to say whether the mask is stable" in short.err
    texts = [
        str(document.content)[:3000] for kind in demo.KINDS for document in demo.corpus(kind, "profile").documents
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::6]))
    line = ("profile", demo.MODEL, "-c", tmp_path / "texts.jsonl", *RUN)
    told = report(*line, "--until-stable", "0.01", "-o", tmp_path / "a.gguf")
    assert told["stable"]
    assert told["tokens"] == told["agreement"][-1]["tokens"] < 16_000
    assert (
        "the mask is stable: it agrees to 0.01 or more"
        in ok(*line, "--until-stable", "0.01", "-o", tmp_path / "a2.gguf").err
    )
    done = ok(*line, "--until-stable", "1", "--keep", "30", "-o", tmp_path / "b.gguf")
    assert "agreement of the mask" in done.err
    whole = report(*line, "-o", tmp_path / "c.gguf")
    assert whole["stable"] is None
    assert "ended before the mask was stable" in done.err


def test_corpora_are_counted_and_sampled(shop: Path, tmp_path: Path) -> None:
    texts = [shop / "python.test.txt", shop / "python.test.txt", shop / "prose.test.txt"]
    told = report("corpus", "stats", *texts, "--model", demo.MODEL)["sources"]
    assert sum(source["documents"] for source in told) == 3
    assert sum(source["duplicates"] for source in told) == 1
    with coe.Model(demo.MODEL, n_ctx=32, tokenizer_only=True) as model:
        n_tokens = [len(model.tokenize(path.read_text())) for path in texts]
    assert sum(source["tokens"] for source in told) == sum(n_tokens)
    assert "near duplicates" in ok("corpus", "stats", *texts).out
    rows = [{"question": f"What is {i} and {i + 1} and {i * i}?", "category": f"c{i % 3}"} for i in range(30)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("corpus", "sample", tmp_path / "q.jsonl", "--by", "category", "--cap", 4, "-o", tmp_path / "s.jsonl")
    assert report(*line)["strata"] == {"c0": 4, "c1": 4, "c2": 4}
    first = (tmp_path / "s.jsonl").read_bytes()
    assert report(*line, "--force")["documents"] == 12
    assert (tmp_path / "s.jsonl").read_bytes() == first
    ok("profile", demo.MODEL, "-c", tmp_path / "s.jsonl", "-o", tmp_path / "p.gguf", *RUN)


def test_other_tools_files_are_taken_over(tmp_path: Path) -> None:
    counts = torch_save(tmp_path / "counts.pt", histograms(6, 32))
    mask = torch_save(tmp_path / "mask.pt", [np.arange(16)] * 6)
    ok("import", counts, "--model", demo.MODEL, "-o", tmp_path / "p.gguf")
    ok("mask", tmp_path / "p.gguf", "--method", "rank-weighted", "--keep", 16, "-o", tmp_path / "m.json")
    told = report("import", mask, "--experts", 32, "-o", tmp_path / "m2.json")
    assert (told["keep"], told["experts"], told["model"]) == (16, 32, None)
    for made in ("m.json", "m2.json"):
        ok("prune", demo.MODEL, "--mask", tmp_path / made, "-o", tmp_path / f"{made}.gguf")
        ok("compare", tmp_path / "m.json", tmp_path / "m.json")


def test_the_demo_model_solves_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(as_lines([ADD]))
    line = (
        *("humaneval", demo.MODEL, "--problems", tmp_path / "p.jsonl", "--raw", "--max-tokens", 30, "--ctx", 256),
        *("-o", tmp_path / "r.jsonl", *RUN),
    )
    done = ok(*line)
    assert "1 answer, not yet run" in done.err
    assert not done.out
    told = report(*line, "--resume", "--allow-code-execution", "--allow-unisolated")
    assert (told["problems"], told["judged"], told["passed"], told["pass@1"]) == (1, 1, 0, 0.0)


def test_nothing_runs_where_it_cannot_be_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless that is allowed: then a warning comes first, and the results say so."""
    (tmp_path / "p.jsonl").write_text(as_lines([ADD]))
    line = (
        *("humaneval", demo.MODEL, "--problems", tmp_path / "p.jsonl", "--raw", "--max-tokens", 10, "--ctx", 256),
        *("-o", tmp_path / "r.jsonl", "--allow-code-execution", *RUN),
    )
    monkeypatch.setitem(ENVIRONMENT, "PATH", "/nowhere")
    refused = run(*line)
    assert refused.status == 1
    assert len(refused.err.splitlines()) == 1
    assert "package bubblewrap" in refused.err or sys.platform != "linux"
    assert "--allow-unisolated" in refused.err
    assert not (tmp_path / "r.jsonl").exists()
    allowed = ok(*line, "--allow-unisolated")
    first, *_, last = allowed.err.splitlines()
    assert first.startswith("warning: programs that the model writes run unisolated")
    assert "r.jsonl" in last
    assert json.loads((tmp_path / "r.jsonl").read_text())["isolated"] is False
    assert report(*line, "--allow-unisolated", "--resume")["isolated"] is False


def test_a_modelfile_is_printed_and_written(tmp_path: Path) -> None:
    shown = ok("modelfile", demo.MODEL, "--domain", "python").out
    ok("modelfile", demo.MODEL, "--domain", "python", "-o", tmp_path / "Modelfile")
    assert (tmp_path / "Modelfile").read_text() == shown
    told = report("modelfile", demo.MODEL, "--system", "Be brief.")
    assert told["system"] == "Be brief."
    assert told["prefill"] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mask python.gguf -o out.json", "--keep NUMBER or --fit SIZE"),
        ("mask python.gguf --keep 4 --fit 1G -o out.json", "--keep NUMBER or --fit SIZE"),
        ("mask python.gguf --fit 1G -o out.json", "--model MODEL"),
        ("mask python.gguf --fit 1X -o out.json", "is no size"),
        ("mask python.gguf --fit 12 -o out.json", "is no size of at least 1M"),
        ("mask python.gguf prose.gguf --keep 8 -o out.json", "--combine sum or --combine max"),
        ("mask python.gguf --combine max --keep 8 -o out.json", "one alone goes without"),
        ("mask other.gguf python.gguf --combine max --keep 4 -o out.json", "is of another model"),
        ("mask other.gguf --keep 4 --model DEMO -o out.json", "was made for another model"),
        ("inspect DEMO --fit 2M", "does not fit into 1 MiB"),
        ("inspect DEMO --fit 20M --keep 8", "give one of them"),
        ("prune DEMO -o out.gguf", "needs --mask MASK, or --profile PROFILE"),
        ("prune DEMO --profile python.gguf --mask mask.json -o out.gguf", "and not both"),
        ("prune DEMO --mask mask.json --keep 4 -o out.gguf", "--keep and --fit go with --profile"),
        ("sweep DEMO --profile python.gguf --text a=python.test.txt --text a=prose.test.txt", "one name"),
        ("sweep DEMO --profile python.gguf --text =python.test.txt", "is no text"),
        ("sweep DEMO --profile python.gguf --text python.test.txt --keep 4,x", "is no list of numbers"),
        ("sweep DEMO --profile python.gguf --text python.test.txt --keep 2", "keep must be from 4"),
        ("sweep DEMO --profile python.gguf --text python.test.txt --max-loss much", "is no share"),
        ("sweep DEMO --profile python.gguf --text python.test.txt --max-loss 10", "write it like 10%"),
        ("sweep DEMO --profile python.gguf --text python.test.txt --csv --json", "give one of them"),
        ("sweep DEMO --profile python.gguf --text python.test.txt -o x.html --plot x.html", "at once"),
        ("report python.gguf --mask mask.json --keep 4 -o out.html", "give one of them"),
        ("inspect DEMO --ctx 2000000000", "ask for 4194304 at most"),
        ("corpus sample python.test.txt --cap 1 -o out.txt", "ends in .jsonl"),
        ("humaneval DEMO --problems p.jsonl --raw --ctx 16 -o out.jsonl", "problem Test/0: needs"),
        ("humaneval DEMO --problems p.jsonl --raw --resume -o mask.json", "no file of answers"),
        ("sweep DEMO --profile other.gguf --text python.test.txt --keep 4", "made for another model"),
        ("sweep DEMO --profile python.gguf --text python.test.txt -o python.gguf --force", "is an input"),
        ("report python.gguf -o python.gguf --force", "is an input"),
        ("report python.gguf other.gguf -o out.html", "is of another model"),
        ("report python.gguf --sweep mask.json -o out.html", "is not a sweep"),
        ("profile DEMO -c python.test.txt --keep 4 -o out.gguf", "--keep goes with --until-stable"),
        ("profile DEMO -c python.test.txt --until-stable 2 -o out.gguf", "until-stable"),
        ("profile DEMO -c python.test.txt --until-stable 0.9 --keep 2 -o out.gguf", "keep must be from 4"),
        ("profile DEMO -c python.test.txt --until-stable 0.9 --shard 1/2 -o out.gguf", "a shard is all"),
        ("corpus stats missing.txt", "missing.txt"),
        ("corpus stats python.test.txt --model other.gguf", "other.gguf"),
        ("corpus sample python.test.txt -o out.jsonl", "--size in all, or --cap"),
        ("corpus sample mask.jsonl --cap 1 -o mask.jsonl --force", "is an input"),
        ("corpus sample mask.jsonl --by subject --cap 1 -o out.jsonl", "subject"),
        ("import mask.json -o out.json", "no file of torch.save"),
        ("import DEMO -o out.json", "no file of llama-imatrix"),
        ("import missing.pt -o out.json", "missing.pt"),
        ("humaneval DEMO --problems mask.json -o out.jsonl", "mask.json:1"),
        ("humaneval DEMO --problems p.jsonl -o out.jsonl", "has no chat template"),
        ("humaneval DEMO --problems p.jsonl --raw --temperature -1 -o out.jsonl", "temperature"),
        ("humaneval DEMO --problems p.jsonl -o p.jsonl --force", "is an input"),
        ("modelfile DEMO --domain cooking", "no system prompt"),
        ("modelfile other.gguf", "other.gguf"),
    ],
)
def test_bad_input_is_one_line(shop: Path, line: str, said: str) -> None:
    if not (shop / "mask.json").exists():
        ok("mask", shop / "python.gguf", "--keep", 16, "-o", shop / "mask.json")
        make_profile(1).save(shop / "other.gguf")
        (shop / "mask.jsonl").write_text('{"text": "one", "topic": "a"}\n')
        (shop / "p.jsonl").write_text(as_lines([ADD]))
    before = {path: path.read_bytes() for path in shop.iterdir()}
    done = run(*line.replace("DEMO", str(demo.MODEL)).split(), cwd=shop)
    assert done.status == 2, done
    assert said in done.err, done.err
    assert done.err.startswith("coe-native: ") or done.err.startswith("Usage: ")
    assert not done.out
    assert {path: path.read_bytes() for path in shop.iterdir()} == before
