"""Load plain text for pretraining, and split it into paragraphs and sentences (d2l 15.9).

A paragraph is a line of text, which is split at ` . ` as in d2l, or a pair of SNLI, whose sentences describe the same
picture. Raw text is tokenized first (see `tokenization.py`), so that it can be split in the same way.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from bert_snli.choices import HUB_ID, WIKITEXT
from bert_snli.data.snli import load_snli
from bert_snli.data.sources import READERS, SAMPLE, SPLITS, TEXT_SUFFIXES, is_hub_id, load_from_hub, read_files
from bert_snli.errors import BertSnliError
from bert_snli.tokenization import SPECIAL_TOKENS, is_uncased, split_text

WIKITEXT_SUFFIX = ".tokens"
SPLIT_OF_NAME = {name: split for split, names in SPLITS.items() for name in names}
DOCUMENTATION = ("readme", "license", "licence", "copying", "notice", "changelog")  # skipped in a folder of text files


@dataclass(frozen=True)
class Text:
    """Splits with the column `text`, or `premise` and `hypothesis`."""

    splits: dict[str, Dataset]
    name: str  # for messages
    tokenized: bool  # whether spaces already separate the tokens


def open_text(name_or_path: str, config_name: str | None, text_source: str) -> Text:
    """Open a folder of WikiText, text files, a source of SNLI, or a dataset on the Hub with a column `text`."""
    if name_or_path not in (SAMPLE, HUB_ID) and is_hub_id(name_or_path):
        config_name = config_name or ("wikitext-2-v1" if name_or_path == WIKITEXT else None)
        tokenized = name_or_path == WIKITEXT and "raw" not in str(config_name)  # wikitext-2-raw-v1 is raw text
        splits = load_from_hub(name_or_path, config_name)
        if "train" not in splits or any("text" not in rows.column_names for rows in splits.values()):
            what = "has no split 'train' or no column 'text'"
            raise BertSnliError(f"dataset_name_or_path {name_or_path}: {what}; give another")
        texts = {split: rows.select_columns(["text"]) for split, rows in splits.items()}
        return Text(texts, name_or_path, tokenized)
    if config_name is not None:
        raise BertSnliError(f"dataset_config_name {config_name}: only for the Hub; leave it out for {name_or_path}")
    if splits := _find_text_files(Path(name_or_path)):
        rows = {split: read_files(files, split, "text") for split, files in splits.items()}
        return Text(rows, name_or_path, tokenized=splits["train"][0].suffix == WIKITEXT_SUFFIX)
    snli = load_snli(name_or_path, splits=["train", "validation"], text_source=text_source, labels=None)
    return Text(dict(snli.splits), name_or_path, tokenized=text_source == "parse")


def _find_text_files(path: Path) -> dict[str, list[Path]]:
    """Find the text files of each split. Return {} for files of SNLI, because `load_snli` reads them."""
    if not path.is_dir():
        is_text = path.is_file() and path.suffix in (*TEXT_SUFFIXES, WIKITEXT_SUFFIX) and not _is_snli_table(path)
        return {"train": [path]} if is_text else {}
    files = [file for file in sorted(path.rglob("*")) if file.name.lower().partition(".")[0] not in DOCUMENTATION]
    if not any(file.suffix in (*READERS, *TEXT_SUFFIXES, WIKITEXT_SUFFIX) for file in files):
        raise BertSnliError(f"{path}: no text files (README and LICENSE files are not read); add a file train.txt")
    files = [file for file in files if file.parent == path and file.is_file() and not file.name.startswith(".")]
    wikitext = [file for file in files if file.suffix == WIKITEXT_SUFFIX]
    files = wikitext or [file for file in files if file.suffix in TEXT_SUFFIXES]
    return {} if any(map(_is_snli_table, files)) else _group_by_split(path, files)


def _is_snli_table(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(11) == b"gold_label\t"
    except OSError as error:
        raise BertSnliError(f"{file}: {error.strerror}; give a file that can be read") from error


def _group_by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Group files by the split in their name. If no file has the name of a split, all are training text."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(SPLIT_OF_NAME.get(file.stem.lower().removeprefix("wiki."), "other"), []).append(file)
    if set(splits) == {"other"}:
        return {"train": splits["other"]}
    if files and ("train" not in splits or "other" in splits or len(splits) < len(files)):
        names = ", ".join(file.name for file in files)
        raise BertSnliError(
            f"{folder}: the splits of the files {names} are unclear; name the training file train{files[0].suffix} and "
            f"the evaluation file valid{files[0].suffix}, and move all other files away"
        )
    return splits


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs with the column `sentences`, and the name of the split that is evaluated."""

    train: Dataset
    evaluation: Dataset
    eval_split: str


