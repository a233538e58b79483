"""Fine-tune a converted model on SNLI (d2l 15.7): what `accelerate launch -m bert_snli.finetune` runs."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env, set_seed
from datasets import Dataset
from transformers import HfArgumentParser, PreTrainedTokenizerFast

from bert_snli.console import OneLineErrorParser, quiet_libraries, run
from bert_snli.data.batching import GlobalBatchSampler, PaddedPairs
from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
from bert_snli.data.snli import load_snli
from bert_snli.errors import BertSnliError
from bert_snli.evaluation.metrics import nli_metrics
from bert_snli.evaluation.plots import plot_curve
from bert_snli.fast.forward import FastClassifier
from bert_snli.fast.machine import Precision, choose_precision, keep_freed_memory, training_flops
from bert_snli.folders import check_output_dir, finished_folder, make_output_dir
from bert_snli.hub import check_login, check_repo_id, forget_measurements, keep_start_certificate, push, stage
from bert_snli.inference import (
    label_names,
    load_config,
    load_tokenizer,
    load_weights,
    predict_logits,
    refuse_onnx_alone,
)
from bert_snli.labels import ID2LABEL, LABEL2ID
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.training.checkpointing import (
    Progress,
    drop_checkpoints_after,
    find_checkpoint,
    load_checkpoint,
    read_progress,
)
from bert_snli.training.loop import METRICS, FinetuningLoop, num_updates
from bert_snli.training.optimisation import make_optimizer, make_scheduler
from bert_snli.training.recipe import FinetuneRecipe, recipe_arguments

PROG = "bert-snli finetune"
COMPILED_LENGTHS = 8  # a compiled model sees lengths of its multiples only
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
DESCRIPTION = """\
Fine-tune a model on SNLI and keep it as a normal model folder, with metrics.jsonl and the book's curve beside it.
Without --config it follows recipes/default.yaml, whose values are the defaults below.

examples:
  bert-snli finetune --model_name_or_path models/small --output_dir runs/snli
  bert-snli finetune --config recipes/d2l_book.yaml --model_name_or_path models/small --output_dir runs/book
  bert-snli finetune ... --num_processes 2          options of `accelerate launch` are taken as well
  accelerate launch --config_file accelerate_config.yaml -m bert_snli.finetune ...      the same, launched by hand
