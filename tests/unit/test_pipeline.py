"""`transformers.pipeline(..., trust_remote_code=True)` on a model folder gives the scores of this package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, pipeline
from transformers.pipelines import clean_custom_task
from transformers.pipelines.pt_utils import KeyPairDataset

from bert_snli.data.pair_encoding import PairEncoder
from bert_snli.modeling import (
    D2LBertConfig,
    D2LBertForMaskedLM,
    D2LBertForPreTraining,
    D2LBertForSequenceClassification,
    NLIPipeline,
)
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from bert_snli.modeling.nli_pipeline import TASK
from bert_snli.prediction import Predictor
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS
from tests.support.tolerances import rounding
from tests.support.without_package import run_without_package

WORDS = "a the dog cat man woman is are n't sleeping running outside inside on in red ball . , '' `` it 's".split()
PAIRS = [
    ("A dog is running outside.", "The dog isn't sleeping."),
    ("The dog isn't sleeping.", "A dog is running outside."),  # the first pair, swapped
    ("A man, a woman.", "A zebra"),
    ('The "red ball" is in the cat', "It's on the cat, inside the dog, in the man, outside the red woman."),
    ("A cat", "A cat"),
]
LONG_PAIRS = [
    ("a dog " * 20, "the cat " * 20),  # both sides too long, on an odd budget
    ("a dog", "the red cat is running " * 10),
    ("the red cat is running " * 10, "a dog"),
    ("a red dog " * 4, "a red dog " * 4),
]
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 48,
    "initializer_range": 0.5,  # large enough for predictions to differ
}
TOLERANCE = rounding(D2LBertConfig(**SIZES))  # also of a score, whose largest value is 1
NLI_SCRIPT = """
from transformers import pipeline

classify = pipeline("text-classification", arguments["folder"], trust_remote_code=True)
assert type(classify.model).__module__.startswith("transformers_modules."), type(classify.model)
inputs = [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in arguments["pairs"]]
predictions = {"one by one": [classify(pair, top_k=None) for pair in inputs]}
predictions["padded"] = classify(inputs, top_k=None, batch_size=len(inputs))
folder = arguments["folder"]
for state in ("as saved", "saved again"):
    nli = pipeline("natural-language-inference", folder, trust_remote_code=True)
    assert type(nli).__module__.startswith("transformers_modules."), type(nli)
    predictions[state] = nli(arguments["pairs"], top_k=None)
    predictions["single pairs, " + state] = [nli(tuple(pair), top_k=None) for pair in arguments["pairs"]]
    folder = arguments["again"]
    nli.save_pretrained(folder)
