"""The .txt files of SNLI 1.0, which hold the same rows as its .jsonl files."""

from __future__ import annotations

import json
from pathlib import Path

COLUMNS = (
    "gold_label sentence1_binary_parse sentence2_binary_parse sentence1 sentence2 captionID pairID "
    "label1 label2 label3 label4 label5"
).split()


def write_tables(corpus: Path, folder: Path) -> Path:
    """Write each .jsonl file of `corpus` as a .txt file into `folder`."""
    folder.mkdir(exist_ok=True)
    for file in corpus.glob("*.jsonl"):
        lines = ["\t".join(COLUMNS)]
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            row |= {f"label{number}": vote for number, vote in enumerate(row.get("annotator_labels", ()), start=1)}
            lines.append("\t".join(row.get(column, "") for column in COLUMNS))
        (folder / f"{file.stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
