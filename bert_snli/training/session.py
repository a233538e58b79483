"""A training run around its loop, the same for fine-tuning and pretraining: options, processes, files and results."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, parse_flag_from_env, set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from bert_snli.console import quiet_libraries, run_and_leave, say
from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.errors import BertSnliError, Stopped
from bert_snli.fast.forward import FastClassifier
from bert_snli.fast.machine import Precision, choose_precision, keep_freed_memory
from bert_snli.files import (
    METRICS,
    RECIPE_FILE,
    TRAIN_RESULTS,
    check_output_dir,
    create_output_dir,
    explain_write_errors,
    lock_folder,
    write_atomically,
)
from bert_snli.training.arguments import BaseTrainingArguments
from bert_snli.training.checkpointing import (
    Progress,
    check_place,
    find_sound_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    restore_output_dir,
)
from bert_snli.training.command_line import COMMANDS, option_names
from bert_snli.training.finite import NON_FINITE
from bert_snli.training.loop import TrainingLoop, num_updates, read_metrics, tracker_metrics
from bert_snli.training.optimisation import make_optimizer, make_scheduler
from bert_snli.training.record import RUN, TRAINER_STATE, describe_origin, read_origin, write_origin
from bert_snli.training.run_report import CONFUSION, RUN_REPORT, TRAINING_PLOT, write_run_report

UNSUPPORTED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")  # the models are small: each process holds all weights
ENCODING_TIMEOUT = timedelta(hours=6)  # NCCL's own limit is 10 minutes
Recipe = TypeVar("Recipe", bound=BaseTrainingArguments)


def check_start(recipe: BaseTrainingArguments) -> None:
    """What can be known to be wrong before anything is loaded or written.

    Raises:
        BertSnliError: the output folder holds something, there is nothing to resume from, a tracker is not installed.
    """
    output_dir = Path(recipe.output_dir)
    if recipe.resume_from_checkpoint not in (None, "auto"):
        check_place(Path(recipe.resume_from_checkpoint), output_dir)
    elif recipe.resume_from_checkpoint is None or not (list_checkpoints(output_dir) or is_unfinished(output_dir)):
        check_output_dir(output_dir, overwrite=recipe.overwrite_output_dir)
    if recipe.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise BertSnliError("--mixed_precision fp16: needs a GPU, and there is none; choose 'no' or 'bf16'")
    if importlib.util.find_spec("matplotlib") is None:  # it draws the curve when the run ends
        raise BertSnliError("matplotlib is not installed; pip install 'bert-snli[train]'")
    if recipe.report_to != "none" and importlib.util.find_spec(recipe.report_to) is None:
        raise BertSnliError(
            f"--report_to {recipe.report_to}: is not installed; pip install 'bert-snli[{recipe.report_to}]'"
        )


def is_unfinished(output_dir: Path) -> bool:
    """Whether a run has begun in `output_dir` and not come to its end."""
    return (output_dir / RUN).is_file() and not (output_dir / TRAIN_RESULTS).is_file()


def open_accelerator(recipe: Recipe) -> tuple[Accelerator, Recipe, Precision]:
    """The processes and their device; the recipe with the precision that it means; and that precision.

    Raises:
        BertSnliError: a distributed type that training does not know.
    """
    for name in UNSUPPORTED:
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise BertSnliError(f"accelerate's {name} is not supported; use distributed_type: MULTI_GPU")
    on_cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    recipe, precision = resolve_on_main_process(recipe, PartialState(cpu=on_cpu))
    # After the first update DDP reorders the gradients in its buckets, which changes the order in which those of more
    # than two processes are added; a resumed run would start with the first order again. DDP keeps the order when it
    # looks for unused parameters.
    keeps_order = PartialState().num_processes > 2
    accelerator = Accelerator(
        mixed_precision=precision.name,
        cpu=on_cpu,
        log_with=None if recipe.report_to == "none" else recipe.report_to,
        project_dir=recipe.output_dir,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=keeps_order, gradient_as_bucket_view=True)
        ],
    )
    return accelerator, recipe, precision


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block in the main process, then in the others, which wait for up to `ENCODING_TIMEOUT`.

    `Accelerator.main_process_first` gives up after 10 minutes on GPUs. This barrier has its own gloo group, so that
    a GPU that hangs during training is still noticed after 10 minutes.
    """
    if accelerator.num_processes == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=ENCODING_TIMEOUT)
    if not accelerator.is_main_process:
        dist.barrier(group)
    yield
    if accelerator.is_main_process:
        dist.barrier(group)


