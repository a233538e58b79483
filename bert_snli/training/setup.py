"""Prepare a run: checks, processes and precision, optimizer and schedule, and the state to resume from."""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, parse_flag_from_env, set_seed
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase, get_scheduler

from bert_snli.errors import BertSnliError
from bert_snli.fast.machine import Precision, choose_precision
from bert_snli.files import TRAIN_RESULTS, check_output_dir
from bert_snli.training import checkpointing
from bert_snli.training.arguments import CHANGEABLE_ON_RESUME, BaseTrainingArguments
from bert_snli.training.run_folder import RUN

PROCESS_TIMEOUT = timedelta(hours=1)  # all processes wait while the main one encodes the data; NCCL: 10 minutes
# d2l uses adam_torch without weight decay (15.7.4).
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch_fused": partial(torch.optim.AdamW, fused=True),
    "adamw_torch": torch.optim.AdamW,
    "adam_torch": torch.optim.Adam,
}
Arguments = TypeVar("Arguments", bound=BaseTrainingArguments)
logger = logging.getLogger(__name__)


def runs_on_cpu() -> bool:
    """Return whether training runs on the CPU: there is no accelerator, or Accelerate is set to the CPU."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def check_arguments(arguments: BaseTrainingArguments) -> None:
    """Check the arguments before anything is loaded or written."""
    output_dir, checkpoint = Path(arguments.output_dir), arguments.resume_from_checkpoint
    is_unfinished = (output_dir / RUN).is_file() and not (output_dir / TRAIN_RESULTS).is_file()
    can_resume = is_unfinished or checkpointing.list_checkpoints(output_dir)
    if checkpoint not in (None, "auto"):
        checkpointing.check_checkpoint_folder(Path(checkpoint), output_dir)
    elif checkpoint is None and can_resume and not arguments.overwrite_output_dir:
        remedy = "set resume_from_checkpoint auto to continue it, give another folder, or set overwrite_output_dir"
        raise BertSnliError(f"{output_dir}: already holds a run; {remedy}")
    elif not (checkpoint and can_resume):
        check_output_dir(output_dir, overwrite=arguments.overwrite_output_dir)
    if arguments.mixed_precision == "fp16" and runs_on_cpu():
        raise BertSnliError("mixed_precision fp16: needs a GPU, but the run is on a CPU; choose 'no' or 'bf16'")
    tracker = arguments.report_to
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise BertSnliError(f"report_to {tracker}: is not installed; pip install 'bert-snli[{tracker}]'")


def open_accelerator(arguments: Arguments) -> tuple[Accelerator, Arguments]:
    """Connect the processes of the run. Return also the arguments with the chosen precision and checkpoint."""
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):  # not needed, because the models are small
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise BertSnliError(f"distributed_type {name}: is not supported; use MULTI_GPU")
    on_cpu = runs_on_cpu()
    state = PartialState(cpu=on_cpu, timeout=PROCESS_TIMEOUT)
    if state.is_main_process:
        model, train_file = arguments.model_name_or_path or "new weights", getattr(arguments, "train_file", None)
        data = train_file or arguments.dataset_name_or_path
        logger.info("model: %s; data: %s; output folder: %s", model, data, arguments.output_dir)
    choices: list = [choose_checkpoint_and_precision(arguments, state.device) if state.is_main_process else None]
    ((checkpoint, precision),) = broadcast_object_list(choices)
    arguments = replace(arguments, resume_from_checkpoint=checkpoint, mixed_precision=precision.name)
    # DDP reorders its gradient buckets after the first update, but a resumed run would start with the initial order.
    # With more than two processes, the order changes the rounding of sums. DDP keeps the order of the buckets if it
    # looks for unused parameters.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=state.num_processes > 2, gradient_as_bucket_view=True)
    accelerator = Accelerator(
        mixed_precision=precision.name,
        cpu=on_cpu,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=arguments.output_dir,
        kwargs_handlers=[ddp],
    )
    if accelerator.is_main_process:
        name = "fp32" if precision.name == "no" else precision.name
        place = f"device: {accelerator.device.type}; processes: {accelerator.num_processes}"
        speed = f"{precision.matmul_throughput / 1e9:,.0f} GFLOP/s"
        logger.info("%s; precision: %s (%s); matmul throughput: %s", place, name, precision.reason, speed)
    return accelerator, arguments


def choose_checkpoint_and_precision(
    arguments: BaseTrainingArguments, device: torch.device
) -> tuple[str | None, Precision]:
    """Choose the checkpoint to resume from, and the precision. With 'auto', a checkpoint decides the precision."""
    checkpoint, precision = None, arguments.mixed_precision
    if arguments.resume_from_checkpoint:
        checkpoint = checkpointing.find_valid_checkpoint(arguments.resume_from_checkpoint, Path(arguments.output_dir))
    if checkpoint and precision == "auto":
        precision = checkpointing.read_progress(checkpoint).settings["mixed_precision"]
    return (str(checkpoint) if checkpoint else None), choose_precision(precision, device)


def format_count(number: int, noun: str, total: int | None = None) -> str:
    """Return `2,000 training pairs`, or `2,000 of 89,906 training pairs` if `total` is larger."""
    of_total = f" of {total:,}" if total not in (None, number) else ""
    return f"{number:,}{of_total} {noun}{'' if (total or number) == 1 else 's'}"


def choose_attention(requested: str | None, device: torch.device) -> str:
    """Return the attention implementation. For pairs as short as in SNLI, eager is faster than sdpa on a CPU."""
    return requested or ("eager" if device.type == "cpu" else "sdpa")


def fingerprint(tokenizer: PreTrainedTokenizerBase, *data: Mapping[str, np.ndarray]) -> str:
    """Return a SHA-256 of the vocabulary and of the columns of training and evaluation data."""
    digest = hashlib.sha256()
    for columns in data:
        for array in columns.values():
            digest.update(array.tobytes())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])).encode())
    return digest.hexdigest()


def make_optimizer(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make an optimizer of the trainable parameters. Vectors (biases, LayerNorm weights) have no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, lr=learning_rate)


def make_scheduler(
    optimizer: torch.optim.Optimizer, name: str, warmup_steps: float, num_training_steps: int
) -> LRScheduler:
    """Make a learning rate schedule. `warmup_steps` below 1 is a fraction of `num_training_steps`."""
    if warmup_steps < 1:
        warmup_steps = round(warmup_steps * num_training_steps)
    return get_scheduler(name, optimizer, num_warmup_steps=int(warmup_steps), num_training_steps=num_training_steps)


def resume_or_start(
    arguments: BaseTrainingArguments,
    accelerator: Accelerator,
    scheduler: LRScheduler,
    data_fingerprint: str,
    total_updates: int,
) -> checkpointing.Progress:
    """Load the chosen checkpoint, if any, and return the progress of the run."""
    num_gpus = torch.cuda.device_count() if accelerator.device.type == "cuda" else 0
    machine = {"num_processes": accelerator.num_processes, "num_gpus": num_gpus}
    settings = arguments.settings() | machine
    if not arguments.resume_from_checkpoint:
        return checkpointing.Progress(settings=settings, data_fingerprint=data_fingerprint)
    folder, where = Path(arguments.resume_from_checkpoint), f"resume_from_checkpoint {arguments.resume_from_checkpoint}"
    progress = checkpointing.read_progress(folder)
    saved = progress.settings
    changed = sorted(name for name in settings | saved if settings.get(name) != saved.get(name))
    fixed = [name for name in changed if name not in (*CHANGEABLE_ON_RESUME, *machine)]
    if fixed:
        before, now = saved.get(fixed[0]), settings.get(fixed[0])
        raise BertSnliError(f"{where}: was written with {fixed[0]} {before}, not {now}; use the same options")
    if progress.data_fingerprint != data_fingerprint:
        raise BertSnliError(f"{where}: was written with other pairs, labels or tokens; use the same data")
    if {"num_train_epochs", "max_steps"} & set(changed) and total_updates <= progress.step:
        reached = f"is at step {progress.step} of {total_updates}"
        raise BertSnliError(f"{where}: {reached}; increase max_steps or num_train_epochs to continue")
    with checkpointing.explain_unreadable(folder):
        accelerator.load_state(str(folder))
    scheduler.load_state_dict(progress.scheduler)
    if machine.keys() & set(changed):  # its random states belong to another machine
        set_seed((arguments.seed + progress.step) % 2**32, device_specific=True)
    if accelerator.is_main_process:
        logger.info("resuming from %s", folder.name)
        if changed:
            changes = ", ".join(f"{name} was {saved.get(name, 'unknown')}, is {settings[name]}" for name in changed)
            logger.warning("resume is not bit-exact: %s; rounding or the learning rate schedule differ", changes)
    progress.settings = settings
    return progress
