"""Fine-tuning against the book's own loop, over processes, passes and interruptions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.errors import BertSnliError
from bert_snli.finetune import finetune, parse_recipe
from bert_snli.modeling import D2LBertForSequenceClassification
from bert_snli.training.recipe import FinetuneRecipe
from conversion.convert import convert
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
    metrics,
    run_finetune,
    step_losses,
)


@pytest.fixture(scope="module")
def reference_losses(corpus: Path, vocabulary: list[str], classifier_weights) -> np.ndarray:
    """The losses of the book's loop on our batches: padded to the full length, one pass, plain Adam."""
    net = ReferenceClassifier(ReferenceBERT(vocab=len(vocabulary)))
    net.load_state_dict(classifier_weights)
    tokens, segments, valid_lens, labels = encode_rows(corpus, vocabulary)
    sampler = GlobalBatchSampler(valid_lens.tolist(), BATCH, seed=42, strategy="random")
    trainer = torch.optim.Adam(net.parameters(), lr=1e-4)
    losses: list[float] = []
    while len(losses) < STEPS:
        sampler.set_epoch(len(losses) // sampler.batches_per_epoch)
        for batch in sampler.global_batches()[: STEPS - len(losses)]:
            losses.append(train_step(net, (tokens[batch], segments[batch], valid_lens[batch]), labels[batch], trainer))
    return np.array(losses)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pad_to_max_length": True},
        {"gradient_accumulation_steps": 3},
        {"attn_implementation": "sdpa"},
        {"text_source": "raw"},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()) or "as the book",
)
def test_losses_follow_the_books_loop(
    changes: dict, base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path
):
    ours = run_finetune(base_model, corpus, tmp_path / "run", **changes)
    assert len(ours) == STEPS
    np.testing.assert_allclose(ours, reference_losses, rtol=1e-5)


def test_two_processes_follow_it_as_well(
    base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path, run_python
):
    recipe = {**D2L_OPTIONS, "gradient_accumulation_steps": 2}
    options = [word for name, value in recipe.items() for word in (f"--{name}", value)]
    command = ["--model_name_or_path", base_model, "--dataset_name_or_path", corpus, *options]
    done = run_python(
        "-m", "bert_snli.cli", "finetune", "--num_processes", 2, *command, "--output_dir", tmp_path / "two"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "train_results.json").read_text())["num_processes"] == 2
    np.testing.assert_allclose(step_losses(tmp_path / "two"), reference_losses, rtol=1e-5)
    one = run_finetune(base_model, corpus, tmp_path / "one")
    np.testing.assert_allclose(step_losses(tmp_path / "two"), one, rtol=1e-5)
    for name in ("eval_accuracy", "eval_loss"):
        assert metrics(tmp_path / "two")[-1][name] == pytest.approx(metrics(tmp_path / "one")[-1][name], rel=1e-5)


