"""Run a fine-tuning or pretraining: prepare the output folder, train, log to trackers and write the results."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from torch.nn.parallel import DistributedDataParallel

from bert_snli import files
from bert_snli.console import configure_logging, quiet_libraries, run_and_leave, use_token
from bert_snli.data.batching import GlobalBatchSampler
from bert_snli.errors import Stopped
from bert_snli.fast.forward import FastClassifier
from bert_snli.fast.machine import keep_freed_memory
from bert_snli.training import run_folder
from bert_snli.training.arguments import BaseTrainingArguments
from bert_snli.training.checkpointing import restore_output_dir
from bert_snli.training.command_line import TrainingCommand
from bert_snli.training.loop import TrainingLoop
from bert_snli.training.setup import format_count, make_optimizer, make_scheduler, resume_or_start
from bert_snli.training.task import TrainingTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run."""

    output_dir: Path  # the model folder
    metrics: dict[str, Any]  # the content of `train_results.json`: metrics of the saved model, throughput, machine


def run_training(
    arguments: BaseTrainingArguments,
    accelerator: Accelerator,
    task: TrainingTask,
    prepare_output_dir: Callable[[Path], None],
    more_results: dict[str, Any],
) -> TrainingResult:
    """Train, evaluate after each epoch, and write the output folder. Raises `Stopped` after a signal.

    `prepare_output_dir` is called with the output folder before the first update; `more_results` are additional entries
    of `train_results.json`.
    """
    loop = make_loop(arguments, accelerator, task)
    output_dir, is_main = Path(arguments.output_dir), accelerator.is_main_process
    if is_main:
        updates, pairs = format_count(loop.total_updates, "update"), format_count(arguments.train_batch_size, "pair")
        epochs = loop.total_updates / loop.sampler.batches_per_epoch
        logger.info("training: %s of up to %s (epochs: %.3g)", updates, pairs, epochs)
    with files.lock_folder(output_dir) if is_main else files.explain_write_errors(output_dir):
        if is_main:
            start_output_dir(loop, prepare_output_dir)
        accelerator.wait_for_everyone()
        with open_trackers(loop):
            try:
                loop.run()
            except Stopped:
                draw_curve(loop)
                accelerator.wait_for_everyone()  # the launcher stops all processes as soon as one has ended
                raise
            draw_curve(loop)
        results = summarize_run(loop) | more_results
        if is_main:
            run_folder.write_report(output_dir, results, loop.progress)
            text = json.dumps(results, indent=2) + "\n"
            files.write_atomically(output_dir / files.TRAIN_RESULTS, text)  # the last file: it marks a finished run
    return TrainingResult(output_dir, results)