def resolve_on_main_process(recipe: Recipe, state: PartialState) -> tuple[Recipe, Precision]:
    """The checkpoint that all processes go on from, and the precision that they train in.

    Precision is as the main process finds the machine, or as the checkpoint has it.
    """
    found: list = [None]
    if state.is_main_process:
        checkpoint, requested = None, recipe.mixed_precision
        if recipe.resume_from_checkpoint:
            checkpoint = find_sound_checkpoint(recipe.resume_from_checkpoint, Path(recipe.output_dir), say)
        if checkpoint and requested == "auto":
            requested = read_progress(checkpoint).means["mixed_precision"]
        found = [(str(checkpoint) if checkpoint else None, tuple(choose_precision(requested, state.device)))]
    ((checkpoint, precision),) = broadcast_object_list(found)
    recipe = replace(recipe, resume_from_checkpoint=checkpoint, mixed_precision=precision[0])
    return recipe, Precision(*precision)


def describe_machine(accelerator: Accelerator, precision: Precision) -> str:
    """What is trained on, in words."""
    numbers = "fp32" if precision.name == "no" else precision.name
    return (
        f"{accelerator.device.type}, {numbers} ({precision.reason}): {precision.matmul_throughput / 1e9:,.0f} GFLOP/s"
    )


def make_sampler(recipe: BaseTrainingArguments, accelerator: Accelerator, lengths: Sequence[int]) -> GlobalBatchSampler:
    """The batches of the recipe, of rows of `lengths`."""
    return GlobalBatchSampler(
        lengths,
        recipe.train_batch_size,
        seed=recipe.seed,
        strategy=recipe.train_sampling_strategy,
        max_tokens=recipe.train_batch_tokens,
        num_micro_batches=recipe.num_micro_batches,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )


def fingerprint(tokenizer: PreTrainedTokenizerBase, arrays: Iterable[np.ndarray]) -> str:
    """Of the vocabulary, and of all numbers to train and evaluate on: a run is resumed with the same."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])).encode())
    return digest.hexdigest()


def prepare_training(
    recipe: BaseTrainingArguments, accelerator: Accelerator, model: nn.Module, batches_per_epoch: int, data: str
) -> tuple[nn.Module, torch.optim.Optimizer, LRScheduler, Progress]:
    """`model` among the processes, its optimizer and schedule, and where the run stands: resumed if it says so.

    `data` is the fingerprint of what is trained on.

    Raises:
        BertSnliError: a checkpoint that does not fit.
    """
    optimizer = make_optimizer(model, recipe.optim, recipe.learning_rate, recipe.weight_decay)
    scheduler = make_scheduler(
        optimizer, recipe.lr_scheduler_type, recipe.warmup_steps, num_updates(recipe, batches_per_epoch)
    )
    if isinstance(model, FastClassifier):
        model.decay_untrained_rows(optimizer)
    # The buffers are equal in all processes: without this, DDP would send them before each forward pass.
    buffers = [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, buffers)
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = Progress()
    num_gpus = torch.cuda.device_count() if accelerator.device.type == "cuda" else 0
    machine = {"num_processes": accelerator.num_processes, "num_gpus": num_gpus}
    means = {**recipe.means(), **machine}
    if recipe.resume_from_checkpoint:
        checkpoint = Path(recipe.resume_from_checkpoint)
        progress = load_checkpoint(accelerator, checkpoint, recipe.to_resume_with(), data)
        scheduler.load_state_dict(progress.scheduler)
        other = [name for name, value in means.items() if progress.means.get(name) != value]
        if machine.keys() & set(other):  # the checkpoint's random states do not fit
            set_seed((recipe.seed + progress.step) % 2**32, device_specific=True)
        then, now = (", ".join(f"{name} {of.get(name, 'unknown')}" for name in other) for of in (progress.means, means))
        shorter = {"num_train_epochs", "max_steps"} & set(other)
        if shorter and num_updates(recipe, batches_per_epoch) <= progress.step:
            raise BertSnliError(f"--resume_from_checkpoint {checkpoint}: is as far as {now} goes; give more")
        if accelerator.is_main_process:
            say(f"going on from {checkpoint.name}")
            if other:
                say(
                    f"it was made with {then}, not {now}: the same batches, but from here on the bits differ (by "
                    "rounding, the draws of dropout, or the schedule)"
                )
    progress.options, progress.means, progress.data = recipe.to_resume_with(), means, data
    return model, optimizer, scheduler, progress


def run_loop(
    loop: TrainingLoop, prepare_folder: Callable[[Path], None], *, precision: Precision, **more: Any
) -> dict[str, Any]:
    """Run a prepared loop; returns what `train_results.json` in the output folder holds.

    Nothing is written before: all that can be wrong with options, model and data has been found by now.

    Args:
        prepare_folder: does to the output folder what is to be done before a run.
        more: results besides those of the loop.
    """
    accelerator, output_dir = loop.accelerator, Path(loop.recipe.output_dir)
    if accelerator.is_main_process:
        create_output_dir(output_dir)
    with lock_folder(output_dir) if accelerator.is_main_process else nullcontext(), explain_write_errors(output_dir):
        if accelerator.is_main_process:
            _begin_in(output_dir, loop, prepare_folder, precision)
        accelerator.wait_for_everyone()
        _start_trackers(loop)
        try:
            with closing_trackers(accelerator):
                loop.run()
        except Stopped:
            accelerator.wait_for_everyone()  # the launcher ends whoever has not left when the first does
            raise
        results = {**summarise(loop, precision), **more}
        if accelerator.is_main_process:
            write_run_report(output_dir, results, read_metrics(output_dir), loop.progress.kept)
            write_atomically(
                output_dir / TRAIN_RESULTS, json.dumps(results, indent=2) + "\n"
            )  # the mark of a finished run
    return results


@contextmanager
def closing_trackers(accelerator: Accelerator) -> Iterator[None]:
    """Close the trackers at the end of the block, also after an error, so that they write what they hold."""
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _begin_in(
    output_dir: Path, loop: TrainingLoop, prepare_folder: Callable[[Path], None], precision: Precision
) -> None:
    """The files that a run begins with; what is later than where it begins goes."""
    progress = loop.progress
    gone = restore_output_dir(output_dir, progress.step)
    if gone and progress.step:
        say(f"{', '.join(gone)}: removed, as the run is taken up before")
    write_origin(output_dir, describe_origin(loop.recipe, progress.data, describe_run(loop, precision)), progress.step)
    loop.recipe.save(output_dir / RECIPE_FILE)
    prepare_folder(output_dir)
    for name in (
        "curve.png",
        "curve.svg",
        RUN_REPORT,
        TRAINING_PLOT,
        CONFUSION,
        TRAINER_STATE,
        NON_FINITE,
    ):  # an earlier run's
        (output_dir / name).unlink(missing_ok=True)
    _start_metrics(progress, output_dir / METRICS)


def _start_trackers(loop: TrainingLoop) -> None:
    recipe, step, output_dir = loop.recipe, loop.progress.step, Path(loop.recipe.output_dir)
    if recipe.report_to == "none" or not loop.accelerator.is_main_process:
        return
    name = read_origin(output_dir)["id"]
    joined: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step},  # hides what a killed run logged after this step
        "wandb": {"id": name, "name": output_dir.name, "resume": "allow"},
        "trackio": {"name": name, "resume": "allow"},
    }
    options = {option: value for option, value in asdict(recipe).items() if value is not None}
    loop.accelerator.init_trackers("bert-snli", options, init_kwargs=joined)
    if recipe.report_to == "tensorboard":
        for entry in read_metrics(output_dir):
            if entry["step"] == step:  # known by the checkpoint, but purged
                loop.accelerator.log(tracker_metrics(entry), step=step)


def describe_run(loop: TrainingLoop, precision: Precision) -> dict[str, Any]:
    """How a loop runs: on what, on how many, in which numbers."""
    return {
        "matrix_flops_per_second": precision.matmul_throughput,
        "num_processes": loop.accelerator.num_processes,
        "mixed_precision": str(loop.accelerator.mixed_precision),
        "device": str(loop.accelerator.device),
    }


def _start_metrics(progress: Progress, path: Path) -> None:
    """Empty `metrics.jsonl`, or cut it back to where the run is resumed."""
    lines = path.read_text(encoding="utf-8").splitlines() if progress.step and path.exists() else []
    write_atomically(path, "".join(f"{line}\n" for line in lines if _belongs(line, progress)))


def _belongs(line: str, progress: Progress) -> bool:
    """Whether a line of metrics was written before the checkpoint was; a killed run may leave half a line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    return entry in progress.epochs if "eval_loss" in entry else entry["step"] <= progress.step


