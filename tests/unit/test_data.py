"""SNLI from every kind of source, the pair encoder, and the batches."""

from __future__ import annotations

import csv
import json
import pickle
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets.fingerprint import Hasher
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from bert_snli.data import sample
from bert_snli.data.batching import IGNORED_LABEL, GlobalBatchSampler, PaddedPairs, Piece
from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
from bert_snli.data.sample import write_sample
from bert_snli.data.snli import load_snli, read_parse
from bert_snli.data.sources import _extract_member
from bert_snli.data.truncation import truncated_lengths
from bert_snli.errors import BertSnliError
from bert_snli.labels import BOOK_LABELS
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS
from tests.support.d2l_reference import encode_pair

HUB_ORDER = ["entailment", "neutral", "contradiction"]


def rows_of(corpus: Path, split: str = "train") -> list[dict]:
    return [json.loads(line) for line in (corpus / f"snli_1.0_{split}.jsonl").read_text().splitlines()]


def expected_pairs(corpus: Path, split: str = "train") -> list[tuple[str, str, str]]:
    rows = [row for row in rows_of(corpus, split) if row["gold_label"] != "-"]
    return [(row["sentence1"], row["sentence2"], row["gold_label"]) for row in rows]


def pairs_of(split: Dataset) -> list[tuple[str, str, str]]:
    names = split.features["label"].names
    return [(row["premise"], row["hypothesis"], names[row["label"]]) for row in split]


def as_parquet(corpus: Path, folder: Path) -> Path:
    """The corpus as `stanfordnlp/snli` has it: other label numbers, −1 where there is no gold label."""
    features = Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=HUB_ORDER)}
    )
    for split, name in {"train": "train", "dev": "validation", "test": "test"}.items():
        rows = rows_of(corpus, split)
        columns = {
            "premise": [row["sentence1"] for row in rows],
            "hypothesis": [row["sentence2"] for row in rows],
            "label": [HUB_ORDER.index(row["gold_label"]) if row["gold_label"] != "-" else -1 for row in rows],
        }
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"plain_text/{name}-00000-of-00001.parquet")
    return folder