print(json.dumps(predictions))
"""


def save_model(folder: Path, model_class: type, **config) -> Path:
    vocabulary = SPECIALS + WORDS
    torch.manual_seed(0)
    model = model_class(
        D2LBertConfig(vocab_size=len(vocabulary), pad_token_id=vocabulary.index("<pad>"), **{**SIZES, **config})
    )
    model.save_pretrained(folder)
    build_tokenizer(vocabulary, model_max_length=SIZES["max_position_embeddings"]).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(
        tmp_path / "model", D2LBertForSequenceClassification, id2label=ID2LABEL, label2id=LABEL2ID, max_pair_length=36
    )


@pytest.fixture
def nli(folder: Path) -> NLIPipeline:
    return open_nli(folder)


def open_nli(folder: Path, **options) -> NLIPipeline:
    model = D2LBertForSequenceClassification.from_pretrained(folder)
    return pipeline(TASK, model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu", **options)


def scores_by_label(entries: list[dict]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in entries}


def predict(folder: Path, pairs: list[tuple[str, str]], **options) -> list[dict[str, float]]:
    model = D2LBertForSequenceClassification.from_pretrained(folder).eval()
    return Predictor(model, AutoTokenizer.from_pretrained(folder), **options)(pairs)


def assert_same_predictions(found: list, expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for entries, by_label in zip(found, expected, strict=True):
        assert scores_by_label(entries) == pytest.approx(by_label, rel=0, abs=TOLERANCE)
        assert list(scores_by_label(entries)) == list(by_label)  # the most probable label first


@pytest.mark.slow
def test_pipelines_in_a_process_without_the_package_give_the_same_scores(folder: Path, tmp_path: Path):
    expected = predict(folder, PAIRS)
    assert max(abs(expected[0][label] - expected[1][label]) for label in LABEL2ID) > 0.01, (
        "premise and hypothesis are exchangeable"
    )
    again = str(tmp_path / "again")
    predictions = run_without_package(NLI_SCRIPT, tmp_path, folder=str(folder), pairs=PAIRS, again=again)
    assert len(predictions) == 6
    for results in predictions.values():
        assert_same_predictions(results, expected)


# Natural language inference


def test_pipeline_accepts_each_format_of_pairs(nli: NLIPipeline, folder: Path):
    expected = predict(folder, PAIRS)
    formats = {
        "tuples": PAIRS,
        "lists": [list(pair) for pair in PAIRS],
        "named as in SNLI": [{"premise": p, "hypothesis": h, "label": 0} for p, h in PAIRS],
        "named as in text-classification": [{"text": p, "text_pair": h} for p, h in PAIRS],
    }
    for name, pairs in formats.items():
        assert_same_predictions(nli(pairs, top_k=None), expected)
        if name != "lists":  # a list is always several pairs
            assert_same_predictions([nli(pair, top_k=None) for pair in pairs], expected)
    assert nli([]) == []


def test_top_k_equals_that_of_text_classification(nli: NLIPipeline, folder: Path):
    text_classification = pipeline("text-classification", model=nli.model, tokenizer=nli.tokenizer, device="cpu")
    texts = [{"text": p, "text_pair": h} for p, h in PAIRS]
    for options in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}):
        for found, expected in zip(nli(PAIRS, **options), text_classification(texts, **options), strict=True):
            assert isinstance(found, type(expected))
            found, expected = ([result] if isinstance(result, dict) else result for result in (found, expected))
            assert scores_by_label(found) == pytest.approx(scores_by_label(expected), rel=0, abs=TOLERANCE)
            assert list(scores_by_label(found)) == list(scores_by_label(expected))
    assert open_nli(folder, top_k=2, batch_size=len(PAIRS))(PAIRS) == nli(PAIRS, top_k=2)


@pytest.mark.parametrize("max_length", [None, 12, 15, 48])
@pytest.mark.parametrize("truncation", [None, "ratio"])
def test_long_pairs_are_truncated_as_in_training(
    max_length: int | None, truncation: str | None, nli: NLIPipeline, folder: Path
):
    options = {"max_length": max_length, "truncation": truncation}
    pairs = LONG_PAIRS + PAIRS
    encoder = PairEncoder(nli.tokenizer, max_length or 36, truncation or "longest")
    assert encoder.budget % 2 or max_length == 15
    table = encoder.encode([p for p, _ in pairs], [h for _, h in pairs])
    rows = nli.preprocess(pairs, **options)
    assert [row["input_ids"] for row in rows] == table["input_ids"].to_pylist()
    assert [row["token_type_ids"] for row in rows] == table["token_type_ids"].to_pylist()
    assert_same_predictions(nli(pairs, top_k=None, **options), predict(folder, pairs, **options))


def test_list_is_batched_by_length_and_predictions_keep_its_order(
    nli: NLIPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shapes = []
    forward = nli._forward
    monkeypatch.setattr(nli, "_forward", lambda batch: shapes.append(batch["input_ids"].shape) or forward(batch))
    pairs = [PAIRS[4], LONG_PAIRS[1], PAIRS[2], LONG_PAIRS[2], PAIRS[4]]
    assert_same_predictions(nli(pairs, top_k=None, batch_size=2), predict(folder, pairs))
    assert [tuple(shape) for shape in shapes] == [(2, 7), (2, 36), (1, 36)]


def test_key_pair_dataset_gives_the_predictions_of_the_list(nli: NLIPipeline):
    columns = {"premise": [premise for premise, _ in PAIRS], "hypothesis": [hypothesis for _, hypothesis in PAIRS]}
    dataset = KeyPairDataset(Dataset.from_dict(columns), "premise", "hypothesis")
    predictions = list(nli(dataset, num_workers=0, batch_size=2))
    for found, expected in zip(predictions, nli(PAIRS), strict=True):
        assert found == {"label": expected["label"], "score": pytest.approx(expected["score"], rel=0, abs=TOLERANCE)}


def test_threads_with_different_options_do_not_affect_each_other(nli: NLIPipeline, folder: Path):
    pairs = LONG_PAIRS + PAIRS
    expected = {max_length: predict(folder, pairs, max_length=max_length) for max_length in range(9, 39, 3)}
    with ThreadPoolExecutor(len(expected)) as pool:
        calls = [
            (max_length, pool.submit(nli, pairs, max_length=max_length, top_k=None, batch_size=2))
            for max_length in [*expected] * 4
        ]
    for max_length, call in calls:
        assert_same_predictions(call.result(), expected[max_length])


@pytest.mark.parametrize("batch_size", [None, 3])
def test_generator_is_consumed_lazily(batch_size: int | None, nli: NLIPipeline, folder: Path):
    taken = []

    def endless() -> Iterator[tuple[str, str]]:
        for number in range(10**9):
            taken.append(number)
            yield PAIRS[number % len(PAIRS)]

    predictions = nli(endless(), top_k=None, batch_size=batch_size)
    assert taken == []
    found = [next(predictions) for _ in range(4)]
    assert len(taken) == (4 if batch_size is None else 6)
    assert_same_predictions(found, predict(folder, PAIRS[:4]))


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("a text", {}, "'a text': not a pair of texts; give"),
        (["a text", "another"], {}, "'a text': not a pair of texts"),
        (("a", "b", "c"), {}, "not a pair of texts"),
        ({"premise": "a"}, {}, "not a pair of texts"),
        ([("a", "b"), ("a", None)], {}, r"\('a', None\): not a pair of texts"),
        (("a", "\ud800"), {}, "not a pair of texts"),
        (7, {}, "7: not a pair of texts"),
        (("a", "b"), {"top_k": 0}, "top_k 0: give 1 or more"),
        (("a", "b"), {"max_length": 4}, "max_length 4: not allowed; give a number from 5 to 48"),
        (("a", "b"), {"truncation": "middle"}, "truncation middle: choose one of longest"),
        (
            LONG_PAIRS[0],
            {"truncation": "do_not_truncate"},
            "truncation do_not_truncate: a pair of 80 tokens does not fit",
        ),
        ([("a", "b")], {"batch_size": 0}, "batch_size 0: give 1 or more"),
    ],
)
def test_invalid_input_or_option_is_refused_in_one_line(inputs, options: dict, message: str, nli: NLIPipeline):
    with pytest.raises(ValueError, match=message) as caught:
        nli(inputs, **options)
    assert "\n" not in str(caught.value)


def test_config_that_a_pipeline_has_read_can_be_saved_again(folder: Path, tmp_path: Path):
    model = D2LBertForSequenceClassification.from_pretrained(folder)
    for name in ("once", "twice"):
        model.save_pretrained(tmp_path / name)
        clean_custom_task(model.config.custom_pipelines[TASK])  # as `pipeline(TASK, config=...)` does
    assert (tmp_path / "once" / "config.json").read_text() == (tmp_path / "twice" / "config.json").read_text()


def test_only_the_folder_of_a_classifier_names_the_pipeline(folder: Path, tmp_path: Path):
    entry = json.loads((folder / "config.json").read_text())["custom_pipelines"][TASK]
    assert entry == {"impl": "nli_pipeline.NLIPipeline", "pt": ["AutoModelForSequenceClassification"]}
    masked = D2LBertForMaskedLM(D2LBertConfig.from_pretrained(folder))
    masked.config.custom_pipelines["other-task"] = {"impl": "own.Pipeline", "pt": []}
    masked.save_pretrained(tmp_path / "masked")
    names = json.loads((tmp_path / "masked" / "config.json").read_text())["custom_pipelines"]
    assert list(names) == ["other-task"]


# Other pipelines of `transformers`

OTHER_PIPELINES_SCRIPT = """
from transformers import pipeline

