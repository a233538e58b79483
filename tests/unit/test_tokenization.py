"""The tokenizer: rules, idempotence, pairs, offsets, decoding, saving, running time, and errors of vocab.json."""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bert_snli.errors import BertSnliError
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer, is_uncased, read_vocabulary, split_text

SPECIALS = list(SPECIAL_TOKENS.values())
WORDS = ("a cat sat . , ! do n't know it 's `` '' ` ' -lrb- -rrb- can not gon na we 'll go home etc. $ 5 %").split()


def make_tokenizer(words: list[str] = WORDS, *, do_lower_case: bool = True) -> PreTrainedTokenizerFast:
    vocabulary = SPECIALS + words
    random.Random(7).shuffle(vocabulary)  # the special tokens get unusual ids
    return build_tokenizer(vocabulary, model_max_length=64, do_lower_case=do_lower_case)


LOWER = make_tokenizer()
CASED = make_tokenizer(do_lower_case=False)


def split(text: str, tokenizer: PreTrainedTokenizerFast = LOWER) -> list[str]:
    """Split `text` into tokens that are not looked up."""
    return split_text(tokenizer, text)


RULES = [
    # sentence ends and other marks
    ("A fox sleeps.", "a fox sleeps ."),
    ("Run, fox; run: now!", "run , fox ; run : now !"),
    ("Really?! No!!", "really ?! no !!"),
    ("Wait... what", "wait ... what"),
    ("Wait\u2026 what.....", "wait ... what ..."),
    ("He left..", "he left . ."),
    ("either\\or > x / y = z", "either \\ or > x / y = z"),
    ("*** === ## <<", "*** === ## <<"),
    # contractions
    ("I don't. It's Ann's.", "i do n't . it 's ann 's ."),
    ("we'll, they've, you're, I'd, I'm", "we 'll , they 've , you 're , i 'd , i 'm"),
    ("can't won't ain't", "ca n't wo n't ai n't"),
    ("DON'T HE'S", "do n't he 's"),
    ("I\u2019d say it\u2019s", "i 'd say it 's"),
    ("They shouldn't've", "they should n't 've"),
    ("cannot Cannot canny", "can not can not canny"),
    ("gonna wanna gotta gimme lemme", "gon na wan na got ta gim me lem me"),
    ("'tis 'Twas", "'t is 't was"),
    ("y'all", "y' all"),
    ("the boys' hats", "the boys ' hats"),
    ("get 'em, rock 'n' roll, the '80s, '99", "get 'em , rock 'n' roll , the '80s , '99"),
    (
        "three o'clock, L'Aquila, O'Hara, ma'am, ol' Joe",
        "three o'clock , l'aquila , o'hara , ma'am , ol' joe",
    ),
    # quotes
    ('He yells "stop" twice.', "he yells `` stop '' twice ."),
    ('A sign: "Go home."', "a sign : `` go home . ''"),
    ('"7" and "$7"', "`` 7 '' and `` $ 7 ''"),
    ('a " b', "a '' b"),
    ("''so'' he message", "`` so '' he message"),
    ("\u201cso\u201d, \u2018so\u2019", "`` so '' , ` so '"),
    ("The 'red' one, 'a b'", "the ` red ' one , ` a b '"),
    ("a word'glued", "a word ` glued"),
    ("said' so '", "said ' so '"),
    # brackets
    ("one (1) [2] {3}", "one -lrb- 1 -rrb- -lsb- 2 -rsb- -lcb- 3 -rcb-"),
    ("cat(s).", "cat -lrb- s -rrb- ."),
    # numbers
    ("1,250.75 at 6:45pm and 6pm", "1,250.75 at 6:45 pm and 6pm"),
    ("$9.50, US$5, 20% off, #3, .5, -4", "$ 9.50 , us$ 5 , 20 % off , # 3 , .5 , -4"),
    ("1/2 of 3rd, 2.5x", "1/2 of 3rd , 2.5 x"),
    ("a 10,000-meter run, a 3.5-inch nail", "a 10,000-meter run , a 3.5-inch nail"),
    # hyphens, slashes, dashes, ampersands
    ("well-known tug-of-war his/her and/or", "well-known tug-of-war his/her and/or"),
    ("cars- or buses/", "cars - or buses /"),
    ("so--then so---then so\u2014then so \u2013 then", "so -- then so -- then so -- then so -- then"),
    ("R&B on Tom&Ann", "r&b on tom & ann"),
    # abbreviations
    ("Mr. Fox met Dr. Hare on Main St. at noon.", "mr. fox met dr. hare on main st. at noon ."),
    ("the U.S. flag at 9 a.m. today", "the u.s. flag at 9 a.m. today"),
    ("J.R. Hare, Jr., of the U.S.-based team", "j.r. hare , jr. , of the u.s.-based team"),
    ("He is in the U.S.", "he is in the u.s."),
    ("pens, ink, etc.", "pens , ink , etc. ."),
    ("pens, etc. Then ink", "pens , etc. . then ink"),
    ("see no. 7, not no.", "see no. 7 , not no ."),
    ("a cat., a dog", "a cat. , a dog"),
    ("home.Then", "home.then"),
    # the web
    ("see https://d2l.ai/a?b=c. ok", "see https://d2l.ai/a?b=c . ok"),
    ("www.example.org, me@example.org @me #fun", "www.example.org , me@example.org @me #fun"),
    # other scripts
    ("na\u00efve cafe\u0301 \u00c9T\u00c9.", "na\u00efve cafe\u0301 \u00e9t\u00e9 ."),
    ("\u4e2d\u6587\u3002 \U0001f642!", "\u4e2d\u6587 \u3002 \U0001f642 !"),
    ("", ""),
    (" \t\n\u00a0 ", ""),
    ("a\x00b\ufeffc", "a b c"),
]


