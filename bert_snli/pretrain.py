"""Pretrain a model on plain text (d2l 15.8 to 15.10): what `accelerate launch -m bert_snli.pretrain` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from bert_snli.data.batching import MicroBatch
from bert_snli.data.pretraining import MaskedPairs, draw_pairs, encode_corpus, pair_up
from bert_snli.data.text import Paragraphs, SentenceSplitter, count_words, open_text, split_sentences
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.plots import plot_pretraining
from bert_snli.fast.forward import FastPreTraining
from bert_snli.files import atomic_folder
from bert_snli.hub import remove_measurements
from bert_snli.inference import batches_by_length, load_config, load_tokenizer, load_weights
from bert_snli.model_card import describe_data
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from bert_snli.provenance import read_history, write_history
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from bert_snli.training.command_line import PRETRAIN
from bert_snli.training.loop import Evaluation, TrainingLoop
from bert_snli.training.objectives import Pretraining
from bert_snli.training.pretrain_arguments import DEFAULT_SIZES, PretrainArguments
from bert_snli.training.session import check_start as check_recipe
from bert_snli.training.session import (
    describe_machine,
    fingerprint,
    main_process_first,
    make_sampler,
    open_accelerator,
    prepare_training,
    run_command,
    run_loop,
)

PROG, RECIPE = PRETRAIN.prog, PRETRAIN.recipe_class
EVALUATION_SEED = 0  # of its pairs and masks, whatever is trained with: figures of two runs can be compared


def parse_recipe(argv: Sequence[str]) -> PretrainArguments:
    """Read options; those of `--config FILE.yaml` come first, so that the command line overrides them.

    Raises:
        BertSnliError: a value that makes no sense. An unknown option exits with 2.
    """
    return PRETRAIN.parse(argv)


def pretrain_model(recipe: PretrainArguments) -> dict:
    """Pretrain a model on plain text: masked language model and next sentence prediction (d2l 15.8 to 15.10).

    Args:
        recipe: the options, as those of `bert-snli pretrain`.

    Returns:
        The content of `train_results.json` in the output folder: losses of the best epoch, speed and machine.

    Raises:
        BertSnliError: an option, the model or the data are wrong, or the training diverges.
    """
    check_recipe(recipe)
    start = load_start(recipe) if recipe.model_name_or_path else None
    steps = read_history(Path(recipe.model_name_or_path)) if start else []
    accelerator, recipe, precision = open_accelerator(recipe)
    text = open_text(recipe.dataset_name_or_path, recipe.dataset_config_name, recipe.text_source)
    with main_process_first(accelerator):
        rules = start[1] if start else fresh_rules(recipe)
        paragraphs = split_sentences(
            text, SentenceSplitter(rules, text.tokenized), num_proc=recipe.preprocessing_num_workers
        )
        tokenizer = make_tokenizer(recipe, rules, None if start else paragraphs.train)
        train, evaluation = load_pairs(recipe, paragraphs, tokenizer, accelerator.device)
    more = len(tokenizer) - len(rules)
    accelerator.print(
        f"{len(train):,} pairs to train on, {len(evaluation):,} to evaluate on "
        f"({paragraphs.eval_split}); {len(tokenizer):,} words{f', of which {more:,} new' if start else ''}"
    )
    accelerator.print(describe_machine(accelerator, precision))
    set_seed(recipe.seed)
    model = make_model(recipe, tokenizer, start, "eager" if accelerator.device.type == "cpu" else "sdpa")
    set_seed(recipe.seed, device_specific=True)  # the same fresh weights, but other dropout, in each process
    loop = prepare(recipe, accelerator, model, tokenizer, train, evaluation, paragraphs.eval_split)
    if recipe.extend_vocab_from:
        steps.append(f"{more:,} words of {describe_data(recipe.extend_vocab_from).name} were added to its vocabulary.")
    data = describe_data(recipe.dataset_name_or_path).name

    def prepare_folder(output_dir: Path) -> None:
        remove_measurements(output_dir)
        write_history(output_dir, [*steps, f"Pretrained on pairs of sentences of {data}, without labels."])

    return run_loop(loop, prepare_folder, precision=precision, vocab_size=len(tokenizer))


def load_start(recipe: PretrainArguments) -> tuple[D2LBertForPreTraining, PreTrainedTokenizerFast]:
    """A model with its pretraining heads, and its tokenizer.

    Raises:
        BertSnliError: there is none, or it has not all of the heads.
    """
    name = recipe.model_name_or_path
    config, tokenizer = load_config(name), load_tokenizer(name)
    if recipe.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = recipe.dropout
    model, fresh = load_weights(name, config, D2LBertForPreTraining, dtype=torch.float32)
    if fresh:
        raise BertSnliError(f"{name}: lacks {min(fresh)}; give a pretrained model, with its heads of pretraining")
    return model, tokenizer


def fresh_rules(recipe: PretrainArguments) -> PreTrainedTokenizerFast:
    """The tokenizer of a fresh model, before it knows any word."""
    return build_tokenizer(
        list(SPECIAL_TOKENS.values()),
        model_max_length=recipe.max_position_embeddings or DEFAULT_SIZES["max_position_embeddings"],
        do_lower_case=DEFAULT_SIZES["do_lower_case"] if recipe.do_lower_case is None else recipe.do_lower_case,
    )


def make_tokenizer(
    recipe: PretrainArguments, rules: PreTrainedTokenizerFast, paragraphs: Dataset | None
) -> PreTrainedTokenizerFast:
    """`rules` with the words of `paragraphs`; without any, with those of `extend_vocab_from`, or as they are.

    Raises:
        BertSnliError: rules that a longer vocabulary would change.
    """
    if paragraphs is None:
        if recipe.extend_vocab_from is None:
            return rules
        paragraphs = more_paragraphs(recipe, rules)
    words = rules.convert_ids_to_tokens(list(range(len(rules))))
    known = set(words)
    more = [word for word in count_words(paragraphs, recipe.min_freq) if word not in known]
    positions, lower_case = rules.model_max_length, rules.backend_tokenizer.normalizer.normalize_str("A") == "a"

    def with_words(vocabulary: list[str]) -> PreTrainedTokenizerFast:
        return build_tokenizer(vocabulary, model_max_length=positions, do_lower_case=lower_case)

    if with_words(words).backend_tokenizer.to_str() != rules.backend_tokenizer.to_str():
        raise BertSnliError(
            f"--extend_vocab_from: the tokenizer of {recipe.model_name_or_path} has rules of its own, such as those of "
            "--oov_fallback; convert the checkpoint without it"
        )
    return with_words([*words, *more])


def more_paragraphs(recipe: PretrainArguments, rules: PreTrainedTokenizerFast) -> Dataset:
    """Those of `extend_vocab_from`."""
    try:
        text = open_text(str(recipe.extend_vocab_from), None, recipe.text_source)
    except BertSnliError as error:
        raise BertSnliError(str(error).replace("--dataset_name_or_path", "--extend_vocab_from")) from error
    splitter = SentenceSplitter(rules, text.tokenized)
    return split_sentences(text, splitter, num_proc=recipe.preprocessing_num_workers).train


def load_pairs(
    recipe: PretrainArguments, paragraphs: Paragraphs, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> tuple[MaskedPairs, MaskedPairs]:
    """The pairs to train on and those to evaluate on, on `device`.

    Raises:
        BertSnliError: none is short enough, or `max_length` is more than the model takes.
    """
    if recipe.max_length > tokenizer.model_max_length:
        raise BertSnliError(f"--max_length {recipe.max_length}: the model takes {tokenizer.model_max_length} at most")
    both = []
    for rows, limit, seed, static in (
        (paragraphs.train, recipe.max_train_samples, recipe.seed, recipe.static_masks),
        (paragraphs.evaluation, recipe.max_eval_samples, EVALUATION_SEED, True),
    ):
        corpus = encode_corpus(rows, tokenizer, num_proc=recipe.preprocessing_num_workers)
        pairs = pair_up(corpus, draw_pairs(corpus, seed), tokenizer, recipe.max_length)[:limit]
        both.append(MaskedPairs(pairs, tokenizer, seed=seed, static_masks=static, device=device))
    return both[0], both[1]


def make_model(
    recipe: PretrainArguments,
    tokenizer: PreTrainedTokenizerFast,
    start: tuple[D2LBertForPreTraining, PreTrainedTokenizerFast] | None,
    attention: str,
) -> D2LBertForPreTraining:
    """The start model, with a row in each embedding and head for every word; or a fresh one of the recipe's sizes.

    Raises:
        BertSnliError: sizes that make no model.
    """
    if start is None:
        sizes = {
            name: getattr(recipe, name) or default for name, default in DEFAULT_SIZES.items() if name != "do_lower_case"
        }
        if recipe.dropout is not None:
            sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), recipe.dropout)
        try:
            config = D2LBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
            model = D2LBertForPreTraining(config)
        except ValueError as error:
            raise BertSnliError(f"--{error}") from error
        except (RuntimeError, TypeError, MemoryError, OverflowError) as error:
            raise BertSnliError(
                f"--hidden_size {sizes['hidden_size']}: no memory for a model of these sizes; choose smaller ones"
            ) from error
    else:
        model = start[0]
        if len(tokenizer) != model.config.vocab_size:
            # Draws from a normal distribution with the known words' mean and covariance (Hewitt, 2021).
            model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    # A classifier that starts from these weights has the labels of SNLI.
    model.config.id2label, model.config.label2id = dict(ID2LABEL), dict(LABEL2ID)
    model.set_attn_implementation(attention)
    return model


def prepare(
    recipe: PretrainArguments,
    accelerator: Accelerator,
    model: D2LBertForPreTraining,
    tokenizer: PreTrainedTokenizerFast,
    train: MaskedPairs,
    evaluation: MaskedPairs,
    eval_split: str,
) -> TrainingLoop:
    """Optimizer, schedule and batches, on their devices; resumed if the recipe says so."""
    model.to(accelerator.device)
    sampler = make_sampler(recipe, accelerator, train.lengths)
    data = fingerprint(tokenizer, [*train.arrays(), *evaluation.arrays()])
    trained, optimizer, scheduler, progress = prepare_training(
        recipe, accelerator, FastPreTraining(model), sampler.batches_per_epoch, data
    )
    output_dir = Path(recipe.output_dir)

    def save_model() -> None:
        if accelerator.is_main_process:
            with atomic_folder(output_dir, overwrite=True) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        accelerator.wait_for_everyone()

    return TrainingLoop(
        recipe=recipe,
        objective=Pretraining(train.predictions_R),
        accelerator=accelerator,
        model=trained,
        optimizer=optimizer,
        scheduler=scheduler,
        pairs=train,
        sampler=sampler,
        eval_split=eval_split,
        evaluate=lambda: Evaluation(evaluate(model, evaluation, recipe.per_device_eval_batch_size, accelerator), {}),
        save_model=save_model,
        plot=plot_pretraining,
        progress=progress,
    )


@torch.inference_mode()
def evaluate(
    model: D2LBertForPreTraining, pairs: MaskedPairs, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """The figures of `Pretraining` on `pairs`, in fp32; computed by length and shared among the processes."""
    fast = FastPreTraining(model).eval()  # unlike what is trained, without mixed precision
    objective = Pretraining(pairs.predictions_R)
    batches = batches_by_length(pairs.lengths, batch_size)
    sums = torch.zeros(len(batches), objective.num_sums, device=accelerator.device)
    for number in range(accelerator.process_index, len(batches), accelerator.num_processes):
        rows = batches[number]
        _, sums[number] = objective(fast, pairs[MicroBatch(rows.tolist(), has_labels=True)], rows)
    # Those of a batch are zero in all processes but one, and added up in one order, however many there are.
    return objective.figures(accelerator.reduce(sums, "sum").cpu().double().sum(dim=0).tolist())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""

    def train(arguments: Sequence[str]) -> tuple[PretrainArguments, dict]:
        recipe = parse_recipe(arguments)
        return recipe, pretrain_model(recipe)

    # As the book prints them (d2l 15.10.1).
    return run_command(
        PROG,
        argv,
        train,
        lambda done: f"train MLM loss {done['train_mlm_loss']:.3f}, NSP loss {done['train_nsp_loss']:.3f}",
    )


if __name__ == "__main__":
    sys.exit(main())
