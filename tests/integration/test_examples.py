"""The notebook and the scripts in `examples/`."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast, pipeline

from bert_snli.cli import main
from bert_snli.console import run
from bert_snli.data.snli import load_snli
from bert_snli.data.sources import read_split
from bert_snli.evaluation.report import evaluate_model
from bert_snli.files import read_history
from bert_snli.finetune import finetune_model
from bert_snli.hub import stage_upload
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from bert_snli.training.arguments import FinetuneArguments
from tests.support.processes import REPOSITORY
from tests.support.without_package import clean_environment

EXAMPLES = REPOSITORY / "examples"
RunScript = Callable[..., int]


def run_notebook(name: str, folder: Path) -> list[dict]:
    """Run a notebook in `folder` and return its outputs."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(outputs: list[dict]) -> str:
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_notebook_of_section_15_7_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("BERT_SNLI_CHECKPOINT", "BERT_SNLI_DATASET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    outputs = run_notebook("section_15_7.ipynb", tmp_path)
    (accuracy,) = re.findall(r"validation acc (\d\.\d+)", text_of(outputs))
    assert float(accuracy) > 0.6  # chance is 0.33
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@pytest.mark.slow
def test_notebook_of_trainer_runs(quickstart_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    shutil.copytree(quickstart_folder, tmp_path / "quickstart")
    (tmp_path / "examples").mkdir()
    outputs = run_notebook("trainer.ipynb", tmp_path / "examples")
    accuracies = re.findall(r"^(trainer|finetune): accuracy (\S+)$", text_of(outputs), re.MULTILINE)
    assert [name for name, _ in accuracies] == ["trainer", "finetune"]
    assert all(float(accuracy) > 0.6 for _, accuracy in accuracies)  # chance is 0.33


@pytest.mark.parametrize("name", ["section_15_7.ipynb", "trainer.ipynb"])
def test_notebook_has_no_paths_of_the_machine_that_ran_it(name: str):
    assert not re.search(r"/(tmp|home|root|work|Users)/", (EXAMPLES / name).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_model_folder_is_usable_without_the_package(model_folder: Path, tmp_path: Path):
    script = shutil.copy(EXAMPLES / "use_from_the_hub.py", tmp_path)
    done = subprocess.run(
        [sys.executable, script, str(model_folder)],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    label_of_pipeline, label_of_model = lines[1].split()[0], lines[-1]
    assert label_of_pipeline == label_of_model


# `Trainer`: examples/trainer.py


@pytest.fixture(scope="module")
def pretraining_model(vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, pretraining heads and the vocabulary of the corpus, without dropout."""
    folder = tmp_path_factory.mktemp("pretraining_model")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(vocabulary, model_max_length=512)
    config = D2LBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    D2LBertForPreTraining(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_with_trainer(
    monkeypatch: pytest.MonkeyPatch, model: Path, corpus: Path, output_dir: Path, **options: object
) -> None:
    """Run examples/trainer.py in this process."""
    paths = {"model_name_or_path": model, "dataset_name_or_path": corpus, "output_dir": output_dir}
    words = [f"--{name}={value}" for name, value in {**paths, "use_cpu": True, **options}.items()]
    monkeypatch.setattr(sys, "argv", ["trainer.py", *words])
    runpy.run_path(str(EXAMPLES / "trainer.py"), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "epochs", "batch_size"), [(200, 50, None), (128, 25, 64)])
def test_trainer_script_trains_the_weights_of_finetune(
    pairs: int,
    epochs: int,
    batch_size: int | None,
    pretraining_model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_plots: None,
):
    """Without dropout, both ways compute the same 50 updates, on one batch of all pairs or on two batches."""
    options = {"max_train_samples": pairs, "num_train_epochs": epochs, "load_best_model_at_end": False, "seed": 3}
    batches = {"train_batch_size": batch_size} if batch_size else {}
    paths = map(str, (pretraining_model, corpus, tmp_path / "finetune"))
    finetune_model(FinetuneArguments(*paths, mixed_precision="no", **batches, **options))
    if batch_size:
        options["per_device_train_batch_size"] = batch_size
    no_evaluation = {"eval_strategy": "no", "save_strategy": "no"}
    train_with_trainer(monkeypatch, pretraining_model, corpus, tmp_path / "trainer", **options, **no_evaluation)
    start, expected, trained = (
        load_file(folder / "model.safetensors")
        for folder in (pretraining_model, tmp_path / "finetune", tmp_path / "trainer")
    )
    moved = {name: (expected[name] - start[name]).abs().max() for name in expected.keys() & start.keys()}
    assert moved["bert.encoder.layer.0.attention_norm.weight"] > 1e-2
    for name, weight in expected.items():
        # Adam scales up the rounding errors of small gradients. The softmax cancels the bias of the keys, so its whole
        # gradient is a rounding error. Weight decay would change the weight of a LayerNorm by 25e-5.
        if not name.endswith("key.bias"):
            assert (weight - trained[name]).abs().max() < (5e-5 if "norm" in name else 1e-3), name


@pytest.mark.slow
def test_trainer_script_saves_the_best_epoch_for_the_commands(
    pretraining_model: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    run_folder = tmp_path / "run"
    options = {"max_length": 20, "num_train_epochs": 8, "seed": 1, "per_device_train_batch_size": 16}
    train_with_trainer(monkeypatch, pretraining_model, corpus, run_folder, **options)
    state = json.loads((run_folder / "trainer_state.json").read_text())
    accuracies = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert len(set(accuracies)) > 1
    results = evaluate_model(str(run_folder), str(corpus), split="validation")
    assert results["accuracy"] == max(accuracies) and results["max_length"] == 20
    best, saved = (load_file(Path(f) / "model.safetensors") for f in (state["best_model_checkpoint"], run_folder))
    assert all(torch.equal(weight, saved[name]) for name, weight in best.items())
    capsys.readouterr()
    assert main(["predict", str(run_folder), "--premise", "A man sleeps.", "--hypothesis", "A man is awake."]) == 0
    assert capsys.readouterr().out.split()[0] in ("entailment", "contradiction", "neutral")
    assert stage_upload(run_folder, "user/name", tmp_path / "staged") == []
    assert not (tmp_path / "staged" / "training_args.bin").exists()


@pytest.mark.slow
def test_trainer_script_resumes_bit_exactly_after_an_epoch(
    pretraining_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Path(shutil.copytree(pretraining_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.1}))
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "load_best_model_at_end": False}
    folders = [tmp_path / "whole", tmp_path / "resumed"]
    train_with_trainer(monkeypatch, model, corpus, folders[0], save_total_limit=2, **options)
    checkpoint = min(folders[0].glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    train_with_trainer(monkeypatch, model, corpus, folders[1], resume_from_checkpoint=checkpoint, **options)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    first = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(first["classifier.dense.weight"], whole["classifier.dense.weight"])


# Knowledge distillation: examples/teacher


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> RunScript:
    """Return a function that runs a script of `examples/teacher` in this process and returns its exit code."""
    monkeypatch.syspath_prepend(EXAMPLES / "teacher")

    def run_main(name: str, *arguments: object) -> int:
        return run(f"{name}.py", lambda: importlib.import_module(name).main([str(word) for word in arguments]))

    return run_main


@pytest.fixture(scope="module")
def shared_encoder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of transformers with random weights and a vocabulary of the words of the corpus."""
    folder = tmp_path_factory.mktemp("encoder")
    pairs = load_snli(str(corpus), splits=["train"]).splits["train"]
    texts = (*pairs["premise"], *pairs["hypothesis"])
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.5, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(shared_encoder: Path, tmp_path: Path) -> Path:
    """A copy of the encoder, which tests may change."""
    return Path(shutil.copytree(shared_encoder, tmp_path / "encoder"))


def test_missing_data_or_output_folder_is_named_in_one_line(
    corpus: Path, tmp_path: Path, run_script: RunScript, capsys: pytest.CaptureFixture
):
    for source, target in (("nowhere.zip", tmp_path / "pairs.jsonl"), (corpus, tmp_path / "nowhere" / "pairs.jsonl")):
        assert run_script("recombine", source, target) == 2
        error = capsys.readouterr().err
        assert "nowhere" in error and error.count("\n") == 1


def test_hard_pairs_names_missing_data_or_output_folder_in_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for source, target in (("nowhere.zip", tmp_path / "pairs.jsonl"), (corpus, tmp_path / "nowhere" / "pairs.jsonl")):
        monkeypatch.setattr(sys, "argv", ["hard_pairs.py", str(source), str(target)])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(REPOSITORY / "benchmarks" / "hard_pairs.py"), run_name="__main__")
        error = capsys.readouterr().err
        assert "nowhere" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "others"),
    [
        ("train_teacher", ["snli.zip", "teacher"]),
        ("predict_soft_labels", ["snli.zip", "pairs.jsonl", "taught.jsonl"]),
        ("embed_words", ["start", "snli.zip", "words"]),
    ],
)
def test_missing_encoder_is_named_in_one_line(
    script: str, others: list[str], tmp_path: Path, run_script: RunScript, capsys: pytest.CaptureFixture
):
    assert run_script(script, tmp_path / "nowhere", *(tmp_path / name for name in others)) == 2
    error = capsys.readouterr().err
    assert "nowhere: cannot be opened" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "others"), [("train_teacher", ["snli.zip"]), ("embed_words", ["start", "snli.zip"])]
)
def test_output_folder_with_files_is_refused(
    script: str, others: list[str], tmp_path: Path, run_script: RunScript, capsys: pytest.CaptureFixture
):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "model.safetensors").write_bytes(b"hours of work")
    assert run_script(script, "encoder", *others, tmp_path / "used") == 2
    error = capsys.readouterr().err
    assert "used: already holds files; give another folder" in error and error.count("\n") == 1
    assert [path.read_bytes() for path in (tmp_path / "used").iterdir()] == [b"hours of work"]