def as_zip(corpus: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in corpus.iterdir():
            archive.write(file, f"snli_1.0/{file.name}")
            archive.writestr(f"__MACOSX/snli_1.0/._{file.name}", "not this one")
    return path


def only(corpus: Path, suffix: str, folder: Path) -> Path:
    folder.mkdir()
    for file in corpus.glob(f"*{suffix}"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["zip", "jsonl", "txt", "parquet"])
def test_every_source_gives_the_same_pairs(kind: str, corpus: Path, tmp_path: Path):
    sources = {
        "zip": lambda: as_zip(corpus, tmp_path / "snli_1.0.zip"),
        "jsonl": lambda: only(corpus, ".jsonl", tmp_path / "jsonl"),
        "txt": lambda: only(corpus, ".txt", tmp_path / "txt"),
        "parquet": lambda: as_parquet(corpus, tmp_path / "hub"),
    }
    snli = load_snli(str(sources[kind]()))
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        expected = expected_pairs(corpus, name)
        assert pairs_of(snli.splits[split]) == expected
        assert snli.num_dropped[split] == len(rows_of(corpus, name)) - len(expected)
    assert snli.num_dropped["train"] > 0
    assert snli.splits["train"].features["label"].names == list(BOOK_LABELS)


def test_labels_are_numbered_as_the_model_numbers_them(corpus: Path):
    numbered = load_snli(str(corpus), splits=["test"], labels=HUB_ORDER).splits["test"]
    assert numbered.features["label"].names == HUB_ORDER
    assert pairs_of(numbered) == expected_pairs(corpus, "test")


def test_parse_gives_the_leaves(corpus: Path):
    split = load_snli(str(corpus), splits=["test"], text_source="parse").splits["test"]
    row = next(row for row in rows_of(corpus, "test") if row["gold_label"] != "-")
    leaves = re.sub(r"[()]", "", row["sentence1_binary_parse"]).split()
    assert split[0]["premise"].split() == leaves
    assert read_parse("( ( A dog ) ( runs . ) )") == "A dog runs ."


def test_sample_is_a_source():
    splits = load_snli("sample").splits
    assert len(splits["train"]) > 1000
    assert set(splits["train"]["label"]) == {0, 1, 2}


def test_sample_of_another_version_of_the_generator_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the folder whose name has no version, nor that of a changed generator."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def load(seed: int) -> list[tuple[str, str, str]]:
        generate = partial(write_sample, num_pairs={"test": 30}, seed=seed)
        monkeypatch.setattr(sample, "write_sample", generate)
        return pairs_of(load_snli("sample", splits=["test"]).splits["test"])

    unversioned = write_sample(tmp_path / "bert_snli" / "sample", num_pairs={"test": 30}, seed=1)
    first = load(seed=0)
    assert first != pairs_of(load_snli(str(unversioned), splits=["test"]).splits["test"])
    assert load(seed=2) == first  # cached
    changed = tmp_path / "sample.py"
    changed.write_text(Path(sample.__file__).read_text() + "# a change\n")
    monkeypatch.setattr(sample, "__file__", str(changed))
    assert load(seed=2) != first


def test_text_that_looks_like_a_missing_value_stays_text(tmp_path: Path):
    words = ["None", "n/a", "NaN", "null", 'a "quoted word', ""]
    with (tmp_path / "snli_1.0_test.txt").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(["gold_label", "sentence1", "sentence2"])
        writer.writerows(["neutral", word, word] for word in words)
    assert load_snli(str(tmp_path), splits=["test"]).splits["test"]["premise"][:] == words


def write_jsonl(folder: Path, rows: list[dict]) -> Path:
    (folder / "snli_1.0_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ROW = {"gold_label": "neutral", "sentence1": "A dog.", "sentence2": "A cat."}


@pytest.mark.parametrize(
    ("rows", "text_source", "message"),
    [
        ([ROW, {**ROW, "gold_label": "maybe"}], "raw", r"label 'maybe' in row 2 is none of entailment, contradiction"),
        ([{**ROW, "gold_label": "-"}], "raw", "no pair with a gold label"),
        ([ROW], "parse", "no column sentence1_binary_parse; it has .*; use --text_source raw"),
        ([{"text": "A dog."}], "raw", "no column sentence1 or premise"),
    ],
)
def test_bad_rows_are_named(rows: list[dict], text_source: str, message: str, tmp_path: Path):
    with pytest.raises(BertSnliError, match=message) as caught:
        load_snli(str(write_jsonl(tmp_path, rows)), splits=["test"], text_source=text_source)
    assert "snli_1.0_test.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("snli_1.0_test.jsonl", b'{"gold_label": "neu', "cannot be read as .jsonl"),
        ("snli_1.0_test.jsonl", b"", "snli_1.0_test.jsonl"),
        ("snli_1.0_test.parquet", b"PAR1 and nothing else", "cannot be read as .parquet"),
        ("notes.md", b"# notes", "no .jsonl, .txt, .tsv, .csv, .parquet file of the test split"),
    ],
)
def test_damaged_sources_are_named(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BertSnliError, match=re.escape(message)):
        load_snli(str(tmp_path), splits=["test"])


@pytest.mark.parametrize(
    "name", ["nowhere/snli_1.0.zip", "./nowhere", "data.parquet", "tests/nowhere", "no-such/dataset"]
)
def test_a_source_that_is_not_there_is_named(name: str):
    with pytest.raises(BertSnliError, match=f"--dataset_name_or_path {name}"):
        load_snli(name, splits=["test"])


def test_an_archive_damaged_inside_is_named(tmp_path: Path):
    (tmp_path / "damaged").mkdir()
    path = as_zip(write_jsonl(tmp_path / "damaged", [ROW]), tmp_path / "snli_1.0.zip")
    path.write_bytes(path.read_bytes().replace(b"A dog.", b"A cog."))
    with pytest.raises(BertSnliError, match="snli_1.0.zip: damaged"):
        load_snli(str(path), splits=["test"])