"""


class RecipeParser(OneLineErrorParser, HfArgumentParser):
    """Options from the fields of a dataclass, with one-line errors."""

    def add_argument(self, *names, **options):
        """As argparse does; the contrary of an option, which is made of its text, gets one of its own."""
        if names[0].startswith("--no_"):
            options["help"] = f"Switch {names[0].replace('--no_', '--')} off."
        return super().add_argument(*names, **options)


def parse_recipe(argv: Sequence[str]) -> FinetuneRecipe:
    """Read options; those of `--config FILE.yaml` come first, so that the command line overrides them.

    Raises:
        BertSnliError: a value that makes no sense. An unknown option exits with 2.
    """
    parser = RecipeParser(FinetuneRecipe, prog=PROG, description=DESCRIPTION)
    parser.add_argument("--config", type=Path, help="YAML recipe: any of these options; the command line overrides it.")
    config = parser.parse_known_args(argv)[0].config
    from_file = recipe_arguments(config) if config else []
    recipe, _, unknown = parser.parse_args_into_dataclasses([*from_file, *argv], return_remaining_strings=True)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return recipe


def check_recipe(recipe: FinetuneRecipe) -> None:
    """What can be known to be wrong before anything is loaded or written.

    Raises:
        BertSnliError: the output folder holds something, there is nothing to resume from, a tracker is not installed,
            `hub_model_id` is no name of a repository.
    """
    if recipe.resume_from_checkpoint:
        find_checkpoint(recipe.resume_from_checkpoint, Path(recipe.output_dir))
    else:
        check_output_dir(Path(recipe.output_dir), overwrite=recipe.overwrite_output_dir)
    if recipe.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise BertSnliError("--mixed_precision fp16: needs a GPU, and there is none; choose 'no' or 'bf16'")
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise BertSnliError(f"--report_to {recipe.report_to}: is not installed; pip install {recipe.report_to}")
    if recipe.hub_model_id:
        check_repo_id(recipe.hub_model_id, "--hub_model_id")


def finetune(recipe: FinetuneRecipe) -> dict:
    """Run `recipe`; returns what `train_results.json` in the output folder holds.

    Raises:
        BertSnliError: anything that the user can mend.
    """
    check_recipe(recipe)
    config = classifier_config(recipe)
    labels = label_names(config, recipe.model_name_or_path)
    tokenizer = load_tokenizer(recipe.model_name_or_path)
    encoder = PairEncoder(tokenizer, recipe.max_length, recipe.truncation, recipe.text_source)
    on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    precision = shared_precision(recipe, PartialState(cpu=on_cpu))
    recipe = replace(recipe, mixed_precision=precision.name)
    accelerator = Accelerator(
        mixed_precision=precision.name,
        cpu=on_cpu,
        log_with=None if recipe.report_to == "none" else recipe.report_to,
        project_dir=recipe.output_dir,
    )
    if accelerator.distributed_type in SHARDED:
        raise BertSnliError(f"accelerate's {accelerator.distributed_type.value} is not supported; use MULTI_GPU")
    if recipe.hub_model_id and accelerator.is_main_process:
        check_login(recipe.hub_model_id)
    with accelerator.main_process_first():
        train, evaluation, num_dropped = load_encoded(recipe, labels, encoder)
    accelerator.print(f"{len(train):,} pairs to train on ({num_dropped:,} rows without a gold label dropped)")
    numbers = "fp32" if precision.name == "no" else precision.name
    rate = f"{precision.rate / 1e9:,.0f} GFLOP/s"
    accelerator.print(f"{accelerator.device.type}, {numbers} ({precision.reason}): {rate}")
    loop = prepare(recipe, accelerator, config, labels, tokenizer, train, evaluation)
    # Nothing is written before this line: all that can be wrong with options, model and data has been found by now.
    output_dir = Path(recipe.output_dir)
    if accelerator.is_main_process:
        make_output_dir(output_dir)
        recipe.save(output_dir / "recipe.yaml")
        keep_start_certificate(Path(recipe.model_name_or_path), output_dir)
        forget_measurements(output_dir)
        drop_checkpoints_after(loop.progress.step, output_dir)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("bert-snli", {name: value for name, value in asdict(recipe).items() if value is not None})
    _start_metrics(loop, output_dir)
    loop.run()
    results = {**summarise(loop, len(train), precision.rate), "without_gold_label": num_dropped}
    if accelerator.is_main_process:
        (output_dir / "train_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    accelerator.end_training()
    if recipe.push_to_hub and accelerator.is_main_process:
        accelerator.print(f"Pushed: {push_finished(recipe)}")
    return results


def shared_precision(recipe: FinetuneRecipe, state: PartialState) -> Precision:
    """The precision that all processes train in: as the main one finds the machine, or as the checkpoint has it."""
    told = recipe.mixed_precision
    if recipe.resume_from_checkpoint and told == "auto":
        told = read_progress(find_checkpoint(recipe.resume_from_checkpoint, Path(recipe.output_dir))).precision
    found = [choose_precision(told, state.device) if state.is_main_process else None]
    (precision,) = broadcast_object_list(found)
    return Precision(*precision)


def push_finished(recipe: FinetuneRecipe) -> str:
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


def classifier_config(recipe: FinetuneRecipe) -> D2LBertConfig:
    """The classifier's configuration: the start model's, with the labels and what the recipe overrides.

    Raises:
        BertSnliError: there is no such model, or it is a classifier with another head than the recipe's.
    """
    refuse_onnx_alone(recipe.model_name_or_path)
    config = load_config(recipe.model_name_or_path)
    is_classifier = "D2LBertForSequenceClassification" in (config.architectures or [])
    if not is_classifier:
        config.id2label, config.label2id = dict(ID2LABEL), dict(LABEL2ID)
        config.classifier_head = recipe.classifier_head or config.classifier_head
    elif recipe.classifier_head not in (None, config.classifier_head):
        raise BertSnliError(
            f"--classifier_head {recipe.classifier_head}: {recipe.model_name_or_path} is a classifier with the "
            f"{config.classifier_head} head; leave the option out, or start from a pretrained model"
        )
    if recipe.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = recipe.dropout
    config.max_pair_length, config.pair_truncation = recipe.max_length, recipe.truncation
    config.problem_type = "single_label_classification"
    return config


def load_encoded(recipe: FinetuneRecipe, labels: Sequence[str], encoder: PairEncoder) -> tuple[Dataset, Dataset, int]:
    """The training and the evaluation pairs, encoded, and how many training rows had no gold label."""
    snli = load_snli(
        recipe.dataset_name_or_path,
        splits=["train", recipe.eval_split],
        text_source=recipe.text_source,
        labels=labels,
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
    recipe: FinetuneRecipe,
    accelerator: Accelerator,
    config: D2LBertConfig,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    evaluation: Dataset,
) -> FinetuningLoop:
    """Model, optimizer, schedule and batches, on their devices; resumed if the recipe says so."""
    set_seed(recipe.seed)
    attention = recipe.attn_implementation or ("eager" if accelerator.device.type == "cpu" else "sdpa")
    model, fresh = load_weights(recipe.model_name_or_path, config, attn_implementation=attention, dtype=torch.float32)
    lacking = sorted(name for name in fresh if not name.startswith("classifier."))
    if lacking:
        raise BertSnliError(f"{recipe.model_name_or_path}: lacks {lacking[0]}; start from a converted checkpoint")
    set_seed(recipe.seed, device_specific=True)  # the same fresh head, but other dropout, in each process
    sampler = GlobalBatchSampler(
        train["length"],
        recipe.train_batch_size,
        seed=recipe.seed,
        strategy=recipe.train_sampling_strategy,
        max_tokens=recipe.train_batch_tokens,
        num_passes=recipe.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    pairs = PaddedPairs(
        train,
        tokenizer.pad_token_id,
        recipe.max_length if recipe.pad_to_max_length else None,
        pad_to_multiple_of=COMPILED_LENGTHS if recipe.torch_compile else 1,
        device=accelerator.device,
    )
    trained = trained_module(recipe, model, pairs.tokens["input_ids"])
    optimizer = make_optimizer(trained, recipe.optim, recipe.learning_rate, recipe.weight_decay)
    scheduler = make_scheduler(
        optimizer,
        recipe.lr_scheduler_type,
        recipe.warmup_steps,
        num_updates(recipe, sampler.batches_per_epoch),
    )
    if isinstance(trained, FastClassifier):
        trained.follow(optimizer)
    trained, optimizer = accelerator.prepare(trained, optimizer)
    progress = Progress()
    if recipe.resume_from_checkpoint:
        checkpoint = find_checkpoint(recipe.resume_from_checkpoint, Path(recipe.output_dir))
        progress = load_checkpoint(accelerator, checkpoint, recipe.batches())
        scheduler.load_state_dict(progress.scheduler)
    progress.batches, progress.precision = recipe.batches(), recipe.mixed_precision
    references = np.asarray(evaluation["labels"])

    def up_to_date() -> D2LBertForSequenceClassification:
        if recipe.fast_forward:
            accelerator.unwrap_model(trained).write_back()
        return model

    def evaluate() -> dict[str, float]:
        logits = predict_logits(
            up_to_date(),
            evaluation,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=recipe.per_device_eval_batch_size,
            accelerator=accelerator,
        )
        metrics = nli_metrics(logits, references, labels)
        return {name: metrics[name] for name in ("loss", "accuracy", "macro_f1")}

    def save_model() -> None:
        if accelerator.is_main_process:
            with finished_folder(Path(recipe.output_dir), overwrite=True) as folder:
                up_to_date().save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        accelerator.wait_for_everyone()

    return FinetuningLoop(
        recipe=recipe,
        accelerator=accelerator,
        model=trained,
        optimizer=optimizer,
        scheduler=scheduler,
        pairs=pairs,
        sampler=sampler,
        evaluate=evaluate,
        save_model=save_model,
        after_epoch=lambda epochs: plot_curve(epochs, recipe.eval_split, Path(recipe.output_dir)),
        progress=progress,
    )


def trained_module(
    recipe: FinetuneRecipe, model: D2LBertForSequenceClassification, train_ids: torch.Tensor
) -> FastClassifier | D2LBertForSequenceClassification:
    """What computes the logits while training, and holds what is trained; `train_ids` are all the words of the data."""
    trained: FastClassifier | D2LBertForSequenceClassification = model
    if recipe.fast_forward:
        trained = FastClassifier(model)
        if recipe.weight_decay == 0 or recipe.optim.startswith("adamw"):  # Adam's is no mere factor
            trained.train_rows(train_ids.unique().cpu())
    if recipe.torch_compile:
        # Each length, and as many numbers of rows as uneven passes and a short last batch make of it.
        torch._dynamo.config.recompile_limit = 4 * (recipe.max_length // COMPILED_LENGTHS + 1)
        # A graph's gradients are written over by its next run, before a second pass could add to them.
        graphs = torch.cuda.is_available() and recipe.gradient_accumulation_steps == 1
        trained.compile(dynamic=False, mode="reduce-overhead" if graphs else None)
    return trained


def _start_metrics(loop: FinetuningLoop, output_dir: Path) -> None:
    """Empty `metrics.jsonl`, or cut it back to where the run is resumed."""
    progress = loop.progress
    if loop.accelerator.is_main_process:
        path = output_dir / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if progress.step and path.exists() else []
        kept = [line for line in lines if _belongs(line, progress)]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _belongs(line: str, progress: Progress) -> bool:
    """Whether a line of metrics was written before the checkpoint was; a killed run may leave half a line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return entry in progress.epochs if "eval_loss" in entry else entry["step"] <= progress.step


