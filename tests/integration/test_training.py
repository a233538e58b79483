"""Fine-tuning against the training loop of d2l section 15.7, and its options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import DatasetDict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.data.snli import load_snli
from bert_snli.errors import BertSnliError
from bert_snli.finetune import classifier_config, finetune_model
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining, D2LBertForSequenceClassification
from bert_snli.modeling.labels import D2L_LABELS
from bert_snli.training.arguments import FinetuneArguments
from bert_snli.training.run_folder import read_origin
from conversion.convert import convert_checkpoint
from tests.support.checkpoints import save_d2l_checkpoint
from tests.support.d2l_reference import ReferenceBERT, ReferenceClassifier, train_step
from tests.support.finetuning import (
    BATCH,
    D2L_OPTIONS,
    LABELS,
    MAX_LENGTH,
    ROWS,
    STEPS,
    encode_rows,
    read_metrics,
    read_metrics_without_times,
    run_finetune,
    step_losses,
)
from tests.support.training_processes import command_line

pytestmark = pytest.mark.usefixtures("without_plots")


def read_results(output_dir: Path) -> dict:
    return json.loads((output_dir / "train_results.json").read_text())


@pytest.fixture(scope="module")
def reference_losses(corpus: Path, vocabulary: list[str], classifier_weights) -> np.ndarray:
    """The losses of d2l's training loop on the same batches, which it pads to the full length."""
    net = ReferenceClassifier(ReferenceBERT(vocab=len(vocabulary)))
    net.load_state_dict(classifier_weights)
    tokens, segments, valid_lens, labels = encode_rows(corpus, vocabulary)
    sampler = GlobalBatchSampler(valid_lens.long().numpy(), BATCH, seed=42, strategy="random")
    trainer = torch.optim.Adam(net.parameters(), lr=1e-4)
    losses: list[float] = []
    while len(losses) < STEPS:
        sampler.set_epoch(len(losses) // sampler.batches_per_epoch)
        for batch in sampler.global_batches()[: STEPS - len(losses)]:
            losses.append(train_step(net, (tokens[batch], segments[batch], valid_lens[batch]), labels[batch], trainer))
    return np.array(losses)


@pytest.fixture(scope="module")
def d2l_run(base_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process with d2l's settings."""
    output_dir = tmp_path_factory.mktemp("d2l_run") / "run"
    run_finetune(base_model, corpus, output_dir)
    return output_dir


def test_losses_equal_those_of_d2l(d2l_run: Path, reference_losses: np.ndarray):
    assert len(reference_losses) == STEPS
    np.testing.assert_allclose(step_losses(d2l_run), reference_losses, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_to_max_length": True},
        {"num_micro_batches": 3},
        {"attn_implementation": "sdpa"},
        {"text_source": "raw"},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_losses_equal_those_of_d2l_with_option(
    changes: dict, base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path
):
    losses = run_finetune(base_model, corpus, tmp_path / "run", **changes, max_steps=10)
    np.testing.assert_allclose(losses, reference_losses[:10], rtol=1e-5)


def test_losses_of_two_processes_equal_those_of_d2l(
    base_model: Path, corpus: Path, d2l_run: Path, reference_losses: np.ndarray, tmp_path: Path, run_python
):
    arguments = command_line(base_model, corpus, tmp_path / "run", num_micro_batches=2)
    done = run_python("-m", "bert_snli.cli", "finetune", "--num_processes", 2, *arguments)
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path / "run")["num_processes"] == 2
    np.testing.assert_allclose(step_losses(tmp_path / "run"), reference_losses, rtol=1e-5)
    for name in ("eval_accuracy", "eval_loss"):
        assert read_metrics(tmp_path / "run")[-1][name] == pytest.approx(read_metrics(d2l_run)[-1][name], rel=1e-5)


@pytest.mark.slow
def test_losses_equal_those_of_d2l_under_accelerate_launch_with_the_configuration_of_the_repository(
    base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path, run_python
):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml", "-m", "bert_snli.finetune"]
    done = run_python(*launch, *command_line(base_model, corpus, tmp_path / "run", max_steps=5))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(step_losses(tmp_path / "run"), reference_losses[:5], rtol=1e-5)


def test_training_only_the_embedding_rows_in_use_gives_the_weights_of_full_training(
    base_model: Path, corpus: Path, tmp_path: Path
):
    """Also for tokens that are not in the training data, and after a resumption, which is bit-exact."""
    changes = {
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_train_samples": 24,
        "max_steps": 7,
        "train_batch_size": 8,
        "mixed_precision": "auto",
        "save_steps": 2,
    }
    run_finetune(base_model, corpus, tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-6")
    run_finetune(base_model, corpus, tmp_path / "resumed", **changes, resume_from_checkpoint="auto")
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate has one precision in a process
    exact = {**changes, "mixed_precision": "no"}  # "auto" may be bf16, whose rounding differs
    run_finetune(base_model, corpus, tmp_path / "fast", **exact)
    run_finetune(base_model, corpus, tmp_path / "plain", **exact, fast_forward=False)
    names = ("whole", "resumed", "fast", "plain")
    whole, resumed, fast, plain = (load_file(tmp_path / name / "model.safetensors") for name in names)
    before = load_file(base_model / "model.safetensors")
    embeddings = "bert.embeddings.word_embeddings.weight"
    factor = whole[embeddings] / before[embeddings]
    unused = (factor - factor[:, :1]).abs().amax(dim=1) < 1e-5  # one factor for the whole row: only weight decay
    assert 5 < unused.sum() < len(unused) - 5 and factor[unused].max() < 1 - 1e-4
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
        if not name.endswith("key.bias"):  # its gradient is 0 up to rounding, which Adam scales up
            torch.testing.assert_close(
                fast[name], plain[name], rtol=1e-3, atol=1e-4, msg=lambda message, n=name: f"{n}: {message}"
            )


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("g++") or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch.compile needs a C++ compiler and vector instructions",
)
def test_losses_with_torch_compile_equal_those_without_and_need_two_graphs(
    base_model: Path, corpus: Path, tmp_path: Path
):
    changes = {"max_steps": 8, "train_sampling_strategy": "group_by_length"}
    expected = run_finetune(base_model, corpus, tmp_path / "plain", **changes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run_finetune(base_model, corpus, tmp_path / "compiled", **changes, torch_compile=True)
    np.testing.assert_allclose(compiled, expected, rtol=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]


@pytest.mark.parametrize("max_steps", [4, 8])
def test_resume_from_a_checkpoint_at_the_end_of_an_epoch_evaluates_the_epoch_once(
    max_steps: int, base_model: Path, corpus: Path, tmp_path: Path
):
    changes = {"dropout": 0.1, "max_steps": max_steps, "save_steps": 4, "load_best_model_at_end": False}
    run_finetune(base_model, corpus, tmp_path / "run", **changes)
    before = read_metrics_without_times(tmp_path / "run")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "train_results.json"):
        (tmp_path / "run" / name).unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train_l')  # a killed run may leave half a line
    run_finetune(
        base_model, corpus, tmp_path / "run", **changes, resume_from_checkpoint=str(tmp_path / "run/checkpoint-4")
    )
    assert read_metrics_without_times(tmp_path / "run") == before
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert read_results(tmp_path / "run")["train_steps"] == max_steps


def test_overwrite_output_dir_removes_the_checkpoints_of_the_earlier_run(
    base_model: Path, corpus: Path, tmp_path: Path
):
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=6, save_steps=6)
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=2, save_steps=2, overwrite_output_dir=True)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.fixture(scope="module")
def two_steps(base_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, with a checkpoint."""
    output_dir = tmp_path_factory.mktemp("two_steps") / "run"
    run_finetune(base_model, corpus, output_dir, max_steps=2, save_steps=2)
    return output_dir


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 16}, "was written with train_batch_size 32, not 16"),
        ({"output_dir": "elsewhere"}, "is not in .*elsewhere"),
        ({"learning_rate": 1e-3}, "was written with learning_rate 0.0001, not 0.001"),
        ({"damage": "model.safetensors"}, r"damaged \(the checksum of model.safetensors is wrong\); give 'auto'"),
        ({"damage": "checksums.json"}, r"damaged \(checksums.json or a file in it cannot be read"),
    ],
    ids=["train_batch_size", "output_dir", "learning_rate", "damaged-model", "damaged-checksums"],
)
def test_resume_is_refused_from_a_checkpoint_that_does_not_fit(
    changes: dict, message: str, base_model: Path, corpus: Path, two_steps: Path, tmp_path: Path
):
    shutil.copytree(two_steps, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    changes = dict(changes)
    if name := changes.pop("damage", None):
        (checkpoint / name).write_bytes(b"{")
    output_dir = tmp_path / changes.pop("output_dir", "run")
    with pytest.raises(BertSnliError, match=message):
        run_finetune(base_model, corpus, output_dir, max_steps=3, resume_from_checkpoint=str(checkpoint), **changes)


def train_with_default_recipe(
    net: ReferenceClassifier, inputs, labels, batches: list[np.ndarray], total: int
) -> list[float]:
    """Train as `--config default` says: mean loss, clipping to norm 1, AdamW, linear warm-up and decay."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3
    )
    warmup_steps, losses = round(0.06 * total), []
    for step, batch in enumerate(batches):
        warm = step / warmup_steps if step < warmup_steps else (total - step) / (total - warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warm
        loss = torch.nn.functional.cross_entropy(net(*(column[batch] for column in inputs)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_losses_of_the_default_recipe_equal_those_of_plain_pytorch(
    base_model: Path, corpus: Path, vocabulary: list[str], classifier_weights, tmp_path: Path
):
    net = ReferenceClassifier(ReferenceBERT(vocab=len(vocabulary)))
    net.load_state_dict(classifier_weights)
    tokens, segments, valid_lens, labels = encode_rows(corpus, vocabulary)
    sampler = GlobalBatchSampler(valid_lens.long().numpy(), BATCH, seed=42)
    batches: list[np.ndarray] = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        batches += sampler.global_batches()
    expected = train_with_default_recipe(net, (tokens, segments, valid_lens), labels, batches[:STEPS], STEPS)
    finetune_model(
        FinetuneArguments(
            model_name_or_path=str(base_model),
            dataset_name_or_path=str(corpus),
            output_dir=str(tmp_path / "run"),
            max_length=MAX_LENGTH,
            max_train_samples=ROWS,
            train_batch_size=BATCH,
            max_steps=STEPS,
            dropout=0.0,
            logging_steps=1,
            mixed_precision="no",
        )
    )
    np.testing.assert_allclose(step_losses(tmp_path / "run"), expected, rtol=1e-5)


def test_bf16_base_model_is_trained_in_fp32(base_model: Path, corpus: Path, tmp_path: Path):
    half = D2LBertForSequenceClassification.from_pretrained(base_model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    PreTrainedTokenizerFast.from_pretrained(base_model).save_pretrained(tmp_path / "half")
    run_finetune(tmp_path / "half", corpus, tmp_path / "run", max_steps=2)
    assert {value.dtype for value in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float32}


def test_labels_in_upper_case_are_matched_by_name(base_model: Path, corpus: Path, d2l_run: Path, tmp_path: Path):
    model = D2LBertForSequenceClassification.from_pretrained(base_model)
    model.config.id2label = {number: name.upper() for number, name in model.config.id2label.items()}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "upper_case")
    PreTrainedTokenizerFast.from_pretrained(base_model).save_pretrained(tmp_path / "upper_case")
    losses = run_finetune(tmp_path / "upper_case", corpus, tmp_path / "run", max_steps=2)
    np.testing.assert_array_equal(losses, step_losses(d2l_run)[:2])


def test_base_model_without_the_pooler_is_refused(base_model: Path, corpus: Path, tmp_path: Path):
    shutil.copytree(base_model, tmp_path / "base_model")
    weights = load_file(base_model / "model.safetensors")
    others = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(others, tmp_path / "base_model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BertSnliError, match="lacks bert.pooler.dense.bias"):
        run_finetune(tmp_path / "base_model", corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_save_total_limit_keeps_the_newest_checkpoints(base_model: Path, corpus: Path, tmp_path: Path):
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=6, save_steps=2, save_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_load_best_model_at_end_saves_the_best_epoch_and_otherwise_the_last(
    base_model: Path, corpus: Path, tmp_path: Path
):
    changes = {"max_steps": -1, "num_train_epochs": 3, "learning_rate": 3e-3, "logging_steps": 100}
    results = {}
    for best in (True, False):
        run_finetune(base_model, corpus, tmp_path / str(best), load_best_model_at_end=best, **changes)
        results[best] = read_results(tmp_path / str(best))
    epochs = [entry for entry in read_metrics(tmp_path / "True") if "eval_accuracy" in entry]
    assert len(epochs) == 3
    assert results[True]["eval_accuracy"] == max(entry["eval_accuracy"] for entry in epochs)
    assert results[False]["eval_accuracy"] == epochs[-1]["eval_accuracy"]
    assert results[False]["saved_epoch"] == 3


def test_output_folder_is_a_model_folder_with_the_records_of_the_run(corpus: Path, d2l_run: Path):
    model = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    history = {"provenance.md", "start_conversion_certificate.json"}
    records = {"recipe.yaml", "run.json", "metrics.jsonl", "train_results.json", "report.md"}
    plots = {"curve.png", "curve.svg", "training.png", "confusion_matrix.png"}
    found = {path.name for path in d2l_run.iterdir()}
    code = {name for name in found if name.endswith(".py")}
    assert found - code == model | history | records | plots | {".lock"}
    assert {"modeling_d2l_bert.py", "configuration_d2l_bert.py"} <= code
    loaded = D2LBertForSequenceClassification.from_pretrained(d2l_run)
    assert list(loaded.config.id2label.values()) == list(LABELS)
    rows = (corpus / "snli_1.0_train.jsonl").read_text().splitlines()
    unlabelled = sum(json.loads(row)["gold_label"] == "-" for row in rows)
    assert read_results(d2l_run)["without_gold_label"] == unlabelled > 0


def test_clipping_shortens_the_gradient(base_model: Path, corpus: Path, d2l_run: Path, tmp_path: Path):
    """Adam's updates do not depend on the scale of the gradient unless, as here, it is below Adam's epsilon."""
    clipped = run_finetune(base_model, corpus, tmp_path / "clipped", max_steps=3, max_grad_norm=1e-9)
    free = step_losses(d2l_run)
    assert free[0] == clipped[0]
    assert abs(clipped[2] - free[2]) > 1e-6


def test_losses_in_bf16_are_within_two_percent_of_d2l(
    base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path
):
    ours = run_finetune(base_model, corpus, tmp_path / "run", mixed_precision="bf16", max_steps=5)
    np.testing.assert_allclose(ours, reference_losses[:5], rtol=0.02)
    assert read_results(tmp_path / "run")["mixed_precision"] == "bf16"


@pytest.fixture(scope="module")
def pretrained_model(vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted d2l checkpoint of pretraining, without a classifier."""
    folder = tmp_path_factory.mktemp("pretrained_model")
    torch.manual_seed(0)
    state = ReferenceBERT(vocab=len(vocabulary)).state_dict()
    convert_checkpoint(save_d2l_checkpoint(folder / "d2l", state, vocabulary), folder / "hf", num_attention_heads=2)
    return folder / "hf"


@pytest.mark.parametrize(("head", "inputs", "inner"), [("mlp", 16, 256), (None, 5 * 16, 16)], ids=["mlp", "default"])
def test_classifier_heads_are_initialised_and_trained(
    head: str | None,
    inputs: int,
    inner: int,
    corpus: Path,
    tmp_path: Path,
    pretrained_model: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO", "bert_snli")
    run_finetune(pretrained_model, corpus, tmp_path / "run", classifier_head=head, max_steps=3)
    model = D2LBertForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.classifier_head == (head or "matching")
    assert [tuple(p.shape) for p in model.classifier.parameters()] == [(inner, inputs), (inner,), (3, inner), (3,)]
    assert f"classifier_head: {head or 'matching'}\n" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert f"classifier head: {head or 'matching'}; labels: {', '.join(D2L_LABELS)}" in caplog.messages
    changes = {"classifier_head": head, "max_steps": 1, "learning_rate": 1e-30}
    run_finetune(pretrained_model, corpus, tmp_path / "untrained", **changes)
    untrained = D2LBertForSequenceClassification.from_pretrained(tmp_path / "untrained").state_dict()
    for name, weight in model.named_parameters():
        assert "classifier" not in name or not torch.equal(weight, untrained[name]), name


def dataset_of(corpus: Path) -> DatasetDict:
    """The labelled pairs of `corpus`, with the label numbers of `datasets`' SNLI."""
    snli = load_snli(str(corpus), splits=["train", "validation"], labels=("entailment", "neutral", "contradiction"))
    return snli.splits


@pytest.mark.parametrize("kind", ["classifier", "pretrained"])
def test_model_tokenizer_and_dataset_as_objects_give_the_weights_of_paths(
    kind: str, base_model: Path, pretrained_model: Path, corpus: Path, tmp_path: Path
):
    folder = base_model if kind == "classifier" else pretrained_model
    changes = {"text_source": "raw", "max_steps": 3, "classifier_head": "pooler"}
    run_finetune(folder, corpus, tmp_path / "paths", **changes)
    model_class = D2LBertForSequenceClassification if kind == "classifier" else D2LBertForPreTraining
    model, tokenizer = model_class.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = FinetuneArguments(output_dir=str(tmp_path / "objects"), **{**D2L_OPTIONS, **changes})
    result = finetune_model(arguments, model=model, tokenizer=tokenizer, dataset=dataset_of(corpus))
    paths, objects = (load_file(tmp_path / name / "model.safetensors") for name in ("paths", "objects"))
    assert paths.keys() == objects.keys()
    assert [name for name in paths if not torch.equal(paths[name], objects[name])] == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.metrics["eval_accuracy"] == read_results(tmp_path / "paths")["eval_accuracy"]
    recipe = (tmp_path / "objects" / "recipe.yaml").read_text()
    assert "model_name_or_path: (in memory)" in recipe and "dataset_name_or_path: (in memory)" in recipe


def test_model_without_a_tokenizer_is_refused(base_model: Path, corpus: Path, tmp_path: Path):
    model = D2LBertForSequenceClassification.from_pretrained(base_model)
    with pytest.raises(BertSnliError, match="^model_name_or_path: is required; give it, or both model and tokenizer"):
        finetune_model(FinetuneArguments(output_dir=str(tmp_path / "run")), model=model)
    with pytest.raises(BertSnliError, match="^model_name_or_path: is required"):
        finetune_model(FinetuneArguments(output_dir=str(tmp_path / "run")))


def test_second_run_of_a_process_uses_the_precision_of_the_first(base_model: Path, corpus: Path, tmp_path: Path):
    run_finetune(base_model, corpus, tmp_path / "first", mixed_precision="bf16", max_steps=1)
    with pytest.raises(BertSnliError, match="mixed_precision no: this process already has an Accelerator with bf16"):
        run_finetune(base_model, corpus, tmp_path / "second", mixed_precision="no", max_steps=1)
    run_finetune(base_model, corpus, tmp_path / "third", mixed_precision="auto", max_steps=1)
    assert read_results(tmp_path / "third")["mixed_precision"] == "bf16"


def test_arguments_take_paths(base_model: Path, corpus: Path, tmp_path: Path):
    finetune_model(
        FinetuneArguments(base_model, corpus, tmp_path / "run", max_length=40, max_steps=1, mixed_precision="no")
    )
    assert read_origin(tmp_path / "run")["dataset_name_or_path"] == str(corpus)


def test_class_from_the_code_of_a_model_folder_is_a_classifier():
    """`trust_remote_code` loads it from there if `bert_snli` was not imported before."""
    config = D2LBertConfig(vocab_size=50, classifier_head="pooler", num_labels=3)
    model = type("D2LBertForSequenceClassification", (), {"config": config})()
    assert classifier_config(FinetuneArguments("m", output_dir="o"), model).classifier_head == "pooler"
