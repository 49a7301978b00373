"""Train the demo model's tokenizer: BPE over bytes, in the form that Gemma 4 uses.

Spaces become U+2581, text is split at runs of newlines only, and a character without a token of its
own falls back to its bytes. llama.cpp's ``gemma4`` tokenizer does the same, token for token.

    python tokenizer.py --corpora corpora --out tokenizer
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCAB_SIZE = 4096
BYTES_PER_KIND = 6_000_000

# Merges are learned inside words only. They are applied to whole lines, as Gemma does: the same result
# wherever no merge spans two words.
WORDS = Regex(r"▁+(?=▁)|▁?[A-Za-z]+|▁?[0-9]|▁?[^\sA-Za-z0-9▁]+|\n+|▁|\s+")
LINES = Regex(r"\n+")


def texts(corpora: Path) -> Iterator[str]:
    for path in sorted(corpora.glob("*.train.jsonl")):
        documents = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
        stride = max(1, sum(map(len, documents)) // BYTES_PER_KIND)
        yield from documents[::stride]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(WORDS, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL]
        + [AddedToken(token, special=False) for token in BYTES],
        limit_alphabet=200,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(arguments.corpora), trainer)

    # The trainer registers byte tokens as added tokens, which would match "<0x41>" in a text. Keep them
    # as plain entries of the vocabulary, which is all that byte fallback needs.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(LINES, "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(arguments.out)
    print(f"{arguments.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