@pytest.mark.parametrize(("raw", "tokens"), RULES, ids=[raw for raw, _ in RULES])
def test_raw_text_is_split_by_the_rule(raw: str, tokens: str) -> None:
    assert split(raw) == tokens.split()


@pytest.mark.parametrize("tokenizer", [LOWER, CASED], ids=["lower", "cased"])
@pytest.mark.parametrize("raw", [raw for raw, _ in RULES])
def test_tokenized_text_is_not_changed_by_tokenization(raw: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = split(raw, tokenizer)
    assert split(" ".join(tokens), tokenizer) == tokens
    assert split(" ".join(tokens).lower(), tokenizer) == " ".join(tokens).lower().split()


def test_case_is_preserved_without_lowercasing() -> None:
    raw = "Mr. Fox CAN'T say (\"NO\") at 6:45PM, O'Hara Cannot."
    expected = "Mr. Fox CA N'T say -LRB- `` NO '' -RRB- at 6:45 PM , O'Hara Can not ."
    assert split(raw, CASED) == expected.split()
    assert split(raw) == expected.lower().split()


def test_tokenizer_knows_whether_it_lower_cases() -> None:
    assert is_uncased(LOWER) and not is_uncased(CASED)


def test_token_ids_are_positions_in_the_vocabulary() -> None:
    vocabulary = ["home", "<sep>", "a", "<unk>", "<mask>", "cat", "<cls>", "<pad>"]
    tokenizer = build_tokenizer(vocabulary, model_max_length=8)
    assert len(tokenizer) == len(vocabulary)
    assert tokenizer("A cat flew home")["input_ids"] == [6, 2, 5, 3, 0, 1]
    for name, token in SPECIAL_TOKENS.items():
        assert getattr(tokenizer, name) == token
        assert getattr(tokenizer, f"{name}_id") == vocabulary.index(token)


def test_pairs_get_special_tokens_segments_and_padding() -> None:
    batch = LOWER(["A cat.", "go"], ["It sat!", "a cat sat"], padding=True)
    assert LOWER.convert_ids_to_tokens(batch["input_ids"][0]) == "<cls> a cat . <sep> it sat ! <sep>".split()
    assert batch["token_type_ids"] == [[0] * 5 + [1] * 4, [0] * 3 + [1] * 4 + [0] * 2]
    assert batch["attention_mask"] == [[1] * 9, [1] * 7 + [0] * 2]
    assert batch["input_ids"][1][-2:] == [LOWER.pad_token_id] * 2
    single = LOWER("A cat.")
    assert single.tokens() == "<cls> a cat . <sep>".split()
    assert single["token_type_ids"] == [0] * 5


def test_special_tokens_in_raw_text_are_special_in_exact_case_only() -> None:
    assert LOWER.tokenize("a <mask>, <MASK>") == ["a", "<mask>", ",", "<unk>", "<unk>", "<unk>"]
    assert LOWER("<mask>", add_special_tokens=False)["input_ids"] == [LOWER.mask_token_id]


def test_offsets_are_positions_in_the_raw_text() -> None:
    raw = "We don\u2019t \u201cknow\u201d (5%) 'home' cannot etc."
    encoding = LOWER(raw, return_offsets_mapping=True)
    pieces = [(token, raw[a:b]) for token, (a, b) in zip(encoding.tokens(), encoding["offset_mapping"], strict=True)]
    assert pieces[1:-1] == [
        ("we", "We"),
        ("do", "do"),
        ("n't", "n\u2019t"),
        ("``", "\u201c"),
        ("know", "know"),
        ("''", "\u201d"),
        ("-lrb-", "("),
        ("5", "5"),
        ("%", "%"),
        ("-rrb-", ")"),
        ("`", "'"),
        ("home", "home"),
        ("'", "'"),
        ("can", "can"),
        ("not", "not"),
        ("etc.", "etc."),
        (".", "."),
    ]
    assert encoding.word_ids() == [None, *range(17), None]
    assert [encoding.char_to_token(raw.index(c)) for c in "W\u2019\u201c5"] == [1, 3, 4, 8]


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("I don't know.", "i don't know."),
        ("Bob's hat, and ours!", "bob's hat, and ours!"),
        ('He said "no" (twice).', "he said `` no '' -lrb- twice -rrb-."),
    ],
)
def test_decode_joins_the_tokens_to_readable_text(text: str, decoded: str) -> None:
    tokenizer = make_tokenizer(sorted(set(split(text))))
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == decoded
    assert tokenizer.decode(ids) == f"<cls> {decoded} <sep>"