classifier, pretrained = arguments["classifier"], arguments["pretrained"]
zero_shot = pipeline("zero-shot-classification", classifier, trust_remote_code=True)
features = pipeline("feature-extraction", classifier, trust_remote_code=True)
fill_mask = pipeline("fill-mask", pretrained, trust_remote_code=True)
print(json.dumps({
    "entailment_id": zero_shot.entailment_id,
    "zero-shot": [
        zero_shot(text, candidate_labels=["dog", "cat"], hypothesis_template="a {} .") for text in arguments["texts"]
    ],
    "several labels": zero_shot(
        arguments["texts"][0], candidate_labels=["dog", "cat"], hypothesis_template="a {} .", multi_label=True
    ),
    "feature-extraction": features("a dog is running"),
    "fill-mask": fill_mask("a dog is <mask> .", top_k=3),
}))
"""


def train_to_distinguish_dogs_from_cats(folder: Path) -> None:
    """Train the classifier in `folder`: the animal of the premise is entailment, the other one contradiction."""
    model, tokenizer = (
        D2LBertForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    rest = [f"{place} on the red {thing}" for place in ("running", "sleeping") for thing in ("ball", "man", "woman")]
    rows = [
        (f"a {one} is {words}", f"a {other} .", LABEL2ID["entailment" if one == other else "contradiction"])
        for words in rest
        for one in ("dog", "cat")
        for other in ("dog", "cat")
    ]
    inputs = tokenizer([p for p, _, _ in rows], [h for _, h, _ in rows], padding=True, return_tensors="pt")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(150):
        loss = model(**inputs, labels=torch.tensor([label for _, _, label in rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    model.save_pretrained(folder)


@pytest.mark.slow
def test_other_pipelines_load_the_model_folders(tmp_path: Path):
    classifier = save_model(
        tmp_path / "classifier",
        D2LBertForSequenceClassification,
        id2label=ID2LABEL,
        label2id=LABEL2ID,
        initializer_range=0.1,
    )
    train_to_distinguish_dogs_from_cats(classifier)
    pretrained = save_model(tmp_path / "pretrained", D2LBertForPreTraining)
    texts = ["a dog is sleeping outside", "a cat is running inside"]
    found = run_without_package(
        OTHER_PIPELINES_SCRIPT, tmp_path, classifier=str(classifier), pretrained=str(pretrained), texts=texts
    )

    assert found["entailment_id"] == LABEL2ID["entailment"]
    assert [result["labels"][0] for result in found["zero-shot"]] == ["dog", "cat"]
    assert min(result["scores"][0] for result in found["zero-shot"]) > 0.7

    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = D2LBertForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        hidden = model.bert(**tokenizer("a dog is running", return_tensors="pt")).last_hidden_state
    tolerance = TOLERANCE * hidden.abs().max().item()
    torch.testing.assert_close(torch.tensor(found["feature-extraction"]), hidden, rtol=0, atol=tolerance)

    # With `multi_label`, transformers takes the last label as contradiction if entailment is the first label.
    with torch.no_grad():
        logits = model(**tokenizer([texts[0]] * 2, ["a dog .", "a cat ."], padding=True, return_tensors="pt")).logits
    against_neutral = logits[:, [LABEL2ID["entailment"], LABEL2ID["neutral"]]].softmax(dim=-1)[:, 0].tolist()
    several = dict(zip(found["several labels"]["labels"], found["several labels"]["scores"], strict=True))
    assert several == pytest.approx({"dog": against_neutral[0], "cat": against_neutral[1]}, rel=0, abs=TOLERANCE)

    masked = D2LBertForMaskedLM.from_pretrained(pretrained).eval()
    inputs = tokenizer("a dog is <mask> .", return_tensors="pt")
    with torch.no_grad():
        logits = masked(**inputs).logits[0, inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)]
    best = logits.softmax(dim=-1).topk(3)
    assert [entry["token"] for entry in found["fill-mask"]] == best.indices.tolist()
    assert [entry["score"] for entry in found["fill-mask"]] == pytest.approx(best.values.tolist(), rel=0, abs=TOLERANCE)
