"""Fine-tune a converted model on SNLI (d2l 15.7): what `accelerate launch -m bert_snli.finetune` runs."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from bert_snli.console import say
from bert_snli.data.batching import PaddedPairs
from bert_snli.data.pair_encoding import PairEncoder, distinct_ids, encode_pairs, flat_columns
from bert_snli.data.snli import load_snli, load_train_file
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.evaluation.plots import plot_curve
from bert_snli.fast.forward import FastClassifier
from bert_snli.files import atomic_folder
from bert_snli.hub import check_login, check_repo_id, copy_initial_certificate, push, remove_measurements, stage
from bert_snli.inference import (
    label_names,
    load_config,
    load_tokenizer,
    load_weights,
    predict_logits,
    refuse_onnx_alone,
)
from bert_snli.model_card import describe_data
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from bert_snli.provenance import read_history, write_history
from bert_snli.training.arguments import FinetuneArguments
from bert_snli.training.command_line import FINETUNE
from bert_snli.training.loop import Evaluation, TrainingLoop
from bert_snli.training.objectives import Classification
from bert_snli.training.session import (
    check_start,
    describe_machine,
    fingerprint,
    main_process_first,
    make_sampler,
    open_accelerator,
    prepare_training,
    run_command,
    run_loop,
)

PROG, RECIPE = FINETUNE.prog, FINETUNE.recipe_class
# `did_not_learn`: updates after which a model should have learned, and factors of the loss of a uniform guess.
FEWEST_STEPS_TO_LEARN = 100
MARGIN_OF_SHORT_RUN, MARGIN_OF_LONG_RUN = 10.0, 1.1


def parse_recipe(argv: Sequence[str]) -> FinetuneArguments:
    """Read options; those of `--config FILE.yaml` come first, so that the command line overrides them.

    Raises:
        BertSnliError: a value that makes no sense. An unknown option exits with 2.
    """
    return FINETUNE.parse(argv)


def check_recipe(recipe: FinetuneArguments) -> None:
    """What can be known to be wrong before anything is loaded or written.

    Raises:
        BertSnliError: as `check_start`; `hub_model_id` is no name of a repository.
    """
    check_start(recipe)
    if recipe.hub_model_id:
        check_repo_id(recipe.hub_model_id, "--hub_model_id")


def finetune_model(recipe: FinetuneArguments) -> dict:
    """Fine-tune a model on SNLI or on other pairs (d2l 15.7).

    Args:
        recipe: the options, as those of `bert-snli finetune`.

    Returns:
        The content of `train_results.json` in the output folder: metrics of the best epoch, speed and machine.

    Raises:
        BertSnliError: an option, the model or the data are wrong, or the training diverges.
    """
    check_recipe(recipe)
    config = classifier_config(recipe)
    recipe = replace(recipe, classifier_head=config.classifier_head)  # recipe.yaml says what it came to
    labels = label_names(config, recipe.model_name_or_path)
    steps = steps_before(recipe)
    tokenizer = load_tokenizer(recipe.model_name_or_path)
    encoder = PairEncoder(tokenizer, recipe.max_length, recipe.truncation, recipe.text_source)
    accelerator, recipe, precision = open_accelerator(recipe)
    if recipe.hub_model_id and accelerator.is_main_process:
        check_login(recipe.hub_model_id)
    with main_process_first(accelerator):
        train, evaluation, num_dropped = load_encoded(recipe, labels, encoder)
    accelerator.print(f"{len(train):,} pairs to train on ({num_dropped:,} rows without a gold label dropped)")
    accelerator.print(f"Classifier head: {config.classifier_head}")
    accelerator.print(describe_machine(accelerator, precision))
    loop = prepare(recipe, accelerator, config, labels, tokenizer, train, evaluation)

    source = recipe.train_file or recipe.dataset_name_or_path

    def prepare_folder(output_dir: Path) -> None:
        copy_initial_certificate(Path(recipe.model_name_or_path), output_dir)
        remove_measurements(output_dir)
        write_history(output_dir, [*steps, f"Fine-tuned on pairs of {describe_data(source).name}."])

    results = run_loop(loop, prepare_folder, precision=precision, without_gold_label=num_dropped)
    evidence = did_not_learn(results, [entry["train_loss"] for entry in loop.progress.epochs], evaluation["labels"])
    if evidence and accelerator.is_main_process:
        say(f"the model did not learn: {evidence}; lower --learning_rate")
    if recipe.push_to_hub and accelerator.is_main_process:
        accelerator.print(f"Pushed: {push_finished(recipe)}")
    return results


def steps_before(recipe: FinetuneArguments) -> list[str]:
    """How the start model and the file of pairs came to be, as far as is known.

    Raises:
        BertSnliError: what lies beside one of them cannot be read.
    """
    sources = [recipe.model_name_or_path, *([recipe.train_file] if recipe.train_file else [])]
    return [step for source in sources for step in read_history(Path(source))]


def push_finished(recipe: FinetuneArguments) -> str:
    """Put the output folder on the hub; returns the address of the commit.

    Raises:
        BertSnliError: it does not get there; the line says how to try again.
    """
    folder, repo_id = Path(recipe.output_dir), str(recipe.hub_model_id)
    try:
        return push(stage(folder, repo_id), repo_id, private=recipe.hub_private_repo)
    except BertSnliError as error:
        again = f"bert-snli push {shlex.quote(recipe.output_dir)} --repo_id {repo_id}"
        private = " --private" if recipe.hub_private_repo else ""
        raise BertSnliError(f"{error}; the model is in {folder}: {again}{private}") from error


def classifier_config(recipe: FinetuneArguments) -> D2LBertConfig:
    """The classifier's configuration: the start model's, with the labels and what the recipe overrides.

    Raises:
        BertSnliError: there is no such model, or it is a classifier with another head than the recipe's.
    """
    refuse_onnx_alone(recipe.model_name_or_path)
    config = load_config(recipe.model_name_or_path)
    is_classifier = "D2LBertForSequenceClassification" in (config.architectures or [])
    if not is_classifier:
        config.id2label, config.label2id = dict(ID2LABEL), dict(LABEL2ID)
        config.classifier_head = recipe.classifier_head or "matching"
    elif recipe.classifier_head not in (None, config.classifier_head):
        raise BertSnliError(
            f"--classifier_head {recipe.classifier_head}: {recipe.model_name_or_path} is a classifier with the "
            f"{config.classifier_head} head; leave the option out, here and in the recipe, or start from a pretrained "
            "model"
        )
    if recipe.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = recipe.dropout
    config.max_pair_length, config.pair_truncation = recipe.max_length, recipe.truncation
    config.problem_type = "single_label_classification"
    return config


def load_encoded(
    recipe: FinetuneArguments, labels: Sequence[str], encoder: PairEncoder
) -> tuple[Dataset, Dataset, int]:
    """The training and the evaluation pairs, encoded, and how many training rows had no gold label."""
    splits = [recipe.eval_split] if recipe.train_file else ["train", recipe.eval_split]
    snli = load_snli(recipe.dataset_name_or_path, splits=splits, text_source=recipe.text_source, labels=labels)
    if recipe.train_file:
        snli.splits["train"], snli.num_dropped["train"] = load_train_file(
            Path(recipe.train_file), text_source=recipe.text_source, labels=labels
        )
    limits = {"train": recipe.max_train_samples, recipe.eval_split: recipe.max_eval_samples}
    encoded = []
    for split, limit in limits.items():
        pairs = snli.splits[split]
        if limit is not None:
            pairs = pairs.select(range(min(limit, len(pairs))))
        encoded.append(encode_pairs(pairs, encoder, num_proc=recipe.preprocessing_num_workers))
    return encoded[0], encoded[1], snli.num_dropped["train"]


def prepare(
    recipe: FinetuneArguments,
    accelerator: Accelerator,
    config: D2LBertConfig,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    evaluation: Dataset,
) -> TrainingLoop:
    """Model, optimizer, schedule and batches, on their devices; resumed if the recipe says so."""
    set_seed(recipe.seed)
    attention = recipe.attn_implementation or ("eager" if accelerator.device.type == "cpu" else "sdpa")
    model, fresh = load_weights(
        recipe.model_name_or_path,
        config,
        D2LBertForSequenceClassification,
        attn_implementation=attention,
        dtype=torch.float32,
    )
    lacking = sorted(name for name in fresh if not name.startswith("classifier."))
    if lacking:
        raise BertSnliError(f"{recipe.model_name_or_path}: lacks {lacking[0]}; start from a converted checkpoint")
    model.to(accelerator.device)
    set_seed(recipe.seed, device_specific=True)  # the same fresh head, but other dropout, in each process
    sampler = make_sampler(recipe, accelerator, train["length"])
    pairs = PaddedPairs(
        train,
        tokenizer.pad_token_id,
        recipe.max_length if recipe.pad_to_max_length else None,
        device=accelerator.device,
    )
    module = trained_module(recipe, model, train)
    data = fingerprint(tokenizer, [*flat_columns(train), *flat_columns(evaluation)])
    trained, optimizer, scheduler, progress = prepare_training(
        recipe, accelerator, module, sampler.batches_per_epoch, data
    )
    references = np.asarray(evaluation["labels"])

    def evaluate() -> Evaluation:
        if recipe.fast_forward:
            accelerator.unwrap_model(trained).write_back()
        logits = predict_logits(
            model,
            evaluation,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=recipe.per_device_eval_batch_size,
            accelerator=accelerator,
        )
        metrics = nli_metrics(logits, references, labels)
        figures = {name: metrics[name] for name in ("loss", "accuracy", "macro_f1")}
        return Evaluation(figures, {"confusion_matrix": metrics["confusion_matrix"]})

    def save_model() -> None:  # as it was evaluated
        if accelerator.is_main_process:
            with atomic_folder(Path(recipe.output_dir), overwrite=True) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        accelerator.wait_for_everyone()

    return TrainingLoop(
        recipe=recipe,
        objective=Classification(recipe.loss_reduction),
        accelerator=accelerator,
        model=trained,
        optimizer=optimizer,
        scheduler=scheduler,
        pairs=pairs,
        sampler=sampler,
        eval_split=recipe.eval_split,
        evaluate=evaluate,
        save_model=save_model,
        plot=plot_curve,
        progress=progress,
    )


def trained_module(
    recipe: FinetuneArguments, model: D2LBertForSequenceClassification, train: Dataset
) -> FastClassifier | D2LBertForSequenceClassification:
    """Wrap `model` for training: the module that computes the logits and holds the trained parameters.

    With `fast_forward` only the embedding rows of the tokens in `train` are trained.
    """
    trained: FastClassifier | D2LBertForSequenceClassification = model
    if recipe.fast_forward:
        trained = FastClassifier(model)
        if recipe.weight_decay == 0 or recipe.optim.startswith("adamw"):  # Adam's is no mere factor
            trained.train_rows(torch.from_numpy(distinct_ids(train).astype(np.int64)))
    if recipe.torch_compile:
        trained.compile(dynamic=True)  # not a graph for each size and length of a batch
    return trained


def did_not_learn(results: dict, train_losses: Sequence[float], eval_labels: Sequence[int]) -> str | None:
    """Return the evidence that the model did not learn, or None.

    In a short run only a very high loss counts, because the loss of the first updates may be above that of a uniform
    guess.

    Args:
        results: what `train_results.json` holds.
        train_losses: of each epoch.
        eval_labels: the gold labels that the model was evaluated on.
    """
    is_short = results["train_steps"] < FEWEST_STEPS_TO_LEARN
    loss, uniform_loss = min(train_losses), math.log(len(ID2LABEL))
    if loss > uniform_loss * (MARGIN_OF_SHORT_RUN if is_short else MARGIN_OF_LONG_RUN):
        return f"the training loss is {loss:.4g}, that of a uniform guess is {uniform_loss:.4g}"
    majority_share = np.bincount(eval_labels).max() / len(eval_labels)
    if not is_short and results["eval_accuracy"] <= majority_share:
        return (
            f"{results['eval_split']} accuracy is {results['eval_accuracy']:.3f}, that of always predicting the most "
            f"frequent label is {majority_share:.3f}"
        )
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""

    def train(arguments: Sequence[str]) -> tuple[FinetuneArguments, dict]:
        recipe = parse_recipe(arguments)
        return recipe, finetune_model(recipe)

    def describe(results: dict) -> str:
        return (
            f"train loss {results['train_loss']:.3f}, train accuracy {results['train_accuracy']:.3f}, "
            f"{results['eval_split']} accuracy {results['eval_accuracy']:.3f}"
        )

    return run_command(PROG, argv, train, describe)


if __name__ == "__main__":
    sys.exit(main())
