"""Fine-tune a model for natural language inference (d2l 15.7). `accelerate launch -m bert_snli.finetune` runs this."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from bert_snli import inference
from bert_snli.data.batching import PaddedPairs
from bert_snli.data.pair_encoding import PairEncoder, encode_pairs, flat_columns
from bert_snli.data.snli import SNLI, load_snli
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.evaluation.plots import plot_curve
from bert_snli.fast.forward import FastClassifier
from bert_snli.files import read_history, write_history
from bert_snli.hub import check_login, check_repo_id, copy_initial_certificate, push_to_hub, remove_results
from bert_snli.model_card import describe_data
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining, D2LBertForSequenceClassification
from bert_snli.training.arguments import FinetuneArguments
from bert_snli.training.command_line import FINETUNE as COMMAND
from bert_snli.training.objectives import ClassificationObjective
from bert_snli.training.run import TrainingResult, run_command, run_training
from bert_snli.training.setup import check_arguments as check_training_arguments
from bert_snli.training.setup import choose_attention, fingerprint, format_count, open_accelerator
from bert_snli.training.task import TrainingTask

IN_MEMORY = "(in memory)"  # recorded instead of a path if the caller gives a model or a dataset as an object
MIN_UPDATES_TO_LEARN = 100  # after fewer updates, a low accuracy is normal
BaseModel = D2LBertForSequenceClassification | D2LBertForPreTraining
logger = logging.getLogger(__name__)


def finetune_model(
    arguments: FinetuneArguments,
    *,
    model: BaseModel | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dataset: DatasetDict | None = None,
) -> TrainingResult:
    """Fine-tune a model on SNLI or on other pairs of sentences (d2l 15.7).

    Args:
        arguments: the options.
        model: a pretrained model or a classifier, instead of `arguments.model_name_or_path`. It is not changed.
        tokenizer: the tokenizer of `model`.
        dataset: splits `train` and `arguments.eval_split`, instead of `arguments.dataset_name_or_path`.

    Returns:
        The output folder, and the metrics of the saved model.

    Raises:
        BertSnliError: an option, the model or the data are wrong, or the training diverges.
        Stopped: SIGINT or SIGTERM stopped the run, which wrote a checkpoint.

    Example:
        >>> from bert_snli import FinetuneArguments, finetune_model
        >>> arguments = FinetuneArguments("quickstart/converted", "quickstart/mini_snli", "run", max_steps=2)
        >>> result = finetune_model(arguments)
        >>> result.metrics["train_steps"]
        2
    """
    if model is not None:
        arguments = replace(arguments, model_name_or_path=IN_MEMORY)
    if dataset is not None:
        arguments = replace(arguments, dataset_name_or_path=IN_MEMORY)
    if not arguments.model_name_or_path or (model is None) != (tokenizer is None):
        raise BertSnliError("model_name_or_path: is required; give it, or both model and tokenizer")
    check_arguments(arguments)
    config = classifier_config(arguments, model)
    arguments = replace(arguments, classifier_head=config.classifier_head)  # for recipe.yaml
    sources = [arguments.model_name_or_path, *([arguments.train_file] if arguments.train_file else [])]
    history = [step for source in sources for step in read_history(Path(source))]
    tokenizer = tokenizer or inference.load_tokenizer(arguments.model_name_or_path, arguments.revision)
    encoder = PairEncoder(tokenizer, arguments.max_length, arguments.truncation, arguments.text_source)
    accelerator, arguments = open_accelerator(arguments)
    if arguments.hub_model_id and accelerator.is_main_process:
        check_login(arguments.hub_model_id)
    with accelerator.main_process_first():
        train, evaluation, snli = load_encoded(arguments, dataset, known_labels(config), encoder)
    split, num_dropped = arguments.eval_split, snli.num_dropped["train"]
    if known_labels(config) is None:
        config.id2label = dict(enumerate(evaluation.features["labels"].names))
        config.label2id = {name: number for number, name in config.id2label.items()}
    if accelerator.is_main_process:
        train_pairs = format_count(len(train), "training pair", len(snli.splits["train"]))
        eval_pairs = format_count(len(evaluation), f"{split} pair", len(snli.splits[split]))
        dropped = format_count(num_dropped, "row")
        logger.info("%s (%s without a gold label dropped), %s", train_pairs, dropped, eval_pairs)
        labels = ", ".join(inference.ordered_labels(config))
        logger.info("classifier head: %s; labels: %s", config.classifier_head, labels)
    classifier = load_base_model(arguments, config, model)
    task = make_task(arguments, accelerator, classifier, tokenizer, train, evaluation)
    prepare = partial(prepare_output_dir, arguments=arguments, history=history)
    result = run_training(arguments, accelerator, task, prepare, {"without_gold_label": num_dropped})
    if accelerator.is_main_process:
        warn_if_nothing_learned(result, evaluation["labels"])
        if arguments.push_to_hub:
            push_result(arguments)
    return result


def check_arguments(arguments: FinetuneArguments) -> None:
    """Check the arguments before anything is loaded or written."""
    check_training_arguments(arguments)
    if arguments.hub_model_id:
        check_repo_id(arguments.hub_model_id, "hub_model_id")


def classifier_config(arguments: FinetuneArguments, model: BaseModel | None = None) -> D2LBertConfig:
    """Return the configuration of the base model with the changes that `arguments` make."""
    if model is None:
        inference.refuse_onnx_export(arguments.model_name_or_path)
        config = inference.load_config(arguments.model_name_or_path, arguments.revision)
    else:
        config = D2LBertConfig.from_dict(model.config.to_dict())
        config.architectures = [type(model).__name__]  # the class may come from the code in a model folder
    if known_labels(config) is None:
        config.classifier_head = arguments.classifier_head or "matching"
    elif arguments.classifier_head not in (None, config.classifier_head):
        what = f"{arguments.model_name_or_path} is a classifier with the {config.classifier_head} head"
        remedy = "remove the option, or start from a pretrained model"
        raise BertSnliError(f"classifier_head {arguments.classifier_head}: {what}; {remedy}")
    if arguments.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = arguments.dropout
    config.max_pair_length, config.pair_truncation = arguments.max_length, arguments.truncation
    config.problem_type = "single_label_classification"
    return config


def known_labels(config: D2LBertConfig) -> list[str] | None:
    """Return the labels of a classifier, or None for a pretrained model, whose classifier will be new."""
    is_classifier = D2LBertForSequenceClassification.__name__ in (config.architectures or [])
    return inference.classifier_labels(config) if is_classifier else None


def load_encoded(
    arguments: FinetuneArguments, dataset: DatasetDict | None, labels: Sequence[str] | None, encoder: PairEncoder
) -> tuple[Dataset, Dataset, SNLI]:
    """Return the encoded training pairs, the encoded evaluation pairs, and the loaded data."""
    split = arguments.eval_split
    snli = load_snli(
        arguments.dataset_name_or_path if dataset is None else dataset,
        dataset_config_name=arguments.dataset_config_name,
        train_file=arguments.train_file,
        splits=["train", split],
        text_source=arguments.text_source,
        columns=arguments.columns,
        label_mapping=arguments.labels,
        labels=labels,
    )
    limits = {"train": arguments.max_train_samples, split: arguments.max_eval_samples}
    encoded = []
    for split, limit in limits.items():
        pairs = snli.splits[split]
        pairs = pairs.select(range(len(pairs) if limit is None else min(limit, len(pairs))))
        encoded.append(encode_pairs(pairs, encoder))
    return encoded[0], encoded[1], snli


def load_base_model(
    arguments: FinetuneArguments, config: D2LBertConfig, model: BaseModel | None
) -> D2LBertForSequenceClassification:
    """Load the base model as a classifier in fp32. A missing classifier head is initialised from the seed."""
    set_seed(arguments.seed)
    if model is not None:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        classifier, info = D2LBertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, dtype=torch.float32
        )
        missing = info["missing_keys"]
    else:
        classifier, missing = inference.load_weights(
            arguments.model_name_or_path,
            config,
            D2LBertForSequenceClassification,
            revision=arguments.revision,
            dtype=torch.float32,
        )
    missing = sorted(name for name in missing if not name.startswith("classifier."))
    if missing:
        raise BertSnliError(f"{arguments.model_name_or_path}: lacks {missing[0]}; start from a pretrained model")
    return classifier


def make_task(
    arguments: FinetuneArguments,
    accelerator: Accelerator,
    model: D2LBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    evaluation: Dataset,
) -> TrainingTask:
    """Prepare the module, the data and the evaluation on the accelerator's device."""
    model.set_attn_implementation(choose_attention(arguments.attn_implementation, accelerator.device))
    model.to(accelerator.device)
    set_seed(arguments.seed, device_specific=True)  # the classifier is the same in all processes, dropout is not
    module = make_module(arguments, model, train)
    labels, references = inference.classifier_labels(model.config), np.asarray(evaluation["labels"])

    def evaluate() -> tuple[dict[str, float], dict[str, dict]]:
        if isinstance(module, FastClassifier):
            module.write_back()
        logits = inference.predict_logits(
            model,
            evaluation,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=arguments.per_device_eval_batch_size,
            accelerator=accelerator,
        )
        metrics = nli_metrics(logits, references, labels)
        details = {"confusion_matrix": metrics.pop("confusion_matrix")}
        return {name: metrics[name] for name in ("loss", "accuracy", "macro_f1")}, details

    padded_length = arguments.max_length if arguments.pad_to_max_length else None
    return TrainingTask(
        model=model,
        tokenizer=tokenizer,
        module=module,
        objective=ClassificationObjective(arguments.loss_reduction),
        pairs=PaddedPairs(train, tokenizer.pad_token_id, padded_length, device=accelerator.device),
        data_fingerprint=fingerprint(tokenizer, flat_columns(train), flat_columns(evaluation)),
        eval_split=arguments.eval_split,
        evaluate=evaluate,
        plot=plot_curve,
    )


