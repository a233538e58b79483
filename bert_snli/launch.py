"""`bert-snli finetune` and `pretrain`: the launch line of Accelerate without typing it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, ModuleType
from typing import NoReturn

import psutil
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bert_snli.console import BY_SIGNAL, run, say
from bert_snli.errors import BertSnliError
from bert_snli.training.command_line import split_arguments
from bert_snli.training.stopping import STOPPING

# torchrun sets the first in each process that it starts, `accelerate launch` always sets the second.
LAUNCHED = {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"}
# They tell of defaults that were taken and of signals that were passed on.
CHATTY = (
    "accelerate.commands.launch",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)


def main(command: ModuleType, argv: Sequence[str]) -> int:
    """Train in this process, or launch as many as are asked for (by default one for each GPU).

    A process that torchrun or `accelerate launch` started trains; it does not launch others.

    Args:
        command: `bert_snli.finetune` or `bert_snli.pretrain`.
    """
    launch, recipe = split_arguments(argv, command.RECIPE)
    if LAUNCHED & os.environ.keys():
        if launch:
            message = f"{launch[0]}: a launcher started this process; give the option to the launcher"
            return run(command.PROG, lambda: _raise(message))
        return command.main(recipe)
    if not launch and torch.cuda.device_count() > 1:
        launch = ["--num_processes", str(torch.cuda.device_count())]
    if launch in ([], ["--num_processes", "1"], ["--num_processes=1"]):
        return command.main(recipe)
    # What can be seen to be wrong is said once, here, and not by every process.
    checked = run(command.PROG, lambda: command.check_recipe(command.parse_recipe(recipe)))
    return checked or run(command.PROG, lambda: _launch(launch, command, recipe))


def _launch(launch: list[str], command: ModuleType, recipe: list[str]) -> None:
    """Run the launcher; a process that fails has said why, and its exit code is ours."""
    parser = launch_command_parser()
    parser.error = _refuse  # one line instead of Accelerate's whole usage
    args = parser.parse_args([*launch, "-m", command.__name__, *recipe])
    # Without a configuration file, Accelerate starts several processes only for what it takes to be several GPUs;
    # where there is none, they talk over gloo.
    if args.config_file is None and (args.num_processes or 1) > 1:
        args.multi_gpu, args.cpu = True, False
    if args.num_processes is not None and args.num_processes < 1:
        _refuse(f"--num_processes {args.num_processes}: give 1 or more")
    no_number = args.config_file is None and args.num_processes is None  # Accelerate then takes the number of GPUs
    if no_number and args.multi_gpu and not torch.accelerator.is_available():
        _refuse("--multi_gpu: this machine has no GPU; add --num_processes N for N processes on the CPU")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it advises against what `open_accelerator` needs
    args.signals_to_handle = "SIGHUP,SIGQUIT"  # torchrun's option: those that it ends the processes by
    asked: list[int] = []
    try:
        with _passing_signals_on(asked):
            launch_command(args)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        raise SystemExit(_exit_code(codes, *asked[:1])) from error
    except SignalException as stopped:  # of those that are not passed on, such as a terminal that is closed
        raise SystemExit(BY_SIGNAL + stopped.sigval) from stopped
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error
    except ValueError as error:
        _refuse(str(error))


@contextmanager
def _passing_signals_on(asked: list[int]) -> Iterator[None]:
    """Hand SIGTERM and SIGINT to the processes, which take the time they need, and note them in `asked`.

    The launcher's own way gives them 30 seconds, then SIGKILL: too few for a step, a long evaluation and a checkpoint.
    """

    def pass_on(signum: int, frame: FrameType | None) -> None:
        processes = psutil.Process().children()
        if not processes:
            raise SystemExit(BY_SIGNAL + signum)
        asked.append(signum)
        for process in processes:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if signum != signal.SIGINT or os.getpgid(process.pid) != os.getpgrp():  # else it has had the Ctrl-C
                    process.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(codes: dict[int, int], asked: int | None = None) -> int:
    """Ours, from those of the processes that failed; one that was killed, for want of memory say, is named.

    Args:
        asked: the signal that they were to stop by.
    """
    if asked:
        codes = {rank: code for rank, code in codes.items() if code not in (-asked, BY_SIGNAL + asked)}
        if set(codes.values()) <= {-signal.SIGTERM}:  # the launcher's, for those that were last to leave
            return BY_SIGNAL + asked
    for rank, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:
            say(f"process {rank} was ended by {signal.Signals(-code).name}, and so the others were")
            return BY_SIGNAL - code
    return max(1, *codes.values())


def _refuse(message: str) -> NoReturn:
    _raise(f"accelerate launch: {message}")


def _raise(message: str) -> NoReturn:
    raise BertSnliError(message)
