"""Pretrain a model on plain text (d2l 15.8 to 15.10). `accelerate launch -m bert_snli.pretrain` runs this."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from bert_snli.data.batching import MicroBatch
from bert_snli.data.pair_encoding import flat_columns
from bert_snli.data.pretraining import MaskedPairs, draw_pairs, encode_corpus, pair_up
from bert_snli.data.text import Paragraphs, build_vocabulary, open_text, split_sentences
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.plots import plot_pretraining
from bert_snli.fast.forward import FastPreTraining
from bert_snli.files import read_history, write_history
from bert_snli.hub import remove_results
from bert_snli.inference import batches_by_length, load_config, load_tokenizer, load_weights
from bert_snli.model_card import describe_data
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer, is_uncased
from bert_snli.training.arguments import DEFAULT_SIZES, PretrainArguments
from bert_snli.training.command_line import PRETRAIN as COMMAND
from bert_snli.training.objectives import PretrainingObjective
from bert_snli.training.run import TrainingResult, run_command, run_training
from bert_snli.training.setup import check_arguments, choose_attention, fingerprint, format_count, open_accelerator
from bert_snli.training.task import TrainingTask

EVALUATION_SEED = 0  # for evaluation pairs and masks; always the same, so that runs can be compared
logger = logging.getLogger(__name__)


def pretrain_model(arguments: PretrainArguments) -> TrainingResult:
    """Pretrain a model on plain text with masked language modelling and next sentence prediction (d2l 15.8 to 15.10).

    Args:
        arguments: the options.

    Returns:
        The output folder, and the metrics of the saved model.

    Raises:
        BertSnliError: an option, the model or the data are wrong, or the training diverges.
        Stopped: SIGINT or SIGTERM stopped the run, which wrote a checkpoint.

    Example:
        >>> from bert_snli import PretrainArguments, pretrain_model
        >>> arguments = PretrainArguments(
        ...     dataset_name_or_path="quickstart/mini_snli", output_dir="pretrained", max_steps=2, hidden_size=16
        ... )
        >>> pretrain_model(arguments).metrics["train_steps"]
        2
    """
    check_arguments(arguments)
    base = load_base_model(arguments) if arguments.model_name_or_path else None
    history = read_history(Path(arguments.model_name_or_path)) if base else []
    accelerator, arguments = open_accelerator(arguments)
    with accelerator.main_process_first():
        base_tokenizer = base[1] if base else make_empty_tokenizer(arguments)
        text = open_text(arguments.dataset_name_or_path, arguments.dataset_config_name, arguments.text_source)
        paragraphs = split_sentences(text, base_tokenizer)
        tokenizer = make_tokenizer(arguments, base_tokenizer, paragraphs.train)
        train, evaluation = load_pairs(arguments, paragraphs, tokenizer, accelerator.device)
    if accelerator.is_main_process:
        train_pairs = format_count(len(train), "training pair")
        eval_pairs = format_count(len(evaluation), f"{paragraphs.eval_split} pair")
        logger.info("%s, %s, %s in the vocabulary", train_pairs, eval_pairs, format_count(len(tokenizer), "token"))
    set_seed(arguments.seed)
    model = base[0] if base else make_model(arguments, tokenizer)
    if len(tokenizer) != model.config.vocab_size:
        # New rows are drawn with the mean and the covariance of the existing ones (Hewitt, 2021).
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    model.config.id2label, model.config.label2id = dict(ID2LABEL), dict(LABEL2ID)  # for fine-tuning on SNLI
    set_seed(arguments.seed, device_specific=True)  # new weights are the same in all processes, dropout is not
    task = make_task(arguments, accelerator, model, tokenizer, train, evaluation, paragraphs.eval_split)
    if arguments.extend_vocab_from:
        num_added = len(tokenizer) - len(base_tokenizer)
        source = describe_data(arguments.extend_vocab_from)
        history.append(f"{num_added:,} tokens of {source} were added to its vocabulary.")
    history.append(f"Pretrained on sentence pairs of {describe_data(arguments.dataset_name_or_path)}, without labels.")

    def prepare_output_dir(output_dir: Path) -> None:
        remove_results(output_dir)
        write_history(output_dir, history)

    return run_training(arguments, accelerator, task, prepare_output_dir, {"vocab_size": len(tokenizer)})


def load_base_model(arguments: PretrainArguments) -> tuple[D2LBertForPreTraining, PreTrainedTokenizerFast]:
    """Load a pretrained model in fp32, and its tokenizer."""
    name = arguments.model_name_or_path
    config, tokenizer = load_config(name, arguments.revision), load_tokenizer(name, arguments.revision)
    if arguments.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = arguments.dropout
    model, missing = load_weights(name, config, D2LBertForPreTraining, revision=arguments.revision, dtype=torch.float32)
    if missing:
        raise BertSnliError(f"{name}: lacks {min(missing)}; give a pretrained model with its pretraining heads")
    return model, tokenizer


def make_empty_tokenizer(arguments: PretrainArguments) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose vocabulary has only the special tokens."""
    return build_tokenizer(
        list(SPECIAL_TOKENS.values()),
        model_max_length=arguments.max_position_embeddings or DEFAULT_SIZES["max_position_embeddings"],
        do_lower_case=arguments.do_lower_case in (None, True),
    )