def make_module(
    arguments: FinetuneArguments, model: D2LBertForSequenceClassification, train: Dataset
) -> FastClassifier | D2LBertForSequenceClassification:
    """Return the module to train. With `fast_forward`, it trains only the embedding rows of tokens in `train`."""
    module: FastClassifier | D2LBertForSequenceClassification = model
    if arguments.fast_forward:
        module = FastClassifier(model)
        # Adam adds weight decay to the gradient, which changes also the rows of tokens that do not occur in `train`.
        if arguments.weight_decay == 0 or arguments.optim.startswith("adamw"):
            ids = np.unique(flat_columns(train)["input_ids"])
            module.train_rows(torch.from_numpy(ids.astype(np.int64)))
    if arguments.torch_compile:
        module.compile(dynamic=True)  # one graph for all batch shapes
    return module


def prepare_output_dir(output_dir: Path, *, arguments: FinetuneArguments, history: Sequence[str]) -> None:
    """Write the training history, and remove the results of the weights that the run replaces."""
    copy_initial_certificate(Path(arguments.model_name_or_path), output_dir)
    remove_results(output_dir)
    data = describe_data(arguments.train_file or arguments.dataset_name_or_path)
    write_history(output_dir, [*history, f"Fine-tuned on pairs of {data}."])


def warn_if_nothing_learned(result: TrainingResult, references: Sequence[int]) -> None:
    """Warn if the model is not better than always predicting the most frequent label."""
    majority_share = np.bincount(references).max() / len(references)
    accuracy, split = result.metrics["eval_accuracy"], result.metrics["eval_split"]
    if result.metrics["train_steps"] >= MIN_UPDATES_TO_LEARN and accuracy <= majority_share:
        problem = "the model did not learn: %s accuracy is %.3f, and the share of the most frequent label is %.3f"
        logger.warning(f"{problem}; lower learning_rate", split, accuracy, majority_share)


def push_result(arguments: FinetuneArguments) -> None:
    """Push the output folder to the Hub."""
    try:
        url = push_to_hub(arguments.output_dir, str(arguments.hub_model_id), private=arguments.hub_private_repo)
        logger.info("pushed: %s", url)
    except BertSnliError as error:
        raise BertSnliError(f"{error}; the model is saved: push {arguments.output_dir} again") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code."""
    metrics = {"train_loss": "train loss", "train_accuracy": "train accuracy", "eval_accuracy": "evaluation accuracy"}
    return run_command(COMMAND, argv, finetune_model, metrics)


if __name__ == "__main__":
    sys.exit(main())
