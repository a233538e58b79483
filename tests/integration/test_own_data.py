"""Fine-tuning, evaluation and prediction on pairs with other columns and labels than those of SNLI."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict

from bert_snli.cli import main
from bert_snli.data.snli import load_evaluation_set, load_snli
from bert_snli.errors import BertSnliError
from bert_snli.finetune import finetune_model
from bert_snli.inference import classifier_labels, load_config
from bert_snli.model_card import make_card
from bert_snli.training.arguments import FinetuneArguments
from bert_snli.training.command_line import FINETUNE
from tests.support.model_folders import convert_small_checkpoint

COLUMNS = ["--columns", "premise=question", "hypothesis=answer", "label=answered"]
NAMES = {"premise": "question", "hypothesis": "answer", "label": "answered"}
LABELS = {"0": "no", "1": "yes"}
NUM_ROWS = 80

pytestmark = pytest.mark.usefixtures("without_plots")


def read_rows(corpus: Path) -> list[dict]:
    pairs = load_snli(str(corpus), splits=["train"]).splits["train"]
    return [
        {"question": pair["premise"], "answer": pair["hypothesis"], "answered": int(pair["label"] == 0)}
        for pair in pairs.select(range(NUM_ROWS))
    ]


@pytest.fixture(scope="module")
def table(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions and answers with the labels 0 and 1."""
    path = tmp_path_factory.mktemp("own") / "answers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, NAMES.values())
        writer.writeheader()
        writer.writerows(read_rows(corpus))
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_small_checkpoint(tmp_path_factory.mktemp("base_model"))


