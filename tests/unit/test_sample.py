"""The generated corpus: determinism, SNLI's format, valid parses, balanced labels, and no label leakage."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from bert_snli.data.sample import LABELS, NO_GOLD_LABEL, TAXONOMY, judge, judge_claim, write_sample
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer, split_text

PAIRS = {"train": 3000, "dev": 300, "test": 600}
Rows = dict[str, list[dict[str, Any]]]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def leaves(parse: str) -> list[str]:
    return [token for token in parse.split() if token not in "()"]


def is_binary(parse: str) -> bool:
    """Whether the parse is one leaf, or one tree in which each pair of brackets holds two nodes."""
    stack: list[list[str]] = [[]]
    for token in parse.split():
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) < 2 or len(stack.pop()) != 2:
                return False
            stack[-1].append("node")
        else:
            stack[-1].append(token)
    return len(stack) == 1 and len(stack[0]) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sample")
    assert write_sample(target, num_pairs=PAIRS, seed=1) == target
    return target


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    return {name: read_jsonl(folder / f"snli_1.0_{name}.jsonl") for name in PAIRS}


@pytest.fixture(scope="module")
def all_rows(rows: Rows) -> list[dict[str, Any]]:
    return [row for split in rows.values() for row in split]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_seed_determines_every_byte(tmp_path: Path) -> None:
    small = {"train": 60, "dev": 30}
    first, second, other = (
        read_files(write_sample(tmp_path / name, num_pairs=small, seed=seed))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert sorted(first) == ["snli_1.0_dev.jsonl", "snli_1.0_train.jsonl"]
    assert first == second
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize("size", [0, 2, 100, 300_000])
def test_size_that_is_not_a_positive_multiple_of_three_or_too_large_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=f"'dev': {size}.*give multiples of 3 whose sum is at most"):
        write_sample(tmp_path, num_pairs={"dev": size})


def test_splits_have_the_requested_sizes_and_balanced_labels(rows: Rows) -> None:
    for name, split in rows.items():
        assert len(split) == PAIRS[name]
        intended = Counter(row["pairID"][-1] for row in split)
        assert intended == {label[0]: PAIRS[name] // 3 for label in LABELS}
        gold = Counter(row["gold_label"] for row in split)
        undecided = gold.pop(NO_GOLD_LABEL)
        assert 0.005 <= undecided / PAIRS[name] <= 0.015
        assert len(set(gold.values())) == 1 and set(gold) == set(LABELS)


def test_gold_label_is_the_majority_of_the_annotators(rows: Rows) -> None:
    for row in (row for split in rows.values() for row in split):
        votes = row["annotator_labels"]
        majority = [label for label in LABELS if votes.count(label) * 2 > len(votes)]
        assert [row["gold_label"]] == (majority or [NO_GOLD_LABEL])
        assert row["gold_label"] in (NO_GOLD_LABEL, votes[0])
    assert {len(row["annotator_labels"]) for row in rows["test"]} == {5}
    assert Counter(len(row["annotator_labels"]) for row in rows["train"])[1] > 0.8 * PAIRS["train"]


def test_each_premise_has_three_labels_and_is_in_one_split(rows: Rows) -> None:
    splits_of_premise = defaultdict(set)
    for name, split in rows.items():
        by_caption = defaultdict(list)
        for row in split:
            splits_of_premise[row["sentence1"]].add(name)
            by_caption[row["captionID"]].append(row)
        for group in by_caption.values():
            assert sorted(row["pairID"][-1] for row in group) == ["c", "e", "n"]
            assert len({row["sentence1"] for row in group}) == 1
    assert all(len(names) == 1 for names in splits_of_premise.values())
    pair_ids = [row["pairID"] for split in rows.values() for row in split]
    assert len(set(pair_ids)) == len(pair_ids)


def test_parses_are_binary_and_their_leaves_are_the_tokens_of_the_sentences(all_rows: list[dict[str, Any]]) -> None:
    tokenizer = build_tokenizer(list(SPECIAL_TOKENS.values()), model_max_length=64, do_lower_case=False)
    for row in all_rows:
        for name in ("sentence1", "sentence2"):
            raw, parse = row[name], row[f"{name}_binary_parse"]
            assert is_binary(parse), parse
            assert split_text(tokenizer, raw) == leaves(parse)
            assert raw[0] == raw[0].upper()


def test_text_needs_penn_treebank_tokenization(all_rows: list[dict[str, Any]]) -> None:
    raws = {row[name] for row in all_rows for name in ("sentence1", "sentence2")}
    tokens = {
        leaf for row in all_rows for name in ("sentence1", "sentence2") for leaf in leaves(row[f"{name}_binary_parse"])
    }
    assert {"'s", "``", "''", ",", ".", "T-shirt"} <= tokens
    for mark in ("neighbor's", '"', ", "):
        assert any(mark in raw for raw in raws), mark
    assert 0.05 < sum(not raw.endswith(".") for raw in raws) / len(raws) < 0.2
    assert 50 <= len({token.lower() for token in tokens}) <= 400


@pytest.mark.parametrize(
    ("slot", "scene", "claim", "label"),
    [
        ("who", "person man", "person", "entailment"),
        ("who", "person", "person man", "neutral"),
        ("who", "person man", "person woman", "contradiction"),
        ("place", "", "outside park", "neutral"),
        ("place", "outside", "inside office", "contradiction"),
        ("clothes", "coat red", "T-shirt red", "contradiction"),
        ("clothes", "coat red", "coat", "entailment"),
        ("company", "company", "company friend", "neutral"),
        ("company", "company friend", "alone", "contradiction"),
    ],
)
def test_claim_label_depends_on_its_path(slot: str, scene: str, claim: str, label: str) -> None:
    paths = [tuple(path.split()) for path in (scene, claim)]
    assert all(path in TAXONOMY[slot] for path in paths if path)
    assert judge_claim(*paths) == label


def test_contradiction_decides_before_neutral_and_neutral_before_entailment() -> None:
    scene = {"who": ("person", "man"), "place": ("outside", "park")}
    true, false, unknown = {"place": ("outside",)}, {"place": ("inside",)}, {"activity": ("meal",)}
    assert judge(scene, true) == "entailment"
    assert judge(scene, true | unknown) == "neutral"
    assert judge(scene, false | unknown) == "contradiction"


def test_hypothesis_alone_does_not_predict_the_label(rows: Rows) -> None:
    feature_extraction = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    hypotheses = {
        name: [" ".join(leaves(row["sentence2_binary_parse"])) for row in split] for name, split in rows.items()
    }
    labels = {name: [row["pairID"][-1] for row in split] for name, split in rows.items()}
    vectorizer = feature_extraction.CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2))
    model = linear_model.LogisticRegression(C=0.3, max_iter=500).fit(
        vectorizer.fit_transform(hypotheses["train"]), labels["train"]
    )
    assert model.score(vectorizer.transform(hypotheses["test"]), labels["test"]) < 0.55