def split_sentences(text: Text, tokenizer: PreTrainedTokenizerBase) -> Paragraphs:
    """Split `text` into paragraphs, in order. `datasets` caches the result.

    The evaluation split is `validation`, else `test`, else the last 5 % of `train`, which are then not trained on.
    """
    eval_split = next((name for name in ("validation", "test") if name in text.splits), "held-out")
    features = Features({"sentences": List(Value("string"))})
    kwargs = {"tokenizer": tokenizer, "tokenized": text.tokenized}
    options = {"batched": True, "features": features, "fn_kwargs": kwargs, "desc": "Splitting sentences"}
    splits = {
        name: rows.map(split_batch, remove_columns=rows.column_names, **options)
        for name, rows in text.splits.items()
        if name in ("train", eval_split)
    }
    train = splits["train"]
    if eval_split == "held-out":
        num_train = max(0, len(train) - max(1, round(0.05 * len(train))))
        train, splits[eval_split] = train.select(range(num_train)), train.select(range(num_train, len(train)))
    evaluation = splits[eval_split]
    for name, rows in (("train", train), (eval_split, evaluation)):
        if not any(len(sentences) > 1 for sentences in rows["sentences"]):
            raise BertSnliError(f"{text.name} ({name}): no line has two sentences, separated by ' . '; give more text")
    return Paragraphs(train, evaluation, eval_split)


def split_batch(
    batch: Mapping[str, list[str | None]], tokenizer: PreTrainedTokenizerBase, tokenized: bool
) -> dict[str, list[list[str]]]:
    """Split the column `text`, or `premise` and `hypothesis`, into `sentences`, whose tokens are separated by spaces.

    Lines without ` . ` are left out. As in d2l, a line with one sentence that ends in ` . ` is not left out, but it can
    only be the random sentence of a pair. The tokenizer splits text that is not `tokenized`; its vocabulary has no
    effect.
    """
    uncased = is_uncased(tokenizer)

    def tokenize(line: str | None) -> str:
        if not tokenized:
            return "".join(f"{token} " for token in split_text(tokenizer, line or ""))
        return (line or "").lower() if uncased else line or ""

    if "text" in batch:
        paragraphs = [line.strip().split(" . ") for line in map(tokenize, batch["text"]) if " . " in line]
        return {"sentences": [[sentence for sentence in line if sentence.strip()] for line in paragraphs]}
    sentences = {text: tokenize(text).strip() for text in {*batch["premise"], *batch["hypothesis"]}}
    pairs = zip(batch["premise"], batch["hypothesis"], strict=True)
    return {"sentences": [[sentences[p], sentences[h]] for p, h in pairs if sentences[p] and sentences[h]]}


def build_vocabulary(paragraphs: Dataset, min_freq: int) -> list[str]:
    """Return the special tokens and the words that occur at least `min_freq` times, the most frequent first."""
    counts: Counter[str] = Counter()
    for batch in paragraphs.iter(batch_size=1000):
        for sentences in batch["sentences"]:
            counts.update(word for sentence in sentences for word in sentence.split())
    special = list(SPECIAL_TOKENS.values())
    words = [word for word, count in counts.items() if count >= min_freq and word not in special]
    if not words:
        raise BertSnliError(f"min_freq {min_freq}: no token occurs that often; give a lower value or a longer text")
    return special + sorted(words, key=lambda word: (-counts[word], word))
