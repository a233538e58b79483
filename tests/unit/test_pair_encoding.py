"""The pair encoder: token ids, segments, lengths, labels, and its use in `datasets.map`."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from bert_snli.data.pair_encoding import PairEncoder, TokenSequences, encode_pairs, pack_pairs
from bert_snli.data.snli import load_snli
from bert_snli.errors import BertSnliError
from bert_snli.modeling.pair_truncation import truncated_lengths
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS
from tests.support.d2l_reference import encode_pair

LABELS = {
    "ids": [0, 1, 2, 0, 1],
    "names": ["neutral", "entailment", "contradiction", "neutral", "neutral"],
    "probabilities": [[0.25, 0.5, 0.25]] * 5,
    "lists of several lengths": [[1], [1, 2], [0], [3, 4, 5], [2]],
    "none": None,
}


def assert_encoding_equals_d2l(pairs: Dataset, leaves: Dataset, max_length: int, text_source: str) -> None:
    """Compare ids, segments and lengths of every pair with d2l's encoding of the parse tokens `leaves`."""
    words = {word for side in ("premise", "hypothesis") for text in leaves[side] for word in text.lower().split()}
    vocabulary = SPECIALS + sorted(words)[: len(words) * 9 // 10]  # some tokens are unknown
    ids = {token: number for number, token in enumerate(vocabulary)}
    encoder = PairEncoder(build_tokenizer(vocabulary, model_max_length=512), max_length, text_source=text_source)
    encoded = encode_pairs(pairs, encoder)
    found, rows = encoded[:], leaves[:]
    assert found["labels"] == rows["label"]
    for number, sides in enumerate(zip(rows["premise"], rows["hypothesis"], strict=True)):
        expected, segments, length = encode_pair(*(side.lower().split() for side in sides), ids, max_length)
        assert found["length"][number] == length
        assert found["input_ids"][number] == expected[:length]
        assert found["token_type_ids"][number] == segments[:length]


@pytest.mark.parametrize("max_length", [128, 17])
@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_encoding_equals_d2l(text_source: str, max_length: int, corpus: Path):
    pairs = load_snli(str(corpus), splits=["train"], text_source=text_source).splits["train"]
    leaves = load_snli(str(corpus), splits=["train"], text_source="parse").splits["train"]
    assert_encoding_equals_d2l(pairs, leaves, max_length, text_source)


@pytest.mark.parametrize("split", ["validation", "test", pytest.param("train", marks=pytest.mark.slow)])
@pytest.mark.parametrize("max_length", [128, 17])
def test_encoding_equals_d2l_on_real_snli(max_length: int, split: str, snli_zip: Path):
    leaves = load_snli(str(snli_zip), splits=[split], text_source="parse").splits[split]
    assert_encoding_equals_d2l(leaves, leaves, max_length, "parse")


def test_encoded_columns_use_the_smallest_integer_type_without_padding(corpus: Path):
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


def make_pairs(label: str) -> Dataset:
    columns = {"premise": ["a b", "c", "a a a", "", "d"], "hypothesis": ["b", "c d", "a", "d", "a b c"]}
    return Dataset.from_dict(columns | ({"label": LABELS[label]} if LABELS[label] else {}))


def make_letter_encoder() -> PairEncoder:
    return PairEncoder(build_tokenizer([*SPECIALS, *"abcd"], model_max_length=32), 16)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("format_type", [None, "arrow", "numpy", "torch", "pandas"])
def test_map_gives_the_same_rows_in_each_format(format_type: str | None, label: str):
    pairs, encoder = make_pairs(label), make_letter_encoder()
    encoded = pairs.with_format(format_type).map(encoder, batched=True, batch_size=2, remove_columns=pairs.column_names)
    assert encoded.with_format(None).to_dict() == encode_pairs(pairs, encoder).to_dict()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("format_type", [None, "arrow", "numpy", "torch", "pandas"])
def test_map_of_an_iterable_dataset_gives_the_same_rows_in_each_format(format_type: str | None, label: str):
    pairs, encoder = make_pairs(label), make_letter_encoder()
    stream = pairs.to_iterable_dataset().with_format(format_type)
    encoded = stream.map(encoder, batched=True, batch_size=2, remove_columns=pairs.column_names)
    rows = Dataset.from_list(list(encoded.with_format(None)))
    assert rows.to_dict() == encode_pairs(pairs, encoder).to_dict()


def test_encoder_is_thread_safe_when_threads_share_the_tokenizer(corpus: Path):
    """Eight threads encode, while another thread calls the tokenizer with padding and truncation."""
    pairs = load_snli(str(corpus), splits=["train"]).splits["train"]
    words = sorted({word for text in pairs["premise"] for word in text.lower().rstrip(".").split()})
    tokenizer = build_tokenizer([*SPECIALS, *words], model_max_length=64)
    encoder = PairEncoder(tokenizer, 32)
    batches = [(pairs["premise"][start : start + 37], pairs["hypothesis"][start : start + 37]) for start in range(200)]
    expected = [encoder.encode(*batch) for batch in batches]
    texts = pairs["premise"][:20]
    padded = tokenizer(texts, padding=True, truncation=True, max_length=7)["input_ids"]
    padding_and_truncation = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
    done = threading.Event()

    def use_tokenizer() -> None:
        while not done.is_set():
            assert tokenizer(texts, padding=True, truncation=True, max_length=7)["input_ids"] == padded

    with ThreadPoolExecutor(9) as threads:
        tokenizer_user = threads.submit(use_tokenizer)
        encoded = [threads.submit(encoder.encode, *batch) for batch in batches]
        results = [future.result() for future in encoded]
        done.set()
        tokenizer_user.result()
    assert results == expected
    assert None not in padding_and_truncation
    assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == padding_and_truncation


@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_encoder_hash_does_not_depend_on_earlier_calls(text_source: str):
    def hash_encoder(tokenizer: PreTrainedTokenizerBase) -> str:
        return Hasher.hash(PairEncoder(tokenizer, 32, text_source=text_source))

    tokenizer = build_tokenizer([*SPECIALS, *"abcd"], model_max_length=64)
    expected = hash_encoder(tokenizer)
    tokenizer(["a b", "c"], padding=True, truncation=True, max_length=9)
    assert hash_encoder(tokenizer) == expected
    encoder = PairEncoder(tokenizer, 32, text_source=text_source)
    encoder.encode(["a"], ["b"])
    assert Hasher.hash(encoder) == expected
    assert tokenizer.backend_tokenizer.padding and tokenizer.backend_tokenizer.truncation


FINGERPRINT_SCRIPT = """
from datasets.fingerprint import Hasher
from bert_snli.data.pair_encoding import PairEncoder
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
tokenizer = build_tokenizer([*SPECIAL_TOKENS.values(), *map(str, range(500))], model_max_length=64)
print(Hasher.hash(PairEncoder(tokenizer, 32, text_source="parse")), Hasher.hash(PairEncoder(tokenizer, 32)))
"""


@pytest.mark.slow
def test_encoder_fingerprint_is_the_same_in_another_process(run_python):
    tokenizer = build_tokenizer([*SPECIALS, *map(str, range(500))], model_max_length=64)
    expected = [Hasher.hash(PairEncoder(tokenizer, 32, text_source=source)) for source in ("parse", "raw")]
    assert expected[0] != expected[1]
    assert run_python("-c", FINGERPRINT_SCRIPT).stdout.split() == expected


def test_unpickled_encoder_encodes_the_same():
    encoder = make_letter_encoder()
    unpickled = pickle.loads(pickle.dumps(encoder))
    assert unpickled.encode(["a b x"], ["c"]) == encoder.encode(["a b x"], ["c"])
    assert Hasher.hash(unpickled) == Hasher.hash(encoder)


@pytest.mark.parametrize("truncation", ["longest", "ratio", "only_first", "only_second"])
def test_encoder_truncates_ids_to_the_truncated_lengths(truncation: str):
    tokenizer = build_tokenizer([*SPECIALS, *"abcdefgh"], model_max_length=32)
    pair = {"premise": ["a b c d e"], "hypothesis": ["f g h"]}
    p, h = (int(side[0]) for side in truncated_lengths(np.array([5]), np.array([3]), 6, truncation))
    expected = ["<cls>", *"abcde"[:p], "<sep>", *"fgh"[:h], "<sep>"]
    ids = PairEncoder(tokenizer, 9, truncation)(pair)["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert (p, h) == {"longest": (3, 3), "ratio": (4, 2), "only_first": (3, 3), "only_second": (5, 1)}[truncation]


def test_pack_pairs_builds_ids_segments_and_lengths():
    first = TokenSequences(np.array([10, 11, 12]), np.array([0, 2]), np.array([2, 0]))  # the second one is empty
    second = TokenSequences(np.array([20, 21]), np.array([1, 0]), np.array([1, 2]))
    assert pack_pairs(first, second, cls_token_id=3, sep_token_id=4).to_pydict() == {
        "input_ids": [[3, 10, 11, 4, 21, 4], [3, 4, 20, 21, 4]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1]],
        "length": [6, 5],
    }


@pytest.mark.parametrize(
    ("truncation", "message"),
    [
        ("only_first", "^truncation only_first: a hypothesis of 3 tokens does not fit"),
        ("only_second", "^truncation only_second: a premise of 4 tokens does not fit"),
        ("do_not_truncate", "^truncation do_not_truncate: a pair of 7 tokens does not fit"),
        ("shortest", "^truncation shortest: choose one of longest,"),
    ],
)
def test_pair_that_cannot_be_truncated_is_refused(truncation: str, message: str):
    tokenizer = build_tokenizer([*SPECIALS, "a"], model_max_length=16)
    with pytest.raises(BertSnliError, match=message):
        PairEncoder(tokenizer, 6, truncation).encode(["a a a a"], ["a a a"])


def test_unknown_text_source_is_refused():
    with pytest.raises(BertSnliError, match="^text_source leaves: choose one of raw, parse"):
        PairEncoder(build_tokenizer(SPECIALS, model_max_length=16), 16, text_source="leaves")


def test_parse_tokens_are_looked_up_without_tokenization():
    vocabulary = [*SPECIALS, "A", "don't", "a", "do", "n't"]
    pair = {"premise": ["A don't"], "hypothesis": ["<sep> x"]}
    for text_source, lower, expected in (
        ("parse", True, [3, 7, 6, 4, 4, 0, 4]),
        ("parse", False, [3, 5, 6, 4, 4, 0, 4]),
        ("raw", True, [3, 7, 8, 9, 4, 4, 0, 4]),
    ):
        tokenizer = build_tokenizer(vocabulary, model_max_length=16, do_lower_case=lower)
        assert PairEncoder(tokenizer, 16, text_source=text_source)(pair)["input_ids"] == [expected]


@pytest.mark.parametrize("value", [None, 3, "\ud800 a"], ids=["none", "number", "surrogate"])
@pytest.mark.parametrize("text_source", ["raw", "parse"])
def test_value_that_is_not_text_is_refused(text_source: str, value: object):
    encoder = PairEncoder(build_tokenizer(SPECIALS, model_max_length=16), 16, text_source=text_source)
    with pytest.raises(BertSnliError, match="is not a text that can be written as UTF-8; correct or remove it"):
        encoder({"premise": ["a", value], "hypothesis": ["b", "c"]})


def test_map_without_batched_is_refused():
    pairs = Dataset.from_dict({"premise": ["A man."], "hypothesis": ["A cat."]})
    with pytest.raises(BertSnliError, match="batched=True"):
        pairs.map(PairEncoder(build_tokenizer(SPECIALS, model_max_length=16), 16))


def test_second_encoding_is_read_from_the_cache(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    first, second = (
        encode_pairs(pairs, PairEncoder(build_tokenizer([*SPECIALS, "a"], model_max_length=64), 32)) for _ in range(2)
    )
    assert first.cache_files == second.cache_files
    assert first._fingerprint == second._fingerprint
    other = encode_pairs(pairs, PairEncoder(build_tokenizer([*SPECIALS, "a"], model_max_length=64), 31))
    assert other._fingerprint != first._fingerprint


@pytest.mark.parametrize("max_length", [0, 4, 65])
def test_max_length_outside_the_model_range_is_refused(max_length: int):
    with pytest.raises(BertSnliError, match=f"^max_length {max_length}: not allowed; give a number from 5 to 64"):
        PairEncoder(build_tokenizer(SPECIALS, model_max_length=64), max_length)