RUNS = ["....", ".........", "---", "----", "--", "...", "''", "``", "\u2026", "\u2014", "?!?!"]


@pytest.mark.parametrize("before", ["", "so", "so ", "7", "don't", "etc"])
@pytest.mark.parametrize("after", ["", "on", " on", "7"])
@pytest.mark.parametrize("run", RUNS)
def test_run_of_punctuation_is_one_token_with_the_offsets_of_the_run(before: str, run: str, after: str) -> None:
    encoding = LOWER(before + run + after, return_offsets_mapping=True)
    assert (len(before), len(before + run)) in encoding["offset_mapping"]


def test_initials_before_an_ellipsis_keep_their_period() -> None:
    assert split("the U.S.... and a.....") == ["the", "u.s.", "...", "and", "a.", "..."]


def test_saved_tokenizer_loads_without_custom_code(tmp_path: Path) -> None:
    LOWER.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] in {"PreTrainedTokenizerFast", PreTrainedTokenizerFast.__name__}
    assert "auto_map" not in config
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is PreTrainedTokenizerFast
    raw, other = "Don't \"go\" (home), 'cat' etc.", "It's <mask>."
    assert loaded(raw, other, return_offsets_mapping=True) == LOWER(raw, other, return_offsets_mapping=True)
    assert loaded.decode(loaded(raw)["input_ids"]) == LOWER.decode(LOWER(raw)["input_ids"])
    assert (loaded.model_max_length, loaded.padding_side, loaded.pad_token_type_id) == (64, "right", 0)


# Characters of the rules in any order; `st.text` adds the rest of Unicode.
PIECES = (
    "a n no cannot ' '' ` \" n't 's . ... , : - -- ( ] 1 2.5 $ US$ & / @ # ! etc. Miss. U.S. \u2019 \u0130"
).split() + [" ", " "]
RULE_CHARACTERS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | RULE_CHARACTERS)
def test_offsets_of_any_text_are_inside_the_text_and_in_order(text: str) -> None:
    encoding = LOWER(text, return_offsets_mapping=True)
    last = 0
    for start, end in encoding["offset_mapping"][1:-1]:
        assert 0 <= start < end <= len(text)
        assert text[start:end].strip(" \t\n") == text[start:end]
        assert start >= last or text[start] == "."  # offsets are in order; only "etc." at the end gives "." twice
        last = start
    assert isinstance(LOWER.decode(encoding["input_ids"]), str)


LEAVES = "the cat does is n't 's 'll `` '' ' ` , ; . ... -lrb- -rrb- u.s. mr. b. 9.5 $ % -- well-known".split()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(LEAVES)))
def test_any_sequence_of_parse_tokens_is_unchanged(leaves: list[str]) -> None:
    assert split(" ".join(leaves)) == leaves


UNITS = ["a", " ", '"', "'", "1", ".", "-", "(", "_", "!", "\u2026", "\u00e9"]
UNITS += ["a.", "1.", "a-", "a'", "n't", "can", "etc. ", "http://"]


