"""Plain text for pretraining, as paragraphs of sentences of words (d2l 15.9).

A paragraph is a line of text, split at ` . ` as in d2l, or a pair of SNLI, whose sentences describe the same picture.
Raw text is tokenized by the rules of `tokenization.py` first, so that the same split applies.
"""

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from bert_snli.choices import HUB_ID, WIKITEXT
from bert_snli.data.snli import load_snli
from bert_snli.data.sources import READERS, SAMPLE
from bert_snli.errors import BertSnliError
from bert_snli.files import looks_like_path
from bert_snli.tokenization import SPECIAL_TOKENS, is_uncased, split_text

WIKITEXT_2 = "wikitext-2-v1"
TOKENIZED_WIKITEXT = re.compile(r"wikitext-\d+-v1")  # configurations of WikiText on the Hub; the others are raw text
WIKITEXT_SUFFIX = ".tokens"
TEXT_SUFFIXES = (".txt", ".text", ".md")
SPLIT_FILES = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "test": "test"}
DOCUMENTATION = ("readme", "license", "licence", "copying", "notice", "changelog")  # not read in a folder of text
SNLI_HEADER = b"gold_label\t"
HELD_OUT_SHARE = 0.05  # of the paragraphs, if there is no split to evaluate on


@dataclass(frozen=True)
class Text:
    """Plain text.

    Args:
        splits: rows with the column `text`, or `premise` and `hypothesis`.
        name: the name or path of the text, for messages.
        tokenized: whether tokens have spaces between them already.
    """

    splits: dict[str, Dataset]
    name: str
    tokenized: bool


def open_text(name_or_path: str, config_name: str | None, text_source: str) -> Text:
    """Open a folder of WikiText, text files, a source of SNLI, or a dataset on the Hub with a column `text`."""
    try:
        text = _open_text_files(Path(name_or_path)) or _open_snli(name_or_path, text_source)
    except OSError as error:
        raise BertSnliError(
            f"dataset_name_or_path {name_or_path:.200}: cannot be read ({error.strerror}); give readable text"
        ) from error
    if text is None:
        config_name = config_name or (WIKITEXT_2 if name_or_path == WIKITEXT else None)
        tokenized = name_or_path == WIKITEXT and bool(TOKENIZED_WIKITEXT.fullmatch(str(config_name)))
        return Text(_read_hub(name_or_path, config_name), name_or_path, tokenized)
    if config_name is not None:
        raise BertSnliError(f"dataset_config_name {config_name}: only for the hub; leave it out for {name_or_path}")
    return text


def _open_text_files(path: Path) -> Text | None:
    """Open WikiText's files or other text files; None if there are none, or only tables of SNLI."""
    files = [file for file in sorted(path.iterdir()) if not _is_documentation(file)] if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    wikitext = [file for file in files if file.suffix == WIKITEXT_SUFFIX]
    files = wikitext or [file for file in files if file.suffix in TEXT_SUFFIXES]
    if not files or any(_is_snli_table(file) for file in files):
        return None
    splits = _group_by_split(path, files) if path.is_dir() else {"train": files}
    rows = {split: _read_lines(found, split) for split, found in splits.items()}
    return Text(rows, str(path), tokenized=bool(wikitext))


def _open_snli(name_or_path: str, text_source: str) -> Text | None:
    """Open a source of SNLI; None for another dataset on the Hub."""
    path = Path(name_or_path)
    if path.is_dir() and not any(file.suffix in READERS and not _is_documentation(file) for file in path.rglob("*")):
        raise BertSnliError(
            f"{path}: holds no text to train on (README and LICENSE files are not read); add it as train.txt"
        )
    is_file = path.exists() or path.suffix in {".zip", *READERS, *TEXT_SUFFIXES}
    if not (is_file or name_or_path in (SAMPLE, HUB_ID) or looks_like_path(name_or_path)):
        return None
    splits = load_snli(name_or_path, splits=["train", "validation"], text_source=text_source).splits
    return Text(dict(splits), name_or_path, tokenized=text_source == "parse")


def _is_documentation(file: Path) -> bool:
    return file.name.lower().partition(".")[0] in DOCUMENTATION


def _is_snli_table(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(SNLI_HEADER)) == SNLI_HEADER


def _group_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Find the split of each file by its name. If no name is a split, all files are the train split."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = file.stem.lower().removeprefix("wiki.")
        splits.setdefault(SPLIT_FILES.get(name, "other"), []).append(file)
    if set(splits) == {"other"}:
        return {"train": splits["other"]}
    if "train" not in splits or "other" in splits or any(len(found) > 1 for found in splits.values()):
        names = ", ".join(file.name for file in files)
        raise BertSnliError(
            f"{folder}: {names} must be one file for each split; name the text to train on train{files[0].suffix}, "
            f"the text to evaluate on valid{files[0].suffix}, and move other files away"
        )
    return splits


