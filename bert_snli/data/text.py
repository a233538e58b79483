"""Plain text to pretrain on, from wherever it lies, as paragraphs of sentences of words (d2l 15.9).

A paragraph is a line of text, cut at ` . ` as the book cuts it; or a pair of SNLI's, whose two sentences are about the
same picture. Text that people typed is tokenized by the rules of `tokenization.py` first, so that the same cut applies.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from bert_snli.choices import HUB_ID, WIKITEXT
from bert_snli.data.snli import load_snli
from bert_snli.data.sources import READERS, SAMPLE
from bert_snli.errors import BertSnliError
from bert_snli.files import looks_like_path
from bert_snli.tokenization import SPECIAL_TOKENS

WIKITEXT_2 = "wikitext-2-v1"
TOKENIZED = re.compile(r"wikitext-\d+-v1")  # its configurations that are; the others are raw
WIKI_FILES = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}
# Files of text whose names say that they are splits, and of what.
TEXT_SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "test": "test"}
TEXT_FILES = (".txt", ".text", ".md")
DOCUMENTATION = ("readme", "license", "licence", "copying", "notice", "changelog")  # file names in a folder of text
SNLI_HEADER = "gold_label\t"
HELD_OUT = 0.05  # of the paragraphs, where there is no other split to evaluate on
SENTENCES = Features({"sentences": List(Value("string"))})


@dataclass(frozen=True)
class Text:
    """Rows of each split, with the column `text`, or `premise` and `hypothesis`; and where they come from.

    `tokenized`: words and marks have spaces between them already.
    """

    splits: dict[str, Dataset]
    where: str
    tokenized: bool


def open_text(name_or_path: str, config_name: str | None, text_source: str) -> Text:
    """Find text: a folder of WikiText, text files, a source of SNLI, or a dataset on the hub with a column `text`.

    Raises:
        BertSnliError: nothing there, no text, no train split, or a `config_name` for what has none.
    """
    try:
        text = _open_local(name_or_path, text_source)
    except OSError as error:
        raise BertSnliError(
            f"--dataset_name_or_path {name_or_path:.200}: cannot be read ({error.strerror}); give text that can"
        ) from error
    if text is None:
        config_name = config_name or (WIKITEXT_2 if name_or_path == WIKITEXT else None)
        tokenized = name_or_path == WIKITEXT and bool(TOKENIZED.fullmatch(str(config_name)))
        return Text(_read_hub(name_or_path, config_name), name_or_path, tokenized)
    if config_name is not None:
        raise BertSnliError(f"--dataset_config_name {config_name}: only for the hub; leave it out for {name_or_path}")
    return text


def _open_local(name_or_path: str, text_source: str) -> Text | None:
    """Text that lies here, or is SNLI's; nothing for another id on the hub."""
    path = Path(name_or_path)
    wiki = {split: path / name for split, name in WIKI_FILES.items() if (path / name).is_file()}
    if wiki:
        _check_has_train(path, wiki, WIKI_FILES["train"])
        return Text({split: _read_lines([file], split) for split, file in wiki.items()}, name_or_path, tokenized=True)
    files = _text_files(path)
    if files:
        splits = _group_by_split(path, files) if path.is_dir() else {"train": files}
        read = {split: _read_lines(found, split) for split, found in splits.items()}
        return Text(read, name_or_path, tokenized=False)
    if path.is_dir() and not any(file.suffix in READERS and not _is_documentation(file) for file in path.rglob("*")):
        raise BertSnliError(
            f"{path}: holds no text to train on (README and LICENSE files are not read); add it as train.txt"
        )
    is_file = path.exists() or path.suffix in {".zip", *READERS, *TEXT_FILES}
    if is_file or name_or_path in (SAMPLE, HUB_ID) or looks_like_path(name_or_path):
        splits = load_snli(name_or_path, splits=["train", "validation"], text_source=text_source).splits
        return Text(dict(splits), name_or_path, tokenized=text_source == "parse")
    return None


def _is_documentation(file: Path) -> bool:
    return file.name.lower().partition(".")[0] in DOCUMENTATION


def _check_has_train(folder: Path, splits: Mapping[str, Path], expected: str) -> None:
    if "train" not in splits:
        names = ", ".join(file.name for file in splits.values())
        raise BertSnliError(f"{folder}: has {names} but no train split; add the text to train on as {expected}")


def _group_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Find the split of each file by its name. Files whose names are no splits are one text to train on.

    Raises:
        BertSnliError: two files of one split, only some names that are splits, or no train split.
    """
    splits: dict[str, Path] = {}
    others = []
    for file in files:
        split = TEXT_SPLITS.get(file.stem.lower())
        if split is None:
            others.append(file)
        elif split in splits:
            raise BertSnliError(
                f"{folder}: both {splits[split].name} and {file.name} are the {split} split; keep one of them"
            )
        else:
            splits[split] = file
    if not splits:
        return {"train": others}
    if others:
        raise BertSnliError(
            f"{folder}: {next(iter(splits.values())).name} is a split but {others[0].name} is none; name the text to "
            "train on train.txt and move other files away"
        )
    _check_has_train(folder, splits, "train.txt")
    return {split: [file] for split, file in splits.items()}


def _text_files(path: Path) -> list[Path]:
    """The files of plain text that `path` is or holds; none where they are SNLI's."""
    files = [file for file in sorted(path.iterdir()) if not _is_documentation(file)] if path.is_dir() else [path]
    files = [file for file in files if file.suffix in TEXT_FILES and file.is_file() and not file.name.startswith(".")]
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(SNLI_HEADER)) == SNLI_HEADER.encode():
                return []
    return files