def test_classifier_without_the_labels_of_snli_is_no_teacher(
    encoder: Path, corpus: Path, tmp_path: Path, run_script: RunScript, capsys: pytest.CaptureFixture
):
    assert run_script("predict_soft_labels", encoder, corpus, tmp_path / "pairs.jsonl", tmp_path / "taught.jsonl") == 2
    assert "encoder: has no label contradiction" in capsys.readouterr().err.splitlines()[-1]


def classify_two_labels(encoder: Path) -> None:
    BertForSequenceClassification(BertConfig.from_pretrained(encoder, num_labels=2)).save_pretrained(encoder)


def damage_weights(encoder: Path) -> None:
    (encoder / "model.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("change", [classify_two_labels, damage_weights])
def test_encoder_that_does_not_fit_or_is_damaged_is_named(
    change: Callable[[Path], None],
    encoder: Path,
    corpus: Path,
    tmp_path: Path,
    run_script: RunScript,
    capsys: pytest.CaptureFixture,
):
    change(encoder)
    assert run_script("train_teacher", encoder, corpus, tmp_path / "teacher") == 2
    assert "encoder: cannot be opened" in capsys.readouterr().err.splitlines()[-1]


def test_recombine_pairs_hypotheses_of_one_image(corpus: Path, tmp_path: Path, run_script: RunScript):
    def recombine(*options: object) -> set[tuple[str, str]]:
        assert run_script("recombine", corpus, tmp_path / "pairs.jsonl", *options) == 0
        rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
        return {(row["premise"], row["hypothesis"]) for row in rows}

    rows, _ = read_split(str(corpus), "train")
    images = [image.partition("#")[0] for image in rows["captionID"]]
    hypotheses = {*zip(images, rows["sentence2"], strict=True)}
    without, with_hypotheses = recombine(), recombine("--of_hypotheses", 2)
    assert without < with_hypotheses
    for first, second in with_hypotheses - without:
        assert first != second
        assert {image for image, text in hypotheses if text == first} & {
            image for image, text in hypotheses if text == second
        }
    assert len(with_hypotheses - without) <= 2 * len(set(images))


def test_teacher_predictions_are_mixed_with_gold_labels(
    encoder: Path, corpus: Path, tmp_path: Path, run_script: RunScript
):
    """Fine-tune the teacher, make new pairs, and write the teacher's predictions for both old and new pairs."""
    taught = tmp_path / "taught.jsonl"
    options = ("--max_train_samples", 64, "--num_train_epochs", 1, "--credit", "a tiny encoder (MIT)")
    assert run_script("train_teacher", encoder, corpus, tmp_path / "teacher", *options) == 0
    teacher = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    with torch.no_grad():  # so short a training leaves all labels equally probable
        teacher.classifier.bias.copy_(torch.arange(3.0))
    teacher.save_pretrained(tmp_path / "teacher")
    assert run_script("recombine", corpus, tmp_path / "pairs.jsonl") == 0
    arguments = (tmp_path / "teacher", corpus, tmp_path / "pairs.jsonl", taught, "--gold", 0.75)
    assert run_script("predict_soft_labels", *arguments) == 0

    train = load_snli(str(corpus), splits=["train"]).splits["train"]
    known = set(zip(train["premise"], train["hypothesis"], strict=True))
    rows = [json.loads(line) for line in taught.read_text().splitlines()]
    new = rows[len(train) :]
    assert len(new) > 100 and not known & {(row["premise"], row["hypothesis"]) for row in new}
    lines = (corpus / "snli_1.0_train.jsonl").read_text().splitlines()
    assert {row["premise"] for row in new} <= {json.loads(line)["sentence1"] for line in lines}
    for row, label in zip(rows, train["label"], strict=False):
        assert row["label"] == train.features["label"].names[label] and row["scores"][row["label"]] >= 0.75
    classify = pipeline("text-classification", str(tmp_path / "teacher"), device="cpu")
    entries = classify({"text": new[0]["premise"], "text_pair": new[0]["hypothesis"]}, top_k=None)
    expected = {entry["label"]: entry["score"] for entry in entries}
    assert max(expected.values()) - min(expected.values()) > 0.1
    assert new[0]["scores"] == pytest.approx(expected, abs=3e-2)  # the script uses bf16 where that is faster
    assert read_history(taught) == [
        "A teacher, a tiny encoder (MIT), was fine-tuned on 64 labelled pairs of SNLI.",
        f"The teacher gave its probabilities for {len(rows):,} pairs; those of the {len(train):,} with a label were "
        "mixed with it (75% label).",
    ]


def test_embed_words_keeps_distances_of_the_encoders_mean_states(
    encoder: Path, corpus: Path, tmp_path: Path, run_script: RunScript
):
    """The number of principal components is the width of the encoder, so that the projection loses nothing."""
    pieces, states_of = BertTokenizerFast.from_pretrained(encoder), BertModel.from_pretrained(encoder).eval()
    words = sorted(set(pieces.get_vocab()) - {"[UNK]"})
    tokenizer = build_tokenizer([*SPECIAL_TOKENS.values(), *words], model_max_length=64)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    D2LBertForPreTraining(D2LBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "base_model")
    tokenizer.save_pretrained(tmp_path / "base_model")
    assert run_script("embed_words", encoder, tmp_path / "base_model", corpus, tmp_path / "words") == 0

    pairs = load_snli(str(corpus), splits=["train"]).splits["train"]
    found: dict[str, list] = {}
    for text in dict.fromkeys([*pairs["premise"], *pairs["hypothesis"]]):
        words = [word for word in tokenizer.tokenize(text) if word != "<unk>"]
        ids = pieces.convert_tokens_to_ids(["[CLS]", *words, "[SEP]"])
        with torch.no_grad():
            states = states_of(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for word, state in zip(words, torch.stack(states).mean(0)[0, 1:-1], strict=True):
            found.setdefault(word, []).append(state)
    expected = torch.pdist(torch.stack([torch.stack(states).mean(0) for states in found.values()]))
    table = D2LBertForPreTraining.from_pretrained(tmp_path / "words").get_input_embeddings().weight.detach()
    distances = torch.pdist(table[tokenizer.convert_tokens_to_ids(list(found))])
    assert torch.corrcoef(torch.stack([distances, expected]))[0, 1] > 0.999
    assert read_history(tmp_path / "words") == [
        f"Its {len(found):,} words started from vectors of encoder, 16 principal components."
    ]