def make_tokenizer(
    arguments: PretrainArguments, base: PreTrainedTokenizerFast, paragraphs: Dataset
) -> PreTrainedTokenizerFast:
    """Extend the vocabulary of `base` by the tokens of `paragraphs` (new model) or of `extend_vocab_from`."""
    if arguments.model_name_or_path:
        if arguments.extend_vocab_from is None:
            return base
        try:
            text = open_text(arguments.extend_vocab_from, None, arguments.text_source)
        except BertSnliError as error:
            raise BertSnliError(str(error).replace("dataset_name_or_path", "extend_vocab_from")) from error
        paragraphs = split_sentences(text, base).train
    vocabulary = base.convert_ids_to_tokens(list(range(len(base))))
    positions, lower_case = base.model_max_length, is_uncased(base)
    rebuilt = build_tokenizer(vocabulary, model_max_length=positions, do_lower_case=lower_case)
    if rebuilt.backend_tokenizer.to_str() != base.backend_tokenizer.to_str():
        what = "the model has the tokenizer of another version of bert-snli"
        raise BertSnliError(f"extend_vocab_from: {what}; convert the model again")
    known = set(vocabulary)
    vocabulary += [token for token in build_vocabulary(paragraphs, arguments.min_freq) if token not in known]
    return build_tokenizer(vocabulary, model_max_length=positions, do_lower_case=lower_case)


def load_pairs(
    arguments: PretrainArguments, paragraphs: Paragraphs, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> tuple[MaskedPairs, MaskedPairs]:
    """Return the training pairs and the evaluation pairs, on `device`."""
    if arguments.max_length > tokenizer.model_max_length:
        limit = tokenizer.model_max_length
        raise BertSnliError(f"max_length {arguments.max_length}: the model has {limit} positions; give at most {limit}")

    def load(rows: Dataset, limit: int | None, seed: int, static_masks: bool) -> MaskedPairs:
        corpus = encode_corpus(rows, tokenizer)
        pairs = pair_up(corpus, draw_pairs(corpus, seed), tokenizer, arguments.max_length)[:limit]
        return MaskedPairs(pairs, tokenizer, seed=seed, static_masks=static_masks, device=device)

    return (
        load(paragraphs.train, arguments.max_train_samples, arguments.seed, arguments.static_masks),
        load(paragraphs.evaluation, arguments.max_eval_samples, EVALUATION_SEED, True),
    )


def make_model(arguments: PretrainArguments, tokenizer: PreTrainedTokenizerFast) -> D2LBertForPreTraining:
    """Make a model with random weights."""
    sizes = {name: getattr(arguments, name) or default for name, default in DEFAULT_SIZES.items()}
    if arguments.dropout is not None:
        sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), arguments.dropout)
    try:
        config = D2LBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
        return D2LBertForPreTraining(config)
    except ValueError as error:
        raise BertSnliError(str(error)) from error
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:
        raise BertSnliError(
            f"hidden_size {sizes['hidden_size']}: the model does not fit into memory; choose smaller sizes"
        ) from error


def make_task(
    arguments: PretrainArguments,
    accelerator: Accelerator,
    model: D2LBertForPreTraining,
    tokenizer: PreTrainedTokenizerFast,
    train: MaskedPairs,
    evaluation: MaskedPairs,
    eval_split: str,
) -> TrainingTask:
    """Prepare the module, the data and the evaluation on the accelerator's device."""
    model.set_attn_implementation(choose_attention(None, accelerator.device))
    model.to(accelerator.device)
    return TrainingTask(
        model=model,
        tokenizer=tokenizer,
        module=FastPreTraining(model),
        objective=PretrainingObjective(train.num_masked_R),
        pairs=train,
        data_fingerprint=fingerprint(tokenizer, flat_columns(train.pairs), flat_columns(evaluation.pairs)),
        eval_split=eval_split,
        evaluate=lambda: evaluate(model, evaluation, arguments.per_device_eval_batch_size, accelerator),
        plot=plot_pretraining,
    )


@torch.inference_mode()
def evaluate(
    model: D2LBertForPreTraining, pairs: MaskedPairs, batch_size: int, accelerator: Accelerator
) -> tuple[dict[str, float], dict]:
    """Compute the metrics of `PretrainingObjective` on `pairs` in fp32. The processes share the batches."""
    module = FastPreTraining(model).eval()
    objective = PretrainingObjective(pairs.num_masked_R)
    batches = batches_by_length(pairs.lengths, batch_size)
    sums = torch.zeros(len(batches), objective.num_sums, device=accelerator.device)
    for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
        rows = batches[number]
        _, sums[number] = objective(module, pairs[MicroBatch(rows.tolist(), has_labels=True)], rows)
    # Only one process computes a batch, and its sums are 0 in all others. So the number of processes has no effect.
    total = accelerator.reduce(sums, "sum").cpu().double().sum(dim=0)
    return objective.metrics(total.tolist()), {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit code."""
    labels = {"train_mlm_loss": "train MLM loss", "train_nsp_loss": "train NSP loss"}  # as in d2l 15.10.1
    return run_command(COMMAND, argv, pretrain_model, labels)


if __name__ == "__main__":
    sys.exit(main())
