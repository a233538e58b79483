"""The examples run as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast, pipeline

from bert_snli.data.snli import load_snli
from bert_snli.data.sources import read_split
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.provenance import read_steps
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from tests.support.without_package import clean_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch):
    for name in ("BERT_SNLI_CHECKPOINT", "BERT_SNLI_DATASET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "section_15_7.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    (accuracy,) = re.findall(r"validation acc (\d\.\d+)", said)
    assert float(accuracy) > 0.6  # a third would be chance
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_the_notebook_tells_nothing_of_where_it_ran():
    text = (EXAMPLES / "section_15_7.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)


@pytest.mark.slow
def test_a_model_is_used_with_transformers_alone(model_folder: Path, tmp_path: Path):
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
    first = lines[1].split()[0]
    assert lines[-1] == first, "the pipeline and the model by hand differ"


def tiny_encoder(folder: Path, corpus: Path) -> Path:
    """A BERT of transformers that knows the words of the corpus and nothing of them."""
    pairs = load_snli(str(corpus), splits=["train"]).splits["train"]
    words = sorted(
        {word for text in (*pairs["premise"], *pairs["hypothesis"]) for word in re.findall(r"\w+", text.lower())}
    )
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "initializer_range": 0.5,
    }
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", ["examples/teacher/recombine.py", "benchmarks/hard_pairs.py"])
def test_scripts_say_in_one_line_what_is_missing(script: str, corpus: Path, tmp_path: Path, run_python):
    for source, target in (("nowhere.zip", tmp_path / "pairs.jsonl"), (corpus, tmp_path / "nowhere" / "pairs.jsonl")):
        done = run_python(script, source, target)
        assert done.returncode == 2
        assert "nowhere" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "others"),
    [
        ("train_teacher", ["snli.zip", "teacher"]),
        ("ask_teacher", ["snli.zip", "pairs.jsonl", "taught.jsonl"]),
        ("embed_words", ["start", "snli.zip", "words"]),
    ],
)
def test_an_encoder_that_is_not_there_is_named(script: str, others: list[str], tmp_path: Path, run_python):
    done = run_python(f"examples/teacher/{script}.py", tmp_path / "nowhere", *(tmp_path / name for name in others))
    assert done.returncode == 2
    assert "nowhere: cannot be opened" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "others"), [("train_teacher", ["snli.zip"]), ("embed_words", ["start", "snli.zip"])]
)
def test_a_folder_that_holds_files_is_left_alone(script: str, others: list[str], tmp_path: Path, run_python):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "model.safetensors").write_bytes(b"hours of work")
    done = run_python(f"examples/teacher/{script}.py", "encoder", *others, tmp_path / "kept")
    assert done.returncode == 2
    assert "kept: already holds files; name another folder" in done.stderr and done.stderr.count("\n") == 1
    assert [path.read_bytes() for path in (tmp_path / "kept").iterdir()] == [b"hours of work"]


@pytest.mark.slow
def test_an_encoder_that_does_not_fit_is_named(corpus: Path, tmp_path: Path, run_python):
    def error_line(*command: object) -> str:
        done = run_python(*command)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    encoder = tiny_encoder(tmp_path / "encoder", corpus)
    ask = ["examples/teacher/ask_teacher.py", encoder, corpus, tmp_path / "pairs.jsonl", tmp_path / "taught.jsonl"]
    assert "encoder: has no label contradiction" in error_line(*ask)
    train = ["examples/teacher/train_teacher.py", encoder, corpus, tmp_path / "teacher"]
    BertForSequenceClassification(BertConfig.from_pretrained(encoder, num_labels=2)).save_pretrained(encoder)
    assert "encoder: cannot be opened" in error_line(*train)
    (encoder / "model.safetensors").write_bytes(b"torn")
    assert "encoder: cannot be opened" in error_line(*train)


@pytest.mark.slow
def test_hypotheses_of_one_photograph_are_paired_too(corpus: Path, tmp_path: Path, run_python):
    def recombined(*options) -> set[tuple[str, str]]:
        done = run_python("examples/teacher/recombine.py", corpus, tmp_path / "pairs.jsonl", *options)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
        return {(row["premise"], row["hypothesis"]) for row in rows}

    rows, _ = read_split(str(corpus), "train")
    photographs = [image.partition("#")[0] for image in rows["captionID"]]
    hypotheses = {*zip(photographs, rows["sentence2"], strict=True)}
    fewer, more = recombined(), recombined("--of_hypotheses", 2)
    assert fewer < more
    for first, second in more - fewer:
        assert first != second
        assert {image for image, text in hypotheses if text == first} & {
            image for image, text in hypotheses if text == second
        }
    assert len(more - fewer) <= 2 * len(set(photographs))


@pytest.mark.slow
def test_a_teacher_is_trained_asked_and_learnt_from(corpus: Path, tmp_path: Path, run_python):
    encoder, taught = tiny_encoder(tmp_path / "encoder", corpus), tmp_path / "taught.jsonl"
    steps = [
        ("train_teacher", encoder, corpus, tmp_path / "teacher", "--max_train_samples", 64, "--num_train_epochs", 1)
        + ("--credit", "a tiny encoder (MIT)"),
        ("recombine", corpus, tmp_path / "pairs.jsonl"),
        ("ask_teacher", tmp_path / "teacher", corpus, tmp_path / "pairs.jsonl", taught, "--gold", 0.75),
    ]
    for name, *arguments in steps:
        if name == "ask_teacher":  # so little trained it finds all labels as probable
            teacher = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
            with torch.no_grad():
                teacher.classifier.bias.copy_(torch.arange(3.0))
            teacher.save_pretrained(tmp_path / "teacher")
        done = run_python(f"examples/teacher/{name}.py", *arguments)
        assert done.returncode == 0, done.stderr
    train = load_snli(str(corpus), splits=["train"]).splits["train"]
    known = set(zip(train["premise"], train["hypothesis"], strict=True))
    rows = [json.loads(line) for line in taught.read_text().splitlines()]
    new = rows[len(train) :]
    assert len(new) > 100 and not known & {(row["premise"], row["hypothesis"]) for row in new}
    assert {row["premise"] for row in new} <= set(train["premise"])
    for row, label in zip(rows, train["label"], strict=False):
        assert row["label"] == train.features["label"].names[label] and row["scores"][row["label"]] >= 0.75
    teacher = pipeline("text-classification", str(tmp_path / "teacher"), device="cpu")
    said = {
        entry["label"]: entry["score"]
        for entry in teacher({"text": new[0]["premise"], "text_pair": new[0]["hypothesis"]}, top_k=None)
    }
    assert max(said.values()) - min(said.values()) > 0.1
    assert new[0]["scores"] == pytest.approx(said, abs=3e-2)  # the one in bf16, where the machine is faster at it
    assert read_steps(taught) == [
        "A teacher, a tiny encoder (MIT), was fine-tuned on 64 labelled pairs of SNLI.",
        f"The teacher gave its probabilities for {len(rows):,} pairs; those of the {len(train):,} with a label were "
        "mixed with it (75% label).",
    ]


@pytest.mark.slow
def test_words_start_from_an_encoders_vectors(corpus: Path, tmp_path: Path, run_python):
    """With as many components as the encoder is wide, nothing is lost: distances are those of its mean states."""
    encoder = tiny_encoder(tmp_path / "encoder", corpus)
    pieces, states_of = BertTokenizerFast.from_pretrained(encoder), BertModel.from_pretrained(encoder).eval()
    tokenizer = build_tokenizer(
        [*SPECIAL_TOKENS.values(), *sorted(set(pieces.get_vocab()) - {"[UNK]"})], model_max_length=64
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    D2LBertForPreTraining(D2LBertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    done = run_python("examples/teacher/embed_words.py", encoder, tmp_path / "start", corpus, tmp_path / "words")
    assert done.returncode == 0, done.stderr

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
    assert read_steps(tmp_path / "words") == [
        f"Its {len(found):,} words started from vectors of encoder, 16 principal components."
    ]