@pytest.fixture(scope="module")
def finetuned(table: Path, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on `table` with the command."""
    output_dir = tmp_path_factory.mktemp("runs") / "answers"
    data = ["--dataset_name_or_path", table, *COLUMNS, "--labels", "0=no", "1=yes"]
    command = [
        "finetune",
        converted,
        *data,
        "--output_dir",
        output_dir,
        "--report_to",
        "tensorboard",
        "--max_steps",
        3,
        "--max_length",
        33,
    ]
    assert main([str(word) for word in command]) == 0
    return output_dir


def test_classifier_has_the_labels_of_the_file(finetuned: Path):
    assert load_config(str(finetuned)).id2label == {0: "no", 1: "yes"}
    results = json.loads((finetuned / "train_results.json").read_text())
    assert results["train_samples"] == 0.9 * NUM_ROWS


def test_evaluation_of_the_held_out_pairs_gives_the_accuracy_of_training(finetuned: Path, table: Path, tmp_path: Path):
    data = ["--dataset_name_or_path", table, *COLUMNS, "--labels", "0=no", "1=yes", "--split", "validation"]
    command = ["evaluate", finetuned, *data, "--output_dir", tmp_path, "--report", tmp_path / "report"]
    assert main([str(word) for word in command]) == 0
    results = json.loads((tmp_path / "eval_results_validation.json").read_text())
    assert results["pairs"] == 0.1 * NUM_ROWS
    assert set(results["confusion_matrix"]) == {"no", "yes"}
    trained = json.loads((finetuned / "train_results.json").read_text())
    assert results["accuracy"] == trained["eval_accuracy"]
    assert results["loss"] == pytest.approx(trained["eval_loss"], abs=1e-6)


def test_evaluation_on_the_training_file_gives_a_warning(finetuned: Path, table: Path, tmp_path: Path, caplog):
    data = ["--dataset_name_or_path", table, *COLUMNS, "--labels", "0=no", "1=yes", "--output_dir", tmp_path]
    assert main([str(word) for word in ["evaluate", finetuned, *data]]) == 0
    assert "the model was trained on nine tenths of it; --split validation evaluates the rest" in caplog.text


def test_prediction_reads_the_columns_of_the_file(finetuned: Path, table: Path, capsys: pytest.CaptureFixture):
    columns = COLUMNS[:3]  # without the label
    assert main(["predict", str(finetuned), "--input_file", str(table), *columns, "--output_format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == NUM_ROWS and list(rows[0]) == ["premise", "hypothesis", "label", "no", "yes"]
    for row in rows:
        assert float(row["no"]) + float(row["yes"]) == pytest.approx(1)
        assert row["label"] == max(("no", "yes"), key=lambda name: float(row[name]))


def test_recipe_of_the_run_repeats_it(finetuned: Path, tmp_path: Path):
    recipe = yaml.safe_load((finetuned / "recipe.yaml").read_text())
    assert (recipe["columns"], recipe["labels"]) == (NAMES, LABELS)
    again = ["finetune", "--config", str(finetuned / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (finetuned / "model.safetensors").read_bytes()


def test_model_card_names_the_labels_and_not_inference(finetuned: Path):
    card = make_card(finetuned, "user/answers", license="mit")
    assert "A classifier of sentence pairs. Its labels are no 0, yes 1." in card
    assert "entailment" not in card and "SNLI" not in card and "[d2l_bert, d2l, bert-snli]" in card


def test_held_out_tenth_is_the_same_in_each_call_and_is_not_in_the_training_split(table: Path):
    def read_pairs(split: str) -> list[tuple[str, str]]:
        rows = load_snli(str(table), splits=[split], columns=NAMES, label_mapping=LABELS, labels=["no", "yes"])
        return list(zip(rows.splits[split]["premise"], rows.splits[split]["hypothesis"], strict=True))

    train, held_out = read_pairs("train"), read_pairs("validation")
    assert held_out == read_pairs("validation")
    whole = load_evaluation_set(str(table), columns=NAMES, label_mapping=LABELS, labels=["no", "yes"]).pairs
    assert sorted(train + held_out) == sorted(zip(whole["premise"], whole["hypothesis"], strict=True))


def test_held_out_rows_do_not_depend_on_the_labels(table: Path):
    """Rows without a gold label are left out after the split."""
    options = {"columns": NAMES, "splits": ["validation"], "labels": ["no", "yes"]}
    all_rows = load_snli(str(table), label_mapping=LABELS, **options).splits["validation"]
    some_rows = load_snli(str(table), label_mapping=LABELS | {"0": "-"}, **options)
    expected = [pair for pair in all_rows if pair["label"] == 1]
    assert list(some_rows.splits["validation"]) == expected
    assert some_rows.num_dropped["validation"] == len(all_rows) - len(expected) > 0


def test_file_next_to_a_training_file_is_the_evaluation_split_as_a_whole(table: Path):
    options = {"columns": NAMES, "label_mapping": LABELS, "labels": None}
    snli = load_snli(str(table), train_file=str(table), splits=["train", "validation"], **options)
    assert {name: len(rows) for name, rows in snli.splits.items()} == {"train": NUM_ROWS, "validation": NUM_ROWS}


@pytest.mark.parametrize(
    "names", [["no", "yes"], ["not_entailment", "entailment"], ["a", "b", "c", "n"]], ids=["2", "two-way", "4"]
)
def test_dataset_dict_with_other_labels(names: list[str], converted: Path, corpus: Path, tmp_path: Path):
    rows = [row | {"answered": number % len(names)} for number, row in enumerate(read_rows(corpus))]
    data = Dataset.from_list(rows).cast_column("answered", ClassLabel(names=names))
    arguments = FinetuneArguments(
        str(converted), output_dir=str(tmp_path / "run"), columns=NAMES, max_length=33, max_steps=1
    )
    result = finetune_model(arguments, dataset=DatasetDict(train=data, validation=data))
    expected = [name.replace("not_", "non-") for name in names]
    assert classifier_labels(load_config(str(result.output_dir))) == expected


@pytest.mark.parametrize("form", ["jsonl", "parquet", "tsv"])
def test_folder_of_splits_in_any_format(form: str, corpus: Path, tmp_path: Path):
    rows = Dataset.from_list([row | {"answered": "yn"[row["answered"]]} for row in read_rows(corpus)])
    for split in ("train", "validation"):
        if form == "jsonl":
            rows.to_json(tmp_path / f"{split}.jsonl")
        elif form == "parquet":
            rows.to_parquet(tmp_path / f"{split}.parquet")
        else:
            rows.to_csv(tmp_path / f"{split}.tsv", sep="\t")
    snli = load_snli(str(tmp_path), splits=["train", "validation"], columns=NAMES, labels=None)
    for split in ("train", "validation"):  # "n" alone would be neutral
        assert snli.splits[split].features["label"].names == ["n", "y"]
        assert np.array_equal(snli.splits[split]["label"], ["ny".index(label) for label in rows["answered"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, r"the labels 0, 1 are numbers without names; set labels 0=NAME 1=NAME"),
        ({"columns": {"claim": "question"}}, r"columns claim=question: write premise\|hypothesis\|label=NAME"),
        ({"columns": NAMES | {"label": "answer"}, "labels": None}, "has [0-9,]+ different labels; choose another"),
        ({"eval_split": "test"}, "split test: .*answers.csv is one file, which has no split of this name"),
    ],
)
def test_data_that_do_not_fit_are_refused(changes: dict, message: str, table: Path, converted: Path, tmp_path: Path):
    options = {"columns": NAMES, "labels": LABELS, "max_length": 33, **changes}
    many = tmp_path / "many.csv"
    many.write_text("question,answer,answered\n" + "".join(f"A dog.,Answer {number}.,0\n" for number in range(101)))
    data = many if options["columns"].get("label") == "answer" else table
    with pytest.raises(BertSnliError, match=message):
        finetune_model(
            FinetuneArguments(
                str(converted), dataset_name_or_path=str(data), output_dir=str(tmp_path / "run"), **options
            )
        )
    assert not (tmp_path / "run").exists()


def test_classifier_with_other_labels_is_refused(finetuned: Path, corpus: Path, tmp_path: Path):
    with pytest.raises(BertSnliError, match="label 'contradiction' is unknown; write no, yes or -"):
        finetune_model(FinetuneArguments(str(finetuned), str(corpus), str(tmp_path / "run"), max_length=33))


@pytest.mark.parametrize("classifier", ["new", "existing"])
def test_two_way_labels_do_not_train_a_three_way_classifier(
    classifier: str, corpus: Path, converted: Path, trained_classifier: Path, tmp_path: Path
):
    table = tmp_path / "two.csv"
    table.write_text("premise,hypothesis,label\n" + "A dog.,It runs.,entailment\nA cat.,It runs.,not_entailment\n" * 9)
    data = {"dataset_name_or_path": str(table)}
    if classifier == "new":
        data |= {"train_file": str(corpus / "snli_1.0_train.jsonl")}
    model = str(converted if classifier == "new" else trained_classifier)
    with pytest.raises(BertSnliError, match="label 'non-entailment' is unknown; write entailment, contradiction, neu"):
        finetune_model(FinetuneArguments(model, output_dir=str(tmp_path / "run"), max_length=33, **data))


def read_label_names(rows: list[dict], tmp_path: Path, **options) -> list[str]:
    table = tmp_path / "pairs.jsonl"
    rows = [{"premise": "A dog.", "hypothesis": "It runs.", **row} for row in rows]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows * 5))
    return load_snli(str(table), splits=["train"], labels=None, **options).splits["train"].features["label"].names


@pytest.mark.parametrize(
    ("values", "mapping", "names"),
    [
        (["e", "n", "c", None], {}, ["entailment", "contradiction", "neutral"]),
        (["entailment", "not_entailment", None], {}, ["entailment", "non-entailment"]),
        ([0.0, 1.0, None], {"0": "no", "1": "yes"}, ["no", "yes"]),
        (list(range(12)), {str(n): f"class{n}" for n in range(12)}, [f"class{n}" for n in range(12)]),
    ],
)
def test_labels_of_a_new_classifier(values: list, mapping: dict, names: list[str], tmp_path: Path):
    assert read_label_names([{"label": value} for value in values], tmp_path, label_mapping=mapping) == names


def test_number_without_a_name_is_refused(tmp_path: Path):
    with pytest.raises(BertSnliError, match="the labels 0 are numbers without names"):
        read_label_names([{"label": 0}, {"label": 1}], tmp_path, label_mapping={"O": "wrong", "1": "right"})


def test_later_split_has_the_labels_of_the_first(tmp_path: Path):
    for split, values in {"train": "yn", "validation": "n"}.items():
        rows = [{"premise": "A dog.", "hypothesis": "It runs.", "label": value} for value in values]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    snli = load_snli(str(tmp_path), splits=["train", "validation"], labels=None)
    assert snli.splits["validation"].features["label"].names == ["n", "y"]
    assert snli.splits["validation"]["label"][:] == [0]


def test_repeated_options_add_up(table: Path):
    words = ["m", "--output_dir", "o", "--labels", "0=no", "--labels", "1=yes"]
    assert FINETUNE.parse(words).labels == LABELS


def test_yaml_boolean_as_a_label_is_refused(tmp_path: Path):
    (recipe := tmp_path / "recipe.yaml").write_text("labels: {0: no, 1: yes}\n")
    with pytest.raises(BertSnliError, match="labels: False is not a text; write it in quotes"):
        FINETUNE.parse(["m", "--output_dir", "o", "--config", str(recipe)])


def test_options_without_effect_are_refused(table: Path, converted: Path):
    with pytest.raises(BertSnliError, match="dataset_config_name rte: .* is not on the Hub"):
        load_snli(str(table), dataset_config_name="rte", splits=["train"])
    with pytest.raises(BertSnliError, match="revision v1: .* is a folder"):
        load_config(str(converted), "v1")


def test_typing_error_in_a_label_of_nli_is_refused(tmp_path: Path):
    table = tmp_path / "pairs.csv"
    labels = ("entailment", "contradiction", "neutrl")
    table.write_text("premise,hypothesis,label\n" + "".join(f"A dog.,It runs.,{label}\n" for label in labels))
    with pytest.raises(BertSnliError, match="label 'neutrl' is unknown"):
        load_snli(str(table), splits=["train"], labels=None)