def _read_lines(files: Sequence[Path], split: str) -> Dataset:
    if not any(file.stat().st_size for file in files):
        raise BertSnliError(f"{files[0]}: holds no text; give a file with some")
    try:
        paths = [glob.escape(str(file)) for file in files]  # `datasets` takes a path for a pattern
        return load_dataset("text", data_files={split: paths}, split=split)
    except Exception as error:  # a damaged file ends in any of the builders' many errors
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        remedy = "save it as UTF-8" if isinstance(cause, UnicodeDecodeError) else "give a file of text"
        raise BertSnliError(f"{files[0]}: cannot be read as text ({reason}); {remedy}") from error


def _read_hub(name: str, config_name: str | None) -> dict[str, Dataset]:
    try:
        loaded = load_dataset(name, config_name)
    except Exception as error:  # anything from no network to a repository that is no dataset
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BertSnliError(
            f"--dataset_name_or_path {name}: cannot be loaded from the hub ({reason}); "
            f"check the id and the network, or give a file or a folder"
        ) from error
    if not isinstance(loaded, DatasetDict) or any("text" not in rows.column_names for rows in loaded.values()):
        raise BertSnliError(f"--dataset_name_or_path {name}: has no column 'text'; give a dataset of plain text")
    if "train" not in loaded:
        raise BertSnliError(f"{name}: has no train split, only {', '.join(loaded)}; choose a dataset that has one")
    return {split: rows.select_columns(["text"]) for split, rows in loaded.items()}


class SentenceSplitter:
    """A function for `Dataset.map(batched=True)`: `text`, or `premise` and `hypothesis`, to `sentences`.

    These are words with single spaces between them. A line without ` . ` is left out; as in the book, the spaces at its
    ends count, so a single sentence that ends in ` . ` stays, to be drawn as what does not follow.
    """

    def __init__(self, rules: PreTrainedTokenizerBase, tokenized: bool):
        self.rules = rules  # of which the vocabulary does not matter
        self.tokenized = tokenized
        self.lower_case = rules.backend_tokenizer.normalizer.normalize_str("A") == "a"

    def __call__(self, batch: Mapping[str, list[str | None]]) -> dict[str, list[list[str]]]:
        if "text" in batch:
            lines = [self._words(line or "") for line in batch["text"]]
            paragraphs = [
                [sentence for sentence in line.strip().split(" . ") if sentence.strip()]
                for line in lines
                if " . " in line
            ]
        else:
            known: dict[str | None, str] = {}
            for text in (*batch["premise"], *batch["hypothesis"]):
                if text not in known:
                    known[text] = self._words(text or "").strip()
            pairs = zip(batch["premise"], batch["hypothesis"], strict=True)
            paragraphs = [[known[text] for text in pair] for pair in pairs if all(known[text] for text in pair)]
        return {"sentences": paragraphs}

    def _words(self, line: str) -> str:
        if self.tokenized:
            return line.lower() if self.lower_case else line
        backend = self.rules.backend_tokenizer
        normal = backend.normalizer.normalize_str(line)
        return "".join(f"{word} " for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs to train and evaluate on, with the column `sentences`, and the name of the evaluation split."""

    train: Dataset
    evaluation: Dataset
    eval_split: str


def split_sentences(text: Text, splitter: SentenceSplitter, *, num_proc: int | None = None) -> Paragraphs:
    """The paragraphs of `text`, in their order; a second run is read from the cache.

    Evaluation is on `validation`, else on `test`, else on the last twentieth of `train`, which is then held out.

    Raises:
        BertSnliError: there are too few.
    """
    there = [name for name in WIKI_FILES if name in text.splits]
    split = {
        name: text.splits[name].map(
            splitter,
            batched=True,
            num_proc=num_proc,
            remove_columns=text.splits[name].column_names,
            features=SENTENCES,
            desc="Splitting sentences",
        )
        for name in there[:2]
    }
    train, eval_split = split["train"], there[1] if len(there) > 1 else "held-out"
    if len(there) > 1:
        evaluation = split[eval_split]
    else:
        cut = max(0, len(train) - max(1, round(HELD_OUT * len(train))))
        train, evaluation = train.select(range(cut)), train.select(range(cut, len(train)))
    for name, rows in (("train", train), (eval_split, evaluation)):
        if not any(len(sentences) > 1 for sentences in rows["sentences"]):
            raise BertSnliError(
                f"{text.where} ({name}): too few lines of two sentences or more (cut at ' . '); give a longer text"
            )
    return Paragraphs(train, evaluation, eval_split)


def count_words(paragraphs: Dataset, min_freq: int) -> list[str]:
    """The special tokens, then the words that come at least `min_freq` times, the most frequent first.

    Raises:
        BertSnliError: none does.
    """
    special = list(SPECIAL_TOKENS.values())
    counter = Tokenizer(models.WordLevel({}, unk_token=SPECIAL_TOKENS["unk_token"]))
    counter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=min_freq, special_tokens=special, show_progress=False
    )
    counter.train_from_iterator(_sentences(paragraphs), trainer)
    ids = counter.get_vocab()
    if len(ids) == len(special):
        raise BertSnliError(f"--min_freq {min_freq}: no word comes so often; give less, or a longer text")
    return sorted(ids, key=lambda word: ids[word])


def _sentences(paragraphs: Dataset) -> Iterator[list[str]]:
    for batch in paragraphs.iter(batch_size=1000):
        yield [sentence for sentences in batch["sentences"] for sentence in sentences]
