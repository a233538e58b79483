"""Count how often the tokens of raw text equal those of SNLI's parse trees, which must themselves stay unchanged.

    python benchmarks/tokenizer_agreement.py snli_1.0.zip [--show]

Counts both sentences of every row, those without a gold label too. `--show` prints the sentences that differ.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer, split_text

AT_ONCE = 4096


def sentences(archive: zipfile.ZipFile, part: str) -> Iterator[tuple[str, str]]:
    """Yield each raw sentence, and the tokens of its binary parse tree, separated by spaces."""
    with archive.open(f"snli_1.0/snli_1.0_{part}.jsonl") as file:
        for line in io.TextIOWrapper(file, encoding="utf-8"):
            row = json.loads(line)
            for side in ("sentence1", "sentence2"):
                leaves = row[f"{side}_binary_parse"].replace("(", " ").replace(")", " ")
                yield row[side], " ".join(leaves.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--show", action="store_true", help="print the sentences that differ")
    args = parser.parse_args()
    tokenizer = build_tokenizer([*SPECIAL_TOKENS.values()], model_max_length=512)

    def read(texts: Iterable[str]) -> list[str]:
        """Split each text into tokens, separated by spaces."""
        return [" ".join(split_text(tokenizer, text)) for text in texts]

    print("| part | sentences | raw text = leaves | differ | leaves unchanged |")
    print("|---|---|---|---|---|")
    with zipfile.ZipFile(args.data) as archive:
        for part in ("train", "dev", "test"):
            pairs = list(sentences(archive, part))
            different, changed = [], 0
            for start in tqdm(range(0, len(pairs), AT_ONCE), desc=part, leave=False, disable=None):
                raw, leaves = zip(*pairs[start : start + AT_ONCE], strict=True)
                lower = [text.lower() for text in leaves]
                different += [row for row in zip(raw, lower, read(raw), strict=True) if row[1] != row[2]]
                changed += sum(expected != ours for expected, ours in zip(lower, read(leaves), strict=True))
            share = 1 - len(different) / len(pairs)
            idempotent = 1 - changed / len(pairs)
            print(f"| {part} | {len(pairs):,} | {share:.3%} | {len(different)} | {idempotent:.3%} |", flush=True)
            for raw, leaves, ours in different if args.show else ():
                print(f"  raw    {raw}\n  leaves {leaves}\n  ours   {ours}\n")


if __name__ == "__main__":
    main()