def make_loop(arguments: BaseTrainingArguments, accelerator: Accelerator, task: TrainingTask) -> TrainingLoop:
    """Make batches, optimizer and schedule, and load the checkpoint if the run is resumed."""
    sampler = GlobalBatchSampler(
        task.pairs.lengths,
        arguments.train_batch_size,
        seed=arguments.seed,
        strategy=arguments.train_sampling_strategy,
        num_micro_batches=arguments.num_micro_batches,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    has_limit = arguments.max_steps > 0
    total_updates = arguments.max_steps if has_limit else arguments.num_train_epochs * sampler.batches_per_epoch
    optimizer = make_optimizer(task.module, arguments.optim, arguments.learning_rate, arguments.weight_decay)
    scheduler = make_scheduler(optimizer, arguments.lr_scheduler_type, arguments.warmup_steps, total_updates)
    if isinstance(task.module, FastClassifier):
        task.module.decay_untrained_rows(optimizer)
    # The buffers are equal in all processes, so DDP need not send them before each forward pass.
    buffers = [name for name, _ in task.module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task.module, buffers)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    progress = resume_or_start(arguments, accelerator, scheduler, task.data_fingerprint, total_updates)
    return TrainingLoop(arguments, accelerator, task, module, optimizer, scheduler, sampler, total_updates, progress)


def start_output_dir(loop: TrainingLoop, prepare_output_dir: Callable[[Path], None]) -> None:
    """Write the first files of a run, and remove files from after the checkpoint from which the run resumes."""
    output_dir, progress = loop.output_dir, loop.progress
    removed = restore_output_dir(output_dir, progress.step)
    if removed and progress.step:
        logger.info("%s: removed, because the run resumes from an earlier checkpoint", ", ".join(removed))
    run_folder.write_origin(output_dir, loop.arguments, progress, describe_machine(loop))
    loop.arguments.save_recipe(output_dir / files.RECIPE_FILE)
    prepare_output_dir(output_dir)
    for name in ("curve.png", "curve.svg", "report.md", "training.png", "confusion_matrix.png"):  # of an earlier run
        (output_dir / name).unlink(missing_ok=True)
    run_folder.restore_metrics(output_dir, progress.num_metrics_lines)


@contextmanager
def open_trackers(loop: TrainingLoop) -> Iterator[None]:
    """Start the experiment tracker of the main process, and finish it at the end of the block, also after an error."""
    if loop.accelerator.is_main_process and loop.arguments.report_to != "none":
        run_id, step = run_folder.read_origin(loop.output_dir)["id"], loop.progress.step
        settings: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step},  # hides the entries that a killed run logged after this step
            "wandb": {"id": run_id, "name": loop.output_dir.name, "resume": "allow"},
            "trackio": {"name": run_id, "resume": "allow"},
        }
        options = {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in asdict(loop.arguments).items()
            if value is not None
        }
        loop.accelerator.init_trackers("bert-snli", options, init_kwargs=settings)
        if loop.arguments.report_to == "tensorboard":
            for entry in run_folder.read_metrics(loop.output_dir):
                if entry["step"] == step:  # purged, and the resumed run does not log it again
                    loop.accelerator.log(run_folder.tracker_metrics(entry), step=step)
    try:
        yield
    finally:
        for tracker in loop.accelerator.trackers:
            tracker.finish()


def draw_curve(loop: TrainingLoop) -> None:
    """Draw the training curve, if there was an evaluation."""
    if loop.accelerator.is_main_process and loop.progress.epochs:
        loop.task.plot(run_folder.read_metrics(loop.output_dir), loop.task.eval_split, loop.output_dir)


def describe_machine(loop: TrainingLoop) -> dict[str, Any]:
    """Return the device, the number of processes and the precision."""
    return {
        "num_processes": loop.accelerator.num_processes,
        "mixed_precision": str(loop.accelerator.mixed_precision),
        "device": str(loop.accelerator.device),
    }


def summarize_run(loop: TrainingLoop) -> dict[str, Any]:
    """Return the metrics of the saved model, the throughput and the machine, for `train_results.json`."""
    progress = loop.progress
    saved = next(entry for entry in progress.epochs if entry["step"] == progress.saved_model["step"])
    metrics = {name: value for name, value in saved.items() if name.startswith(("train_", "eval_"))}
    del metrics["train_seconds"]
    return {
        "saved_epoch": round(saved["epoch"], 4),
        **metrics,
        "eval_split": loop.task.eval_split,
        "train_samples": len(loop.task.pairs),
        "train_steps": progress.step,
        "train_runtime": progress.seconds,
        "train_samples_per_second": len(loop.task.pairs) * progress.epochs[-1]["epoch"] / progress.seconds,
        **describe_machine(loop),
    }


def run_command(
    command: TrainingCommand,
    argv: Sequence[str] | None,
    train: Callable[[Any], TrainingResult],
    labels: Mapping[str, str],
) -> int:
    """Run `bert-snli finetune` or `pretrain` in this process. Return the exit code.

    `argv` is by default the command line of the process. `labels` maps the results to print to their labels.
    """

    def run() -> None:
        configure_logging()
        quiet_libraries()
        keep_freed_memory()
        result = train(command.parse(words))
        if PartialState().is_main_process:
            results = result.metrics
            values = ", ".join(f"{label} {results[name]:.3f}" for name, label in labels.items())
            speed = f"{results['train_samples_per_second']:,.0f} examples/s"
            print(f"{result.output_dir}: epoch {results['saved_epoch']:g}: {values}; {speed}; see report.md")

    with use_token(sys.argv[1:] if argv is None else argv) as words:
        return run_and_leave(command.prog, run, command.option_names - set(words))