def _read_lines(files: Sequence[Path], split: str) -> Dataset:
    if not any(file.stat().st_size for file in files):
        raise BertSnliError(f"{files[0]}: holds no text; give a file that has some")
    paths = [glob.escape(str(file)) for file in files]  # `datasets` takes a path for a pattern
    try:
        return load_dataset("text", data_files={split: paths}, split=split)
    except DatasetsError as error:
        reason = _first_line(error.__cause__ or error)
        raise BertSnliError(f"{files[0]}: cannot be read as text ({reason}); save it as UTF-8") from error


def _read_hub(name: str, config_name: str | None) -> dict[str, Dataset]:
    try:
        loaded = load_dataset(name, config_name)
    except Exception as error:  # errors of `datasets`, `huggingface_hub` and `httpx` have no common base class
        raise BertSnliError(
            f"dataset_name_or_path {name}: cannot be loaded from the hub ({_first_line(error)}); "
            f"check the id and the network, or give a file or a folder"
        ) from error
    if not isinstance(loaded, DatasetDict) or any("text" not in rows.column_names for rows in loaded.values()):
        raise BertSnliError(f"dataset_name_or_path {name}: has no column 'text'; give a dataset of plain text")
    if "train" not in loaded:
        raise BertSnliError(f"{name}: has no train split, only {', '.join(loaded)}; choose a dataset that has one")
    return {split: rows.select_columns(["text"]) for split, rows in loaded.items()}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class SentenceSplitter:
    """Split the column `text`, or `premise` and `hypothesis`, into `sentences`, in `Dataset.map(batched=True)`.

    A sentence has single spaces between its tokens. A line without ` . ` is left out. As in d2l, spaces at the ends of
    a line count, so a line of one sentence that ends in ` . ` stays; it can only be the random sentence of a pair.

    Args:
        tokenizer: the rules for raw text; its vocabulary has no effect.
        tokenized: whether tokens have spaces between them already.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokenized: bool):
        self.tokenizer = tokenizer
        self.tokenized = tokenized
        self.uncased = is_uncased(tokenizer)

    def __call__(self, batch: Mapping[str, list[str | None]]) -> dict[str, list[list[str]]]:
        if "text" in batch:
            lines = [self._tokenize(line or "") for line in batch["text"]]
            sentences = [line.strip().split(" . ") for line in lines if " . " in line]
            return {"sentences": [[sentence for sentence in line if sentence.strip()] for line in sentences]}
        tokenized = {text: self._tokenize(text or "").strip() for text in {*batch["premise"], *batch["hypothesis"]}}
        pairs = zip(batch["premise"], batch["hypothesis"], strict=True)
        return {"sentences": [[tokenized[p], tokenized[h]] for p, h in pairs if tokenized[p] and tokenized[h]]}

    def _tokenize(self, line: str) -> str:
        if self.tokenized:
            return line.lower() if self.uncased else line
        return "".join(f"{token} " for token in split_text(self.tokenizer, line))


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs with the column `sentences`, and the name of the split that is evaluated."""

    train: Dataset
    evaluation: Dataset
    eval_split: str


def split_sentences(text: Text, splitter: SentenceSplitter) -> Paragraphs:
    """Split `text` into paragraphs, in their order; a second run is read from the cache.

    The evaluation split is `validation`, else `test`, else the last 5 % of `train`, which are then held out.
    """

    def split(name: str) -> Dataset:
        rows = text.splits[name]
        return rows.map(
            splitter,
            batched=True,
            remove_columns=rows.column_names,
            features=Features({"sentences": List(Value("string"))}),
            desc="Splitting sentences",
        )

    train = split("train")
    eval_split = next((name for name in ("validation", "test") if name in text.splits), "held-out")
    if eval_split == "held-out":
        num_train = max(0, len(train) - max(1, round(HELD_OUT_SHARE * len(train))))
        train, evaluation = train.select(range(num_train)), train.select(range(num_train, len(train)))
    else:
        evaluation = split(eval_split)
    for name, rows in (("train", train), (eval_split, evaluation)):
        if not any(len(sentences) > 1 for sentences in rows["sentences"]):
            raise BertSnliError(
                f"{text.name} ({name}): too few lines of two sentences or more (split at ' . '); give a longer text"
            )
    return Paragraphs(train, evaluation, eval_split)


def build_vocabulary(paragraphs: Dataset, min_freq: int) -> list[str]:
    """Return the special tokens and the words that occur at least `min_freq` times, the most frequent first."""
    counts: Counter[str] = Counter()
    for batch in paragraphs.iter(batch_size=1000):
        for sentences in batch["sentences"]:
            counts.update(word for sentence in sentences for word in sentence.split())
    special = list(SPECIAL_TOKENS.values())
    words = [word for word, count in counts.items() if count >= min_freq and word not in special]
    if not words:
        raise BertSnliError(f"min_freq {min_freq}: no word occurs so often; choose a lower value or a longer text")
    return special + sorted(words, key=lambda word: (-counts[word], word))