def summarise(loop: TrainingLoop, precision: Precision) -> dict[str, Any]:
    """The figures of the run: those of the epoch that was kept, and how fast it went."""
    progress, epochs = loop.progress, loop.progress.epochs
    kept = next(entry for entry in epochs if entry["step"] == progress.kept["step"])
    figures = {
        name: value for name, value in kept.items() if name.startswith(("train_", "eval_")) and name != "train_seconds"
    }
    return {
        "kept_epoch": round(kept["epoch"], 4),
        **figures,
        "eval_split": loop.eval_split,
        "train_samples": len(loop.pairs),
        "train_steps": progress.step,
        "train_runtime": progress.seconds,
        "train_samples_per_second": len(loop.pairs) * epochs[-1]["epoch"] / progress.seconds,
        **describe_run(loop, precision),
    }


def run_command(
    prog: str,
    argv: Sequence[str] | None,
    train: Callable[[Sequence[str]], tuple[Recipe, dict[str, Any]]],
    describe: Callable[[dict[str, Any]], str],
) -> int:
    """What `python -m` runs: `train` on the arguments, then one line about the results; returns the exit code."""

    def command() -> None:
        quiet_libraries()
        keep_freed_memory()
        recipe, results = train(sys.argv[1:] if argv is None else argv)
        if PartialState().is_main_process:
            print(
                f"{recipe.output_dir}: {describe(results)} ({results['train_samples_per_second']:,.0f} pairs/s); "
                f"the curve is in {recipe.output_dir}/curve.png"
            )

    return run_and_leave(prog, command, option_names(COMMANDS[prog.split()[-1]].recipe_class))