@pytest.mark.slow
def test_the_launch_line_of_the_readme_works_with_its_configuration(
    base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path, run_python
):
    options = [word for name, value in {**D2L_OPTIONS, "max_steps": 5}.items() for word in (f"--{name}", value)]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml", "-m", "bert_snli.finetune"]
    where = ["--model_name_or_path", base_model, "--dataset_name_or_path", corpus, "--output_dir", tmp_path / "run"]
    done = run_python(*launch, *where, *options)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(step_losses(tmp_path / "run"), reference_losses[:5], rtol=1e-5)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(base_model: Path, corpus: Path, tmp_path: Path):
    changes = {"dropout": 0.1, "max_steps": 7, "save_steps": 3, "save_total_limit": 1, "load_best_model_at_end": False}
    whole = run_finetune(base_model, corpus, tmp_path / "run", **changes)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    first = run_finetune(base_model, corpus, tmp_path / "cut", **{**changes, "save_steps": 6})
    assert len(first) == 7
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-6"]
    (tmp_path / "cut" / "model.safetensors").unlink()
    resumed = run_finetune(base_model, corpus, tmp_path / "cut", **changes, resume_from_checkpoint="auto")
    np.testing.assert_array_equal(resumed, whole)
    for name, value in load_file(tmp_path / "cut" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.slow
def test_every_weight_ends_where_it_would_have(base_model: Path, corpus: Path, tmp_path: Path):
    """Also of words that the training data do not hold: resumed to the bit, and as training the whole model has it."""
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
    run_finetune(base_model, corpus, tmp_path / "cut", **changes)
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    run_finetune(base_model, corpus, tmp_path / "cut", **changes, resume_from_checkpoint="auto")
    AcceleratorState._reset_state(reset_partial_state=True)  # as a process of its own has it
    exact = {**changes, "mixed_precision": "no"}  # "auto" may be bf16, whose rounding differs
    run_finetune(base_model, corpus, tmp_path / "fast", **exact)
    run_finetune(base_model, corpus, tmp_path / "plain", **exact, fast_forward=False)
    names = ("whole", "cut", "fast", "plain")
    whole, cut, fast, plain = (load_file(tmp_path / name / "model.safetensors") for name in names)
    before = load_file(base_model / "model.safetensors")
    words = "bert.embeddings.word_embeddings.weight"
    factor = whole[words] / before[words]
    unused = (factor - factor[:, :1]).abs().amax(dim=1) < 1e-5  # a whole row by one factor: decay alone
    assert 5 < unused.sum() < len(unused) - 5 and factor[unused].max() < 1 - 1e-4
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
        if not name.endswith("key.bias"):  # its gradient is rounding alone, of which Adam makes steps
            torch.testing.assert_close(
                fast[name], plain[name], rtol=1e-3, atol=1e-4, msg=lambda why, n=name: f"{n}: {why}"
            )


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("g++") or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch.compile needs a C++ compiler and vector instructions",
)
def test_compiled_model_trains_the_same_with_two_graphs_for_all_shapes(base_model: Path, corpus: Path, tmp_path: Path):
    changes = {"max_steps": 8, "train_sampling_strategy": "group_by_length"}
    expected = run_finetune(base_model, corpus, tmp_path / "plain", **changes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run_finetune(base_model, corpus, tmp_path / "compiled", **changes, torch_compile=True)
    np.testing.assert_allclose(compiled, expected, rtol=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]


def test_a_token_budget_trains_every_pair_once(base_model: Path, corpus: Path, tmp_path: Path):
    changes = {"max_steps": -1, "num_train_epochs": 1, "train_sampling_strategy": "group_by_length"}
    run_finetune(base_model, corpus, tmp_path / "run", **changes, train_batch_tokens=200)
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert results["train_samples"] == ROWS and results["kept_epoch"] == 1 and results["train_steps"] > 3
    assert 0 < results["model_flops_utilization"] < 10
    with pytest.raises(BertSnliError, match="--train_batch_tokens: cannot be combined with --pad_to_max_length"):
        run_finetune(base_model, corpus, tmp_path / "no", **changes, train_batch_tokens=200, pad_to_max_length=True)


@pytest.mark.parametrize("max_steps", [4, 8])
def test_a_run_stopped_at_the_end_of_an_epoch_is_evaluated_once_when_resumed(
    max_steps: int, base_model: Path, corpus: Path, tmp_path: Path
):
    changes = {"dropout": 0.1, "max_steps": max_steps, "save_steps": 4, "load_best_model_at_end": False}
    run_finetune(base_model, corpus, tmp_path / "run", **changes)
    before = untimed(metrics(tmp_path / "run"))
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "train_results.json"):
        (tmp_path / "run" / name).unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train_l')  # what a killed run may leave
    run_finetune(
        base_model, corpus, tmp_path / "run", **changes, resume_from_checkpoint=str(tmp_path / "run/checkpoint-4")
    )
    assert untimed(metrics(tmp_path / "run")) == before
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["train_steps"] == max_steps


def untimed(entries: list[dict]) -> list[dict]:
    times = ("train_seconds", "train_samples_per_second")
    return [{name: value for name, value in entry.items() if name not in times} for entry in entries]


def test_checkpoints_of_an_earlier_run_do_not_outlive_it(base_model: Path, corpus: Path, tmp_path: Path):
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=6, save_steps=6)
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=2, save_steps=2, overwrite_output_dir=True)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 16}, "was made with --train_batch_size 32, not 16"),
        ({"output_dir": "elsewhere"}, "is not in .*elsewhere"),
        ({"learning_rate": 1e-3}, "was made with --learning_rate 0.0001, not 0.001"),
        ({"damage": "model.safetensors"}, r"damaged \(model.safetensors is not what was written\); give 'auto'"),
        ({"damage": "optimizer.bin"}, r"damaged \(optimizer.bin is not what was written\)"),
        ({"damage": "progress.json"}, r"damaged \(progress.json is not what was written\)"),
        ({"damage": "checksums.json"}, r"damaged \(checksums.json or a file of its list cannot be read"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    changes: dict, message: str, base_model: Path, corpus: Path, tmp_path: Path
):
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=2, save_steps=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    changes = dict(changes)
    if name := changes.pop("damage", None):
        (checkpoint / name).write_bytes(b"{")
    output_dir = tmp_path / changes.pop("output_dir", "run")
    with pytest.raises(BertSnliError, match=message):
        run_finetune(base_model, corpus, output_dir, max_steps=3, resume_from_checkpoint=str(checkpoint), **changes)