def test_all_shards_of_a_split_are_read_and_nothing_else(corpus: Path, tmp_path: Path):
    folder = as_parquet(corpus, tmp_path / "hub") / "plain_text"
    (folder / "test-00000-of-00001.parquet").rename(folder / "test-00000-of-00002.parquet")
    (folder / "validation-00000-of-00001.parquet").rename(folder / "test-00001-of-00002.parquet")
    both = expected_pairs(corpus, "test") + expected_pairs(corpus, "dev")
    with zipfile.ZipFile(tmp_path / "hub.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    for source in (tmp_path / "hub", tmp_path / "hub.zip"):
        assert pairs_of(load_snli(str(source), splits=["test"]).splits["test"]) == both
    (folder / "other_test.parquet").write_bytes(b"")
    with pytest.raises(BertSnliError, match="both other_test.parquet and test-00000-of-00002.parquet"):
        load_snli(str(tmp_path / "hub"), splits=["test"])


def test_an_archive_cannot_stand_in_for_another(corpus: Path, tmp_path: Path):
    """Their members agree in name, size and checksum, which whoever makes an archive can bring about."""
    honest, forged = as_zip(corpus, tmp_path / "honest.zip"), tmp_path / "forged.zip"
    forged.write_bytes(honest.read_bytes())
    paths = []
    for archive_path in (forged, honest):
        with zipfile.ZipFile(archive_path) as archive:
            paths.append(_extract_member(archive_path, archive, archive.getinfo("snli_1.0/snli_1.0_test.jsonl")))
    assert paths[0] != paths[1] and paths[0].read_bytes() == paths[1].read_bytes()


def test_a_zip_whose_compressed_bytes_are_damaged_is_named(tmp_path: Path):
    path = tmp_path / "snli_1.0.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("snli_1.0_test.jsonl", json.dumps({**ROW, "sentence1": "A bird. " * 500}))
    content = bytearray(path.read_bytes())
    content[52:60] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(BertSnliError, match="snli_1.0.zip: damaged"):
        load_snli(str(path), splits=["test"])


def pop_from_the_longer(premise: int, hypothesis: int, budget: int) -> tuple[int, int]:
    while premise + hypothesis > budget:
        if premise > hypothesis:
            premise -= 1
        else:
            hypothesis -= 1
    return premise, hypothesis


def keep_the_ratio(premise: int, hypothesis: int, budget: int) -> tuple[int, int]:
    if premise + hypothesis <= budget:
        return premise, hypothesis
    share = Fraction(budget * premise, premise + hypothesis)
    nearest = min(range(budget + 1), key=lambda kept: (abs(kept - share), -kept))  # of two equally near, the larger
    kept = max(min(nearest, budget - min(hypothesis, 1)), min(premise, 1))
    return kept, budget - kept


@pytest.mark.parametrize(("truncation", "naive"), [("longest", pop_from_the_longer), ("ratio", keep_the_ratio)])
def test_truncation_equals_the_plain_way_for_all_short_pairs(truncation: str, naive):
    lengths = [(premise, hypothesis) for premise in range(25) for hypothesis in range(25)]
    for budget in range(2, 20):
        premise, hypothesis = truncated_lengths(*np.array(lengths).T, budget, truncation)
        assert list(zip(premise, hypothesis, strict=True)) == [naive(p, h, budget) for p, h in lengths], budget


@pytest.mark.parametrize(
    ("truncation", "lengths", "expected"),
    [
        ("only_first", (9, 4), (3, 4)),
        ("only_first", (9, 6), (1, 6)),
        ("only_first", (9, 7), "--truncation only_first: a hypothesis of 7 tokens"),
        ("only_second", (4, 9), (4, 3)),
        ("only_second", (8, 9), "--truncation only_second: a premise of 8 tokens"),
        ("do_not_truncate", (4, 3), (4, 3)),
        ("do_not_truncate", (4, 4), "--truncation do_not_truncate: a pair of 8 tokens"),
    ],
)
def test_truncation_of_one_side_and_of_none(truncation: str, lengths: tuple[int, int], expected):
    arrays = [np.array([2, side]) for side in lengths]  # beside a pair that fits
    if isinstance(expected, str):
        with pytest.raises(BertSnliError, match=f"{expected} does not fit; raise max_length"):
            truncated_lengths(*arrays, 7, truncation)
    else:
        premise, hypothesis = truncated_lengths(*arrays, 7, truncation)
        assert (premise[0], hypothesis[0]) == (2, 2) and (premise[1], hypothesis[1]) == expected


def test_numbers_are_stored_in_the_smallest_type_without_padding(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    for size, max_length, ids, lengths in (
        (50, 64, "uint8", "uint8"),
        (60_005, 512, "uint16", "uint16"),
        (70_000, 9, "uint32", "uint8"),
    ):
        tokenizer = build_tokenizer([*SPECIALS, *(f"w{n}" for n in range(size - 5))], model_max_length=512)
        encoded = encode_pairs(pairs, PairEncoder(tokenizer, max_length))
        assert (encoded.features["input_ids"].feature.dtype, encoded.features["length"].dtype) == (ids, lengths)
        assert encoded.features["token_type_ids"].feature.dtype == "uint8"
        assert [len(row["input_ids"]) for row in encoded] == list(encoded["length"])
        assert max(encoded["length"]) <= max_length


LABELS = {
    "numbers": [0, 1, 2, 0, 1],
    "names": ["neutral", "entailment", "contradiction", "neutral", "neutral"],
    "probabilities": [[0.25, 0.5, 0.25]] * 5,
    "lists of several lengths": [[1], [1, 2], [0], [3, 4, 5], [2]],
    "none": None,
}


def pairs_with(label: str) -> Dataset:
    columns = {"premise": ["a b", "c", "a a a", "", "d"], "hypothesis": ["b", "c d", "a", "d", "a b c"]}
    return Dataset.from_dict(columns | ({"label": LABELS[label]} if LABELS[label] else {}))


def letters_encoder() -> PairEncoder:
    return PairEncoder(build_tokenizer([*SPECIALS, *"abcd"], model_max_length=32), 16)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("format_type", [None, "arrow", "numpy", "torch", "pandas"])
def test_map_gives_the_same_rows_in_every_format(format_type: str | None, label: str):
    pairs, encoder = pairs_with(label), letters_encoder()
    encoded = pairs.with_format(format_type).map(encoder, batched=True, batch_size=2, remove_columns=pairs.column_names)
    assert encoded.with_format(None).to_dict() == encode_pairs(pairs, encoder).to_dict()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("format_type", [None, "arrow", "numpy", "torch", "pandas"])
def test_map_gives_the_same_rows_for_a_stream_in_every_format(format_type: str | None, label: str):
    pairs, encoder = pairs_with(label), letters_encoder()
    stream = pairs.to_iterable_dataset().with_format(format_type)
    encoded = stream.map(encoder, batched=True, batch_size=2, remove_columns=pairs.column_names)
    rows = Dataset.from_list(list(encoded.with_format(None)))
    assert rows.to_dict() == encode_pairs(pairs, encoder).to_dict()


def test_encoder_is_safe_when_threads_share_the_tokenizer(corpus: Path):
    """Eight threads encode, while another one calls the tokenizer with padding and truncation."""
    pairs = load_snli(str(corpus), splits=["train"]).splits["train"]
    words = sorted({word for text in pairs["premise"] for word in text.lower().rstrip(".").split()})
    tokenizer = build_tokenizer([*SPECIALS, *words], model_max_length=64)
    encoder = PairEncoder(tokenizer, 32)
    batches = [(pairs["premise"][start : start + 37], pairs["hypothesis"][start : start + 37]) for start in range(200)]
    expected = [encoder.encode(*batch) for batch in batches]
    texts = pairs["premise"][:20]
    padded = tokenizer(texts, padding=True, truncation=True, max_length=7)["input_ids"]
    settings = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
    done = threading.Event()

    def use_tokenizer() -> None:
        while not done.is_set():
            assert tokenizer(texts, padding=True, truncation=True, max_length=7)["input_ids"] == padded

    with ThreadPoolExecutor(9) as threads:
        other = threads.submit(use_tokenizer)
        encoded = [threads.submit(encoder.encode, *batch) for batch in batches]
        results = [future.result() for future in encoded]
        done.set()
        other.result()
    assert results == expected
    assert None not in settings
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == settings


@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_encoder_hash_does_not_depend_on_earlier_calls(text_source: str):
    def hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
        return Hasher.hash(PairEncoder(tokenizer, 32, text_source=text_source))

    tokenizer = build_tokenizer([*SPECIALS, *"abcd"], model_max_length=64)
    unused = hash_of(tokenizer)
    tokenizer(["a b", "c"], padding=True, truncation=True, max_length=9)
    assert hash_of(tokenizer) == unused
    encoder = PairEncoder(tokenizer, 32, text_source=text_source)
    encoder.encode(["a"], ["b"])
    assert Hasher.hash(encoder) == unused
    assert tokenizer.backend_tokenizer.padding and tokenizer.backend_tokenizer.truncation


def test_unpickled_encoder_encodes_the_same():
    encoder = letters_encoder()
    again = pickle.loads(pickle.dumps(encoder))
    assert again.encode(["a b x"], ["c"]) == encoder.encode(["a b x"], ["c"])
    assert Hasher.hash(again) == Hasher.hash(encoder)


@pytest.mark.parametrize("truncation", ["longest", "ratio", "only_first", "only_second"])
def test_ids_are_cut_as_the_lengths_say(truncation: str):
    tokenizer = build_tokenizer([*SPECIALS, *"abcdefgh"], model_max_length=32)
    pair = {"premise": ["a b c d e"], "hypothesis": ["f g h"]}
    p, h = (int(side[0]) for side in truncated_lengths(np.array([5]), np.array([3]), 6, truncation))
    expected = ["<cls>", *"abcde"[:p], "<sep>", *"fgh"[:h], "<sep>"]
    ids = PairEncoder(tokenizer, 9, truncation)(pair)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert (p, h) == {"longest": (3, 3), "ratio": (4, 2), "only_first": (3, 3), "only_second": (5, 1)}[truncation]


@pytest.mark.parametrize("value", [None, 3, "\ud800 a"])
@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_what_is_no_text_is_named(text_source: str, value: object):
    encoder = PairEncoder(build_tokenizer(SPECIALS, model_max_length=16), 16, text_source=text_source)
    with pytest.raises(BertSnliError, match="is not a text that can be written as UTF-8"):
        encoder({"premise": ["a", value], "hypothesis": ["b", "c"]})


def test_a_map_without_batched_is_told_so() -> None:
    pairs = Dataset.from_dict({"premise": ["A man."], "hypothesis": ["A cat."]})
    with pytest.raises(BertSnliError, match="batched=True"):
        pairs.map(PairEncoder(build_tokenizer(SPECIALS, model_max_length=16), 16))


def test_an_empty_dataset_has_all_its_columns(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"].select([])
    encoded = encode_pairs(pairs, PairEncoder(build_tokenizer(SPECIALS, model_max_length=16), 16))
    assert set(encoded.column_names) == {"input_ids", "token_type_ids", "length", "labels"} and len(encoded) == 0


def test_leaves_are_looked_up_as_they_stand():
    vocabulary = [*SPECIALS, "A", "don't", "a", "do", "n't"]
    pair = {"premise": ["A don't"], "hypothesis": ["<sep> x"]}
    for text_source, lower, expected in (
        ("parse", True, [3, 7, 6, 4, 4, 0, 4]),
        ("parse", False, [3, 5, 6, 4, 4, 0, 4]),
        ("raw", True, [3, 7, 8, 9, 4, 4, 0, 4]),
    ):
        tokenizer = build_tokenizer(vocabulary, model_max_length=16, do_lower_case=lower)
        assert PairEncoder(tokenizer, 16, text_source=text_source)(pair)["input_ids"] == [expected]


def check_encoding(pairs: Dataset, leaves: Dataset, max_length: int, text_source: str) -> None:
    """Ids, segments and lengths of every pair equal those of the book's own encoding of its leaves."""
    words = {word for side in ("premise", "hypothesis") for text in leaves[side] for word in text.lower().split()}
    vocabulary = SPECIALS + sorted(words)[: len(words) * 9 // 10]  # so that some are unknown
    ids = {token: number for number, token in enumerate(vocabulary)}
    encoder = PairEncoder(build_tokenizer(vocabulary, model_max_length=512), max_length, text_source=text_source)
    encoded = encode_pairs(pairs, encoder)
    ours, rows = encoded[:], leaves[:]
    assert ours["labels"] == rows["label"]
    for number, sides in enumerate(zip(rows["premise"], rows["hypothesis"], strict=True)):
        expected, segments, length = encode_pair(*(side.lower().split() for side in sides), ids, max_length)
        assert ours["length"][number] == length
        assert ours["input_ids"][number] == expected[:length]
        assert ours["token_type_ids"][number] == segments[:length]


@pytest.mark.parametrize("max_length", [128, 17])
@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_encoding_equals_the_books(text_source: str, max_length: int, corpus: Path):
    pairs = load_snli(str(corpus), splits=["train"], text_source=text_source).splits["train"]
    leaves = load_snli(str(corpus), splits=["train"], text_source="parse").splits["train"]
    check_encoding(pairs, leaves, max_length, text_source)


@pytest.mark.parametrize("max_length", [128, 17])
def test_encoding_equals_the_books_on_real_snli(max_length: int, snli_zip: Path):
    for leaves in load_snli(str(snli_zip), text_source="parse").splits.values():
        check_encoding(leaves, leaves, max_length, "parse")


def test_the_parquet_files_of_the_hub_equal_stanfords_zip(snli_zip: Path, snli_parquet: Path):
    ours, hub = (load_snli(str(source), splits=["test"]) for source in (snli_zip, snli_parquet))
    assert ours.num_dropped == hub.num_dropped == {"test": 176}
    assert pairs_of(ours.splits["test"]) == pairs_of(hub.splits["test"])


def test_a_second_encoding_is_read_from_the_cache(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    first, second = (
        encode_pairs(pairs, PairEncoder(build_tokenizer([*SPECIALS, "a"], model_max_length=64), 32)) for _ in range(2)
    )
    assert first.cache_files == second.cache_files
    assert first._fingerprint == second._fingerprint
    other = encode_pairs(pairs, PairEncoder(build_tokenizer([*SPECIALS, "a"], model_max_length=64), 31))
    assert other._fingerprint != first._fingerprint


HASH = """
from datasets.fingerprint import Hasher
from bert_snli.data.pair_encoding import PairEncoder
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
tokenizer = build_tokenizer([*SPECIAL_TOKENS.values(), *map(str, range(500))], model_max_length=64)
print(Hasher.hash(PairEncoder(tokenizer, 32, text_source="parse")), Hasher.hash(PairEncoder(tokenizer, 32)))
"""


@pytest.mark.slow
def test_every_process_gives_the_encoder_the_same_fingerprint(run_python):
    hashes = {run_python("-c", HASH).stdout for _ in range(2)}
    assert len(hashes) == 1 and len(set(hashes.pop().split())) == 2


@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_several_processes_encode_the_same(text_source: str, corpus: Path):
    pairs = load_snli(str(corpus), splits=["train"], text_source=text_source).splits["train"]
    encoder = PairEncoder(build_tokenizer([*SPECIALS, "man", "."], model_max_length=64), 32, text_source=text_source)
    assert encode_pairs(pairs, encoder, num_proc=2)[:] == encode_pairs(pairs, encoder)[:]


@pytest.mark.parametrize("max_length", [0, 4, 65])
def test_a_length_that_does_not_fit_is_refused(max_length: int):
    with pytest.raises(BertSnliError, match=f"--max_length {max_length}: must be from 5 to 64"):
        PairEncoder(build_tokenizer(SPECIALS, model_max_length=64), max_length)


LENGTHS = np.random.default_rng(0).integers(6, 60, size=1003)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
@pytest.mark.parametrize(("num_passes", "num_processes"), [(1, 1), (1, 2), (3, 2), (1, 4)])
def test_each_row_comes_once_an_epoch_in_the_same_global_batches(strategy: str, num_passes: int, num_processes: int):
    def pieces(process: int) -> list[Piece]:
        sampler = GlobalBatchSampler(
            LENGTHS,
            100,
            seed=1,
            strategy=strategy,
            num_passes=num_passes,
            num_processes=num_processes,
            process_index=process,
        )
        sampler.set_epoch(2)
        assert len(list(sampler)) == len(sampler)
        return list(sampler)

    whole = GlobalBatchSampler(LENGTHS, 100, seed=1, strategy=strategy)
    whole.set_epoch(2)
    by_process = [pieces(process) for process in range(num_processes)]
    for number, batch in enumerate(whole.global_batches()):
        mine = [piece for run in by_process for piece in run[number * num_passes : (number + 1) * num_passes]]
        assert sorted(row for piece in mine if piece.counted for row in piece.rows) == sorted(batch)
    counted = [row for run in by_process for piece in run if piece.counted for row in piece.rows]
    assert sorted(counted) == list(range(len(LENGTHS)))


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = GlobalBatchSampler(LENGTHS, 64, seed=seed)
        sampler.set_epoch(epoch)
        return np.concatenate(sampler.global_batches()).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_an_epoch_can_be_entered_in_the_middle():
    sampler = GlobalBatchSampler(LENGTHS, 100, seed=1, num_passes=2)
    whole = list(sampler)
    sampler.set_epoch(0, first_batch=4)
    assert list(sampler) == whole[8:]
    assert len(sampler) == len(whole) - 8


def padding_waste(strategy: str) -> float:
    batches = GlobalBatchSampler(LENGTHS, 50, seed=1, strategy=strategy).global_batches()
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    return 1 - LENGTHS.sum() / padded


def test_grouping_by_length_saves_padding():
    assert padding_waste("group_by_length") < 0.05 < 0.3 < padding_waste("random")


def test_padding_equals_the_collator_of_transformers(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    tokenizer = build_tokenizer([*SPECIALS[::-1], "man", "."], model_max_length=64)
    encoded = encode_pairs(pairs, PairEncoder(tokenizer, 32)).select(range(10, 30))
    rows = [3, 0, 17, 8]
    expected = DataCollatorWithPadding(tokenizer)(
        [{name: value for name, value in encoded[row].items() if name != "length"} for row in rows]
    )
    ours = PaddedPairs(encoded, tokenizer.pad_token_id)[Piece(rows, counted=True)]
    assert ours.keys() == set(expected.keys())
    for name, value in ours.items():
        assert torch.equal(value, expected[name]), name


def test_a_piece_that_does_not_count_has_no_labels_and_padding_can_be_fixed(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    tokenizer = build_tokenizer(SPECIALS, model_max_length=64)
    padded = PaddedPairs(encode_pairs(pairs, PairEncoder(tokenizer, 32)), tokenizer.pad_token_id, pad_to_length=32)
    batch = padded[Piece([5], counted=False)]
    assert batch["labels"].tolist() == [IGNORED_LABEL]
    assert batch["input_ids"].shape == (1, 32)