def summarise(loop: FinetuningLoop, num_pairs: int, matrix_rate: float) -> dict:
    """The figures of the run: those of the epoch that was kept, and how fast it went.

    `model_flops_utilization` is the share of each process's `matrix_rate` (FLOP/s) that the whole model's products
    would take; with --fast_forward, which leaves out half of them, it may be above 1.
    """
    progress, recipe = loop.progress, loop.recipe
    epochs = progress.epochs
    flops = training_flops(loop.accelerator.unwrap_model(loop.model).config, loop.pairs.lengths) * epochs[-1]["epoch"]
    kept = max(epochs, key=lambda entry: entry["eval_accuracy"]) if recipe.load_best_model_at_end else epochs[-1]
    return {
        "kept_epoch": round(kept["epoch"], 4),
        **{name: value for name, value in kept.items() if name.startswith(("train_loss", "train_acc", "eval_"))},
        "eval_split": recipe.eval_split,
        "train_samples": num_pairs,
        "train_steps": progress.step,
        "train_runtime": progress.seconds,
        "train_samples_per_second": num_pairs * epochs[-1]["epoch"] / progress.seconds,
        "model_flops_utilization": flops / progress.seconds / loop.accelerator.num_processes / matrix_rate,
        "matrix_flops_per_second": matrix_rate,
        "num_processes": loop.accelerator.num_processes,
        "mixed_precision": str(loop.accelerator.mixed_precision),
        "device": str(loop.accelerator.device),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""

    def command() -> None:
        recipe = parse_recipe(sys.argv[1:] if argv is None else argv)
        quiet_libraries()
        keep_freed_memory()
        results = finetune(recipe)
        if PartialState().is_main_process:
            print(
                f"{recipe.output_dir}: train loss {results['train_loss']:.3f}, "
                f"train accuracy {results['train_accuracy']:.3f}, "
                f"{recipe.eval_split} accuracy {results['eval_accuracy']:.3f} "
                f"({results['train_samples_per_second']:,.0f} pairs/s, "
                f"model FLOPs {results['model_flops_utilization']:.0%} of the machine's rate); "
                f"the curve is in {recipe.output_dir}/curve.png"
            )

    return run(PROG, command)


if __name__ == "__main__":
    sys.exit(main())
