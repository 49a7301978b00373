"""Cut the held-out sets of ``build_corpus.py`` down to what ships with the package.

python package_corpora.py --corpora corpora --out ../../coe_native/demo_data
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

LONGEST_DOCUMENT = 12_000
"""Characters: many documents cut short tell more of a kind of text than a few long ones."""
BUDGET = {"profile": 320_000, "test": 90_000}
"""Bytes of text for each kind."""


def select(lines: list[str], budget: int) -> list[str]:
    """Whole or shortened documents in a seeded random order, until the budget is spent."""
    random.Random(0).shuffle(lines)
    chosen, spent = [], 0
    for line in lines:
        record = json.loads(line)
        record["text"] = record["text"][:LONGEST_DOCUMENT]
        size = len(record["text"].encode())
        if spent + size <= budget:
            chosen.append(json.dumps(record, ensure_ascii=False))
            spent += size
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part, budget in BUDGET.items():
        for source in sorted(arguments.corpora.glob(f"*.{part}.jsonl")):
            documents = select(source.read_text(encoding="utf-8").splitlines(), budget)
            target = arguments.out / source.name
            target.write_text("\n".join(documents) + "\n", encoding="utf-8")
            print(f"{target}: {len(documents)} documents, {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
