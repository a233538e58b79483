"""Pretraining runs against d2l 15.10, their model folders and their options."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    pipeline,
)

from bert_snli.cli import main
from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.data.sample import write_sample
from bert_snli.files import read_history
from bert_snli.finetune import finetune_model
from bert_snli.pretrain import pretrain_model
from bert_snli.training.arguments import FinetuneArguments
from bert_snli.training.command_line import PRETRAIN
from conversion.convert import convert_checkpoint
from tests.support.checkpoints import save_d2l_checkpoint
from tests.support.command_line import error_line
from tests.support.d2l_pretraining_reference import pretraining_loss
from tests.support.d2l_reference import ReferenceBERT
from tests.support.finetuning import find_differences, read_metrics, step_losses
from tests.support.pretraining import MAX_LENGTH, d2l_examples
from tests.support.training_processes import TrainingRun

pytestmark = pytest.mark.usefixtures("without_plots")

STEPS, BATCH, LEARNING_RATE = 12, 32, 1e-3
TINY = "--hidden_size 16 --intermediate_size 24 --num_attention_heads 2 --num_hidden_layers 2 --min_freq 1".split()


def options(base_model: Path | None, data: Path, output_dir: Path, *more: object) -> list[str]:
    """Return the arguments of `bert-snli pretrain`; without a base model, for a tiny new model."""
    words = ["--dataset_name_or_path", data, "--output_dir", output_dir, "--max_length", MAX_LENGTH]
    words += ["--model_name_or_path", base_model] if base_model else TINY
    return [str(word) for word in (*words, "--mixed_precision", "no", "--logging_steps", 1, *more)]


D2L_OPTIONS = (
    *("--max_steps", STEPS, "--train_batch_size", BATCH, "--train_sampling_strategy", "random", "--dropout", 0),
    *(
        "--optim",
        "adam_torch",
        "--learning_rate",
        LEARNING_RATE,
        "--lr_scheduler_type",
        "constant",
        "--warmup_steps",
        0,
    ),
    *("--weight_decay", 0, "--max_grad_norm", 0, "--seed", 7),
)


@pytest.fixture(scope="module")
def d2l_weights(wiki_vocabulary: list[str]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return ReferenceBERT(vocab=len(wiki_vocabulary)).state_dict()


@pytest.fixture(scope="module")
def base_model(d2l_weights, wiki_vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base_model")
    convert_checkpoint(
        save_d2l_checkpoint(folder / "d2l", d2l_weights, wiki_vocabulary), folder / "hf", num_attention_heads=2
    )
    return folder / "hf"


@pytest.fixture(scope="module")
def reference_losses(wiki_lines: list[str], wiki_vocabulary: list[str], wiki: Path, d2l_weights) -> list[float]:
    """The losses of d2l's model, loss and optimizer on d2l's examples, which it pads to the full length."""
    net = ReferenceBERT(vocab=len(wiki_vocabulary))
    net.load_state_dict(d2l_weights)
    ids = {token: number for number, token in enumerate(wiki_vocabulary)}
    trainer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    epoch = 0
    while len(losses) < STEPS:
        examples = d2l_examples(wiki_lines, wiki_vocabulary, wiki, 7, epoch)
        lengths = np.array([len(example[0]) for example in examples])
        sampler = GlobalBatchSampler(lengths, BATCH, seed=7, strategy="random")
        sampler.set_epoch(epoch)
        for batch in sampler.global_batches()[: STEPS - len(losses)]:
            loss = pretraining_loss(net, [examples[row] for row in batch], ids, MAX_LENGTH)
            trainer.zero_grad()
            loss.backward()
            trainer.step()
            losses.append(float(loss.detach()))
        epoch += 1
    assert epoch > 1
    return losses


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_losses_equal_those_of_d2l(
    micro_batches: int, base_model: Path, wiki: Path, reference_losses: list[float], tmp_path: Path
):
    command = options(base_model, wiki, tmp_path / "run", *D2L_OPTIONS, "--num_micro_batches", micro_batches)
    results = pretrain_model(PRETRAIN.parse(command)).metrics
    np.testing.assert_allclose(step_losses(tmp_path / "run"), reference_losses, rtol=1e-5)
    assert results["train_loss"] == pytest.approx(results["train_mlm_loss"] + results["train_nsp_loss"])


@pytest.mark.slow
def test_losses_of_two_processes_equal_those_of_d2l(
    base_model: Path, wiki: Path, reference_losses: list[float], tmp_path: Path, run_python
):
    command = options(base_model, wiki, tmp_path / "two", *D2L_OPTIONS, "--num_micro_batches", 2)
    done = run_python("-m", "bert_snli.cli", "pretrain", "--num_processes", 2, *command)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(step_losses(tmp_path / "two"), reference_losses, rtol=1e-5)
    one = pretrain_model(PRETRAIN.parse(options(base_model, wiki, tmp_path / "one", *D2L_OPTIONS))).metrics
    two = json.loads((tmp_path / "two" / "train_results.json").read_text())
    for name in ("eval_mlm_loss", "eval_nsp_loss", "eval_mlm_accuracy", "eval_perplexity"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)


@pytest.mark.slow
def test_resume_is_bit_exact_after_sigkill(wiki: Path, tmp_path: Path):
    """With new weights, dropout and masks that change; the run is killed in its second epoch."""
    expected, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    more = ("--num_train_epochs", 3, "--train_batch_size", 16)
    pretrain_model(PRETRAIN.parse(options(None, wiki, expected, *more)))
    command = options(None, wiki, killed, *more, "--save_steps", 5)
    process = TrainingRun("bert_snli.pretrain", command, killed)
    while not (killed / "checkpoint-15").is_dir():
        assert process.is_running()
        time.sleep(0.005)
    process.kill()
    assert not (killed / "train_results.json").exists()
    pretrain_model(PRETRAIN.parse([*command, "--resume_from_checkpoint", "auto"]))
    assert find_differences(expected, killed) == []


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the sentences of a generated corpus."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    corpus = write_sample(folder.parent / "corpus", num_pairs={"train": 3000, "dev": 600, "test": 9})
    sizes = "--hidden_size 32 --intermediate_size 64 --num_attention_heads 2 --min_freq 1 --initializer_range 0.2"
    recipe = "--num_train_epochs 5 --train_batch_size 32 --learning_rate 6e-3 --dropout 0 --max_position_embeddings 64"
    words = ["--dataset_name_or_path", str(corpus), "--output_dir", str(folder), "--max_length", "64"]
    words += ["--mixed_precision", "no"]
    pretrain_model(PRETRAIN.parse([*words, *sizes.split(), *recipe.split()]))
    return folder


def test_pretrained_model_predicts_masked_tokens_of_held_out_text(pretrained: Path):
    epochs = [entry for entry in read_metrics(pretrained) if "eval_loss" in entry]
    # The standard error of the accuracy is 0.01. Token frequencies alone give perplexity 39 and accuracy 0.12.
    assert epochs[-1]["eval_perplexity"] < epochs[0]["eval_perplexity"] / 2
    assert epochs[-1]["eval_mlm_accuracy"] > 0.3
    assert epochs[-1]["eval_perplexity"] == pytest.approx(np.exp(epochs[-1]["eval_mlm_loss"]))


def test_pretrained_folder_loads_with_auto_classes_and_fill_mask(pretrained: Path, corpus: Path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining):
        model, info = auto.from_pretrained(pretrained, trust_remote_code=True, output_loading_info=True)
        assert not info["missing_keys"] and type(model).__name__.startswith("D2LBert")
    row = json.loads((corpus / "snli_1.0_train.jsonl").read_text().splitlines()[0])
    words = row["sentence1"].split()
    fill = pipeline("fill-mask", model=str(pretrained), tokenizer=tokenizer, trust_remote_code=True)
    predictions = fill(" ".join(["<mask>", *words[1:]]), top_k=3)
    assert words[0].lower() in [prediction["token_str"] for prediction in predictions]


def test_export_to_d2l_and_conversion_return_the_same_weights(pretrained: Path, tmp_path: Path):
    assert main(["export", str(pretrained), "--format", "d2l-torch", "--output_dir", str(tmp_path / "d2l")]) == 0
    command = ["convert", str(tmp_path / "d2l"), "--output_dir", str(tmp_path / "back"), "--num_attention_heads", "2"]
    assert main(command) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_pretrained_model_of_the_d2l_recipe_can_be_fine_tuned_with_an_mlp_head(
    wiki: Path, corpus: Path, tmp_path: Path
):
    """The first edition of d2l 15.7: its recipe in the repository, at its size."""
    recipe = ["--config", "d2l_book_pretrain", "--dataset_name_or_path", str(wiki), "--max_steps", "2"]
    pretrain_model(PRETRAIN.parse([*recipe, "--output_dir", str(tmp_path / "pretrained")]))
    config = json.loads((tmp_path / "pretrained" / "config.json").read_text())
    assert [config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")] == [128, 128, 2]
    finetune_model(
        FinetuneArguments(
            str(tmp_path / "pretrained"), str(corpus), str(tmp_path / "run"), classifier_head="mlp", max_steps=2
        )
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classifier_head"] == "mlp"


def test_extended_vocabulary_keeps_the_known_ids_and_weights(
    base_model: Path, corpus: Path, wiki_vocabulary: list[str], tmp_path: Path
):
    """The frequent words of SNLI are added to the embedding and to the language-model head."""
    run = tmp_path / "run"
    more = ("--extend_vocab_from", corpus, "--min_freq", 3, "--max_steps", 1, "--learning_rate", 1e-30)
    results = pretrain_model(PRETRAIN.parse(options(base_model, corpus, run, *more, "--weight_decay", 0))).metrics
    tokenizer = AutoTokenizer.from_pretrained(run)
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert words[: len(wiki_vocabulary)] == wiki_vocabulary
    assert results["vocab_size"] == len(words) > len(wiki_vocabulary)
    before, after = (load_file(folder / "model.safetensors") for folder in (base_model, run))
    for name in before:
        torch.testing.assert_close(after[name][: len(before[name])], before[name], rtol=0, atol=1e-20)
    for name in ("bert.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"):
        assert len(after[name]) == len(words)
        assert after[name][len(wiki_vocabulary) :].isfinite().all() and after[name][len(wiki_vocabulary) :].any()
    assert json.loads((run / "config.json").read_text())["vocab_size"] == len(words)
    assert read_history(run) == [
        f"{len(words) - len(wiki_vocabulary):,} tokens of `{corpus.name}` were added to its vocabulary.",
        f"Pretrained on sentence pairs of `{corpus.name}`, without labels.",
    ]
    assert main(["export", str(run), "--format", "d2l-torch", "--output_dir", str(tmp_path / "d2l")]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hidden_size", 30, "--num_attention_heads", 4], "hidden_size (30) is not a multiple"),
        (["--hidden_size", 0], "--hidden_size 0: give a number above 0"),
        (["--max_length", 600], "--max_length 600: the model has 512 positions"),
        (["--max_length", 4], "--max_length 4: give 5 or more"),
        (["--dataset_name_or_path", "nowhere/text.txt"], "nowhere/text.txt: no such file or folder"),
        (
            ["--dataset_name_or_path", "someone/text"],
            "the Hub cannot be reached",
        ),
        (["--extend_vocab_from", "sample"], "--extend_vocab_from: needs --model_name_or_path"),
        (["--model_name_or_path", "nowhere"], "nowhere: no such model folder"),
        (["--num_train_epochs", 0], "--num_train_epochs 0: give 1 or more"),
        (["--initializer_range", "inf"], "--initializer_range inf: give a number"),
        (["--min_freq", 10_000], "--min_freq 10000: no token occurs that often"),
        (["--hidden_size", 2**40], "the model does not fit into memory"),
        (["--dataset_name_or_path", "a" * 300], "cannot be loaded from the Hub"),
        (["--dataset_config_name", "wikitext-2-v1"], "--dataset_config_name wikitext-2-v1: only for the Hub"),
        (
            ["--learning_rate", 1e30, "--warmup_steps", 0, "--max_steps", 1, *TINY],
            "the metrics after step 1 are not finite",
        ),
    ],
)
def test_invalid_option_is_reported_in_one_line(more: list, message: str, wiki: Path, tmp_path: Path, capsys):
    command = ["pretrain", "--dataset_name_or_path", wiki, "--output_dir", tmp_path / "run", *more]
    assert message in error_line(command, capsys)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train.txt", "valid.txt", "dev.txt"],
            "the splits of the files dev.txt, train.txt, valid.txt are unclear",
        ),
        (["train.md", "train.txt"], "the splits of the files train.md, train.txt are unclear"),
        (
            ["valid.txt", "test.txt"],
            "the splits of the files test.txt, valid.txt are unclear; name the training file",
        ),
        (
            ["train.txt", "valid.txt", "notes.txt"],
            "the splits of the files notes.txt, train.txt, valid.txt are unclear",
        ),
        (["notes.txt", "valid.txt"], "the splits of the files notes.txt, valid.txt are unclear"),
        (["README.md", "LICENSE.txt"], "no text files (README and LICENSE files are not read); add a"),
        ([], "no text files (README and LICENSE files are not read); add a file train.txt"),
        (
            ["wiki.valid.tokens", "wiki.test.tokens"],
            "the splits of the files wiki.test.tokens, wiki.valid.tokens are unclear",
        ),
    ],
)
def test_folder_of_text_with_an_unclear_train_split_is_refused(
    names: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "data").mkdir()
    for name in names:
        (tmp_path / "data" / name).write_text("one line . of two sentences . \n" * 30, encoding="utf-8")
    command = ["pretrain", "--dataset_name_or_path", tmp_path / "data", "--output_dir", tmp_path / "run", *TINY]
    assert f"{tmp_path / 'data'}: {message}" in error_line([*command, "--max_steps", 1], capsys)
    assert not (tmp_path / "run").exists()


def test_hidden_size_with_a_base_model_is_refused(base_model: Path, wiki: Path, tmp_path: Path, capsys):
    command = ["pretrain", *options(base_model, wiki, tmp_path / "run"), "--hidden_size", 16]
    assert f"--hidden_size: is fixed by {base_model}" in error_line(command, capsys)


def test_base_model_without_pretraining_heads_is_refused(
    base_model: Path, wiki: Path, corpus: Path, tmp_path: Path, capsys
):
    finetune_model(
        FinetuneArguments(
            str(base_model), str(corpus), str(tmp_path / "classifier"), max_length=MAX_LENGTH, max_steps=1
        )
    )
    command = ["pretrain", *options(tmp_path / "classifier", wiki, tmp_path / "run")]
    assert "lacks lm_head.decoder.bias" in error_line(command, capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text.txt: the file is empty; get it again, or give another file"),
        (b"one line without an end\n" * 3, "no line has two sentences"),
        (b"one line . of two\n" * 1, "no line has two sentences"),
        (b"one line . of two\n" + b"one line .\n" * 9, "(held-out): no line has two sentences"),
        (
            b"\xff\xfe broken . text \xff . here\n",
            "text.txt: line 1 is not UTF-8 (byte 1 is 0xff); save the file as UTF-8",
        ),
    ],
    ids=["empty", "single-sentences", "one-paragraph", "no-held-out-paragraph", "not-utf-8"],
)
def test_unusable_text_is_refused(content: bytes, message: str, tmp_path: Path, capsys):
    (tmp_path / "text.txt").write_bytes(content)
    command = ["pretrain", "--dataset_name_or_path", tmp_path / "text.txt", "--output_dir", tmp_path / "run"]
    assert message in error_line(command, capsys)
    assert not (tmp_path / "run").exists()


def test_data_options_change_casing_samples_and_batches(corpus: Path, tmp_path: Path):
    more = "--do_lower_case false --text_source parse --max_train_samples 50 --max_eval_samples 9"
    more += " --train_batch_size 20 --num_train_epochs 1 --learning_rate 1e-4"
    results = pretrain_model(PRETRAIN.parse(options(None, corpus, tmp_path / "run", *more.split()))).metrics
    assert results["train_samples"] == 50
    assert results["train_steps"] == 3
    assert {"A", "a"} <= AutoTokenizer.from_pretrained(tmp_path / "run").get_vocab().keys()


def test_load_best_model_at_end_saves_the_epoch_with_the_lowest_loss_and_otherwise_the_last(wiki: Path, tmp_path: Path):
    """The learning rate is far too high, so that the held-out loss gets worse."""
    losses = {}
    for best in ("true", "false"):
        more = ("--num_train_epochs", 3, "--learning_rate", 0.3, "--load_best_model_at_end", best)
        results = pretrain_model(PRETRAIN.parse(options(None, wiki, tmp_path / best, *more))).metrics
        epochs = [entry["eval_loss"] for entry in read_metrics(tmp_path / best) if "eval_loss" in entry]
        losses[best] = (results["eval_loss"], epochs)
    assert losses["true"][0] == min(losses["true"][1]) < losses["true"][1][-1]
    assert losses["false"][0] == losses["false"][1][-1]


def test_resume_is_refused_with_other_options_or_training_text(wiki: Path, tmp_path: Path, capsys):
    for name in ("wiki.train.tokens", "wiki.valid.tokens"):
        shutil.copy(wiki / name, tmp_path)
    command = options(None, tmp_path, tmp_path / "run", "--max_steps", 4, "--save_steps", 2)
    pretrain_model(PRETRAIN.parse(command))
    resume = ["pretrain", *command, "--resume_from_checkpoint", "auto"]
    assert "written with --hidden_size 16, not 32" in error_line([*resume, "--hidden_size", "32"], capsys)
    assert "written with --do_lower_case None, not False" in error_line([*resume, "--do_lower_case", "false"], capsys)
    text = (wiki / "wiki.train.tokens").read_text()
    (tmp_path / "wiki.train.tokens").write_text(text.replace(" person", " zebra"), encoding="utf-8")
    assert "was written with other pairs, labels or tokens" in error_line(resume, capsys)


def test_resume_is_refused_with_another_evaluation_set(wiki: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tmp_path / "data"
    shutil.copytree(wiki, data)
    command = options(None, data, tmp_path / "run", "--max_steps", 4, "--save_steps", 2)
    pretrain_model(PRETRAIN.parse(command))
    text = "".join(reversed((data / "wiki.valid.tokens").read_text().splitlines(keepends=True)))
    (data / "wiki.valid.tokens").write_text(text, encoding="utf-8")
    resume = ["pretrain", *command, "--resume_from_checkpoint", "auto"]
    assert "was written with other pairs, labels or tokens" in error_line(resume, capsys)


def test_vocabulary_of_a_tokenizer_with_other_rules_is_not_extended(
    base_model: Path, wiki: Path, tmp_path: Path, capsys
):
    shutil.copytree(base_model, tmp_path / "hf")
    tokenizer = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    tokenizer["normalizer"]["normalizers"].pop(0)
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer))
    command = ["pretrain", *options(tmp_path / "hf", wiki, tmp_path / "run"), "--extend_vocab_from"]
    assert "the tokenizer of another version of bert-snli" in error_line([*command, wiki], capsys)
    assert "--extend_vocab_from nowhere/text" in error_line([*command, "nowhere/text"], capsys)