def test_the_saved_recipe_repeats_the_run(base_model: Path, corpus: Path, tmp_path: Path):
    first = run_finetune(base_model, corpus, tmp_path / "run", max_steps=3, overwrite_output_dir=True)
    command = ["--config", str(tmp_path / "run" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    finetune(parse_recipe(command))
    np.testing.assert_array_equal(step_losses(tmp_path / "again"), first)


def plain_default_loop(net: ReferenceClassifier, inputs, labels, batches: list[np.ndarray], total: int) -> list[float]:
    """What `recipes/default.yaml` means, spelled out: mean loss, clipping to 1, AdamW, linear warm-up and decay."""
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3
    )
    warm, losses = round(0.06 * total), []
    for step, batch in enumerate(batches):
        rate = 1e-3 * (step / warm if step < warm else (total - step) / (total - warm))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = torch.nn.functional.cross_entropy(net(*(column[batch] for column in inputs)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_default_recipe_is_what_it_says(
    base_model: Path, corpus: Path, vocabulary: list[str], classifier_weights, tmp_path: Path
):
    net = ReferenceClassifier(ReferenceBERT(vocab=len(vocabulary)))
    net.load_state_dict(classifier_weights)
    tokens, segments, valid_lens, labels = encode_rows(corpus, vocabulary)
    sampler = GlobalBatchSampler(valid_lens.tolist(), BATCH, seed=42)
    batches: list[np.ndarray] = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        batches += sampler.global_batches()
    expected = plain_default_loop(net, (tokens, segments, valid_lens), labels, batches[:STEPS], STEPS)
    finetune(
        FinetuneRecipe(
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


def test_a_half_precision_folder_is_trained_in_fp32(base_model: Path, corpus: Path, tmp_path: Path):
    half = D2LBertForSequenceClassification.from_pretrained(base_model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    PreTrainedTokenizerFast.from_pretrained(base_model).save_pretrained(tmp_path / "half")
    run_finetune(tmp_path / "half", corpus, tmp_path / "run", max_steps=2)
    assert {value.dtype for value in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float32}


def test_labels_in_capitals_are_the_same_labels(base_model: Path, corpus: Path, tmp_path: Path):
    model = D2LBertForSequenceClassification.from_pretrained(base_model)
    model.config.id2label = {number: name.upper() for number, name in model.config.id2label.items()}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "capitals")
    PreTrainedTokenizerFast.from_pretrained(base_model).save_pretrained(tmp_path / "capitals")
    expected = run_finetune(base_model, corpus, tmp_path / "one", max_steps=2)
    np.testing.assert_array_equal(run_finetune(tmp_path / "capitals", corpus, tmp_path / "two", max_steps=2), expected)


def test_a_folder_without_the_pooler_is_not_trained_from(base_model: Path, corpus: Path, tmp_path: Path):
    shutil.copytree(base_model, tmp_path / "start")
    weights = load_file(base_model / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "start" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BertSnliError, match="lacks bert.pooler.dense.bias"):
        run_finetune(tmp_path / "start", corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_beyond_the_limit_are_dropped(base_model: Path, corpus: Path, tmp_path: Path):
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=6, save_steps=2, save_total_limit=2)
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_the_best_epoch_is_kept_or_the_last(base_model: Path, corpus: Path, tmp_path: Path):
    changes = {"max_steps": -1, "num_train_epochs": 3, "learning_rate": 3e-3, "logging_steps": 100}
    saved = {}
    for best in (True, False):
        run_finetune(base_model, corpus, tmp_path / str(best), load_best_model_at_end=best, **changes)
        saved[best] = json.loads((tmp_path / str(best) / "train_results.json").read_text())
    epochs = [entry for entry in metrics(tmp_path / "True") if "eval_accuracy" in entry]
    assert len(epochs) == 3
    best_accuracy = max(entry["eval_accuracy"] for entry in epochs)
    assert saved[True]["eval_accuracy"] == best_accuracy
    assert saved[False]["eval_accuracy"] == epochs[-1]["eval_accuracy"]
    assert saved[False]["kept_epoch"] == 3


def test_the_output_folder_holds_what_other_tools_read(base_model: Path, corpus: Path, tmp_path: Path):
    run_finetune(base_model, corpus, tmp_path / "run", max_steps=2)
    for name in ("model.safetensors", "tokenizer.json", "modeling_d2l_bert.py", "recipe.yaml", "train_results.json"):
        assert (tmp_path / "run" / name).is_file(), name
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "run" / "curve.svg").read_text()
    model = D2LBertForSequenceClassification.from_pretrained(tmp_path / "run")
    assert list(model.config.id2label.values()) == list(LABELS)
    rows = (corpus / "snli_1.0_train.jsonl").read_text().splitlines()
    unlabelled = sum(json.loads(row)["gold_label"] == "-" for row in rows)
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["without_gold_label"] == unlabelled > 0


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adam_torch"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_schedules_warm_up_and_end_as_named(optim: str, schedule: str):
    from bert_snli.training.optimisation import make_optimizer, make_scheduler

    layer = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(layer, optim, learning_rate=1.0, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert [group["params"][0].dim() for group in optimizer.param_groups] == [2, 1]
    scheduler = make_scheduler(optimizer, schedule, warmup_steps=0.2, num_training_steps=10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    warm = [1.0] if schedule == "constant" else [0.0, 0.5, 1.0]
    assert rates[: len(warm)] == warm
    assert scheduler.get_last_lr()[0] == pytest.approx(1.0 if schedule.startswith("constant") else 0.0)


def test_clipping_shortens_the_gradient(base_model: Path, corpus: Path, tmp_path: Path):
    """Adam's steps do not shrink with the gradient, but for its epsilon, which a gradient this small falls under."""
    free = run_finetune(base_model, corpus, tmp_path / "free", max_steps=3)
    clipped = run_finetune(base_model, corpus, tmp_path / "clipped", max_steps=3, max_grad_norm=1e-9)
    assert free[0] == clipped[0]
    assert abs(clipped[2] - free[2]) > 1e-6


def test_bf16_trains_to_about_the_same_loss(
    base_model: Path, corpus: Path, reference_losses: np.ndarray, tmp_path: Path
):
    ours = run_finetune(base_model, corpus, tmp_path / "run", mixed_precision="bf16", max_steps=5)
    np.testing.assert_allclose(ours, reference_losses[:5], rtol=0.02)
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["mixed_precision"] == "bf16"


@pytest.mark.parametrize(("head", "inputs", "inner"), [("mlp", 16, 256), (None, 5 * 16, 16)])
def test_the_other_heads_are_fresh_and_train(
    head: str | None, inputs: int, inner: int, corpus: Path, tmp_path: Path, book_checkpoint_of, capsys
):
    pretrained = book_checkpoint_of(corpus)
    run_finetune(pretrained, corpus, tmp_path / "run", classifier_head=head, max_steps=3)
    model = D2LBertForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.classifier_head == (head or "matching")
    assert [tuple(p.shape) for p in model.classifier.parameters()] == [(inner, inputs), (inner,), (3, inner), (3,)]
    assert f"classifier_head: {head or 'matching'}\n" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert f"Classifier head: {head or 'matching'}\n" in capsys.readouterr().out
    run_finetune(pretrained, corpus, tmp_path / "still", classifier_head=head, max_steps=3, learning_rate=1e-30)
    untrained = D2LBertForSequenceClassification.from_pretrained(tmp_path / "still").state_dict()
    for name, weight in model.named_parameters():
        assert "classifier" not in name or not torch.equal(weight, untrained[name]), name


@pytest.fixture
def book_checkpoint_of(tmp_path: Path, vocabulary: list[str]):
    def make(corpus: Path) -> Path:
        state = ReferenceBERT(vocab=len(vocabulary)).state_dict()
        convert(save_d2l_checkpoint(tmp_path / "b", state, vocabulary), tmp_path / "c", num_attention_heads=2)
        return tmp_path / "c"

    return make


def test_tensorboard_gets_the_metrics(base_model: Path, corpus: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    run_finetune(base_model, corpus, tmp_path / "run", report_to="tensorboard", max_steps=2)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_a_loss_that_is_no_number_is_said_at_once(base_model: Path, corpus: Path, tmp_path: Path):
    with pytest.raises(BertSnliError, match="loss is not finite at step"):
        run_finetune(base_model, corpus, tmp_path / "run", learning_rate=1e30)