def encoding_seconds(tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """CPU seconds of the fastest of three encodings."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        tokenizer.backend_tokenizer.encode(text)
        seconds.append(time.process_time() - start)
    return min(seconds)


@pytest.mark.parametrize("unit", UNITS)
def test_long_runs_take_linear_time(unit: str) -> None:
    """A text of 12 times the length takes 12 times as long; a quadratic pattern takes 144 times as long."""
    short, long = (unit * (size // len(unit)) + "x" for size in (4_000, 48_000))
    assert encoding_seconds(LOWER, long) < 40 * encoding_seconds(LOWER, short) + 0.01


def test_vocabulary_of_60_005_tokens_can_be_built() -> None:
    assert len(build_tokenizer(SPECIALS + [f"w{i}" for i in range(60_000)], model_max_length=512)) == 60_005


# vocab.json


def test_read_vocabulary_returns_the_tokens_in_order(tmp_path: Path) -> None:
    tokens = [*SPECIALS, "caf\u00e9", "''"]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    assert read_vocabulary(path) == read_vocabulary(str(path)) == tokens


BAD_FILES = [
    (b"[", "not JSON"),
    (b"", "not JSON"),
    (b'["\xff"]', "not JSON in UTF-8"),
    (b'{"a": 0}', "not a list"),
    (b"[]", "empty"),
    (b'["a", 3]', "entry 1"),
    (b'["a", "b", "c", "b", "a"]', "'b' has two ids, 1 and 3"),
    (json.dumps([s for s in SPECIALS if s != "<mask>"]).encode(), "<mask>"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_invalid_vocabulary_error_names_the_file_and_the_cause(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(BertSnliError) as caught:
        read_vocabulary(path)
    error = str(caught.value)
    assert error.startswith(f"{path}: ") and message in error and "\n" not in error


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_missing_vocabulary_error_names_the_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BertSnliError, match="vocab.json"):
        read_vocabulary(tmp_path / name)


def test_vocabulary_without_a_special_token_is_refused() -> None:
    with pytest.raises(BertSnliError, match="<unk>"):
        build_tokenizer(["a"], model_max_length=8)


def test_mapping_is_no_vocabulary() -> None:
    """The order of `get_vocab()` is not that of the ids."""
    with pytest.raises(BertSnliError, match="vocabulary: empty or not a list"):
        build_tokenizer(LOWER.get_vocab(), model_max_length=8)


def test_vocabulary_with_a_duplicate_is_refused() -> None:
    with pytest.raises(BertSnliError, match="two ids"):
        build_tokenizer([*SPECIALS, "a", "a"], model_max_length=8)


# Long and empty texts

LONG_UNITS = ["\U0001f600 ", "\u05e9\u05dc\u05d5\u05dd ", "\0", "\u200f\u202e", "e\u0301", "don't "]


@pytest.mark.parametrize("unit", LONG_UNITS)
def test_text_of_one_megabyte_is_tokenized(unit: str) -> None:
    text = unit * (2**20 // len(unit.encode()))
    encoding = LOWER.backend_tokenizer.encode(text)
    assert all(0 <= start <= end <= len(text) for start, end in encoding.offsets)


@pytest.mark.parametrize("text", ["", " ", "\0", "\n\t"])
def test_empty_text_is_two_special_tokens(text: str) -> None:
    assert LOWER(text)["input_ids"] == [LOWER.cls_token_id, LOWER.sep_token_id]


# The real corpus


def read_sentences(snli: Path, part: str) -> Iterator[tuple[str, str]]:
    """Raw sentences and the leaves of their binary parses, as d2l reads them."""
    with zipfile.ZipFile(snli) as archive, archive.open(f"snli_1.0/snli_1.0_{part}.jsonl") as file:
        for line in io.TextIOWrapper(file, encoding="utf-8"):
            row = json.loads(line)
            for side in ("sentence1", "sentence2"):
                leaves = row[f"{side}_binary_parse"].replace("(", " ").replace(")", " ")
                yield row[side], " ".join(leaves.split())


@pytest.mark.parametrize("part", ["dev", "test"])
def test_tokens_of_raw_snli_equal_the_parse_tokens(snli_zip: Path, part: str) -> None:
    pairs = list(read_sentences(snli_zip, part))
    different = [raw for raw, leaves in pairs if " ".join(split(raw)) != leaves.lower()]
    assert len(different) <= 0.001 * len(pairs), different[:5]
    for leaves in {leaves for _, leaves in pairs}:
        assert " ".join(split(leaves)) == leaves.lower()
        assert " ".join(split(leaves.lower())) == leaves.lower()
        assert " ".join(split(leaves, CASED)) == leaves
