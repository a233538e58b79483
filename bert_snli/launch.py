"""Start the processes of `bert-snli finetune` and `bert-snli pretrain` with Accelerate's launcher."""

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bert_snli.console import SIGNAL_EXIT_BASE, run
from bert_snli.errors import BertSnliError
from bert_snli.training.command_line import split_arguments

# torchrun sets LOCAL_RANK in the processes that it starts, and `accelerate launch` sets the other variable.
LAUNCHER_VARIABLES = {"LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"}
QUIET_LOGGERS = (
    "accelerate.commands.launch",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.multiprocessing.api",
)
# After a signal, an evaluation and a checkpoint may still take minutes. PyTorch before 2.13 always waits 30 seconds.
SHUTDOWN_SECONDS = "300"
logger = logging.getLogger(__name__)


def main(module: ModuleType, argv: Sequence[str]) -> int:
    """Train in this process, or launch several processes: as many as `argv` requests, by default one for each GPU.

    `module` is `bert_snli.finetune` or `bert_snli.pretrain`. If torchrun or `accelerate launch` started
    this process, it trains and launches no other process.
    """
    command = module.COMMAND
    launch, training = split_arguments(argv, command.arguments_class)
    is_launched = bool(LAUNCHER_VARIABLES & os.environ.keys())
    if not launch and not is_launched and torch.cuda.device_count() > 1:
        launch = ["--num_processes", str(torch.cuda.device_count())]
    if launch in ([], ["--num_processes", "1"], ["--num_processes=1"]):
        return module.main(training)

    def check_and_launch() -> None:
        if is_launched:
            raise BertSnliError(f"{launch[0]}: a launcher started this process; give the option to the launcher")
        module.check_arguments(command.parse(training))  # report an error once, and not in every process
        _launch(launch, module.__name__, training)

    return run(command.prog, check_and_launch, command.option_names)


def _launch(launch: list[str], module: str, training: list[str]) -> None:
    """Run the launcher. If a process fails, exit with its exit code; the process has printed the reason."""
    parser = launch_command_parser()
    parser.error = _fail  # one line instead of Accelerate's usage
    args = parser.parse_args([*launch, "-m", module, *training])
    if args.config_file is None and (args.num_processes or 1) > 1:
        args.multi_gpu, args.cpu = True, False  # `multi_gpu` also works on a CPU, with gloo
    if args.multi_gpu and args.config_file is None and args.num_processes is None and not torch.cuda.is_available():
        _fail("--multi_gpu: this machine has no GPU; add --num_processes N for N processes on the CPU")
    if args.gpu_ids not in (None, "all") and not torch.cuda.is_available():
        _fail(f"--gpu_ids {args.gpu_ids}: this machine has no GPU that PyTorch can use; leave --gpu_ids out")
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # PyTorch warns of `find_unused_parameters`
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_SECONDS)
    try:
        launch_command(args)
    except ChildFailedError as error:
        raise SystemExit(_exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})) from error
    except SignalException as stopped:
        raise SystemExit(SIGNAL_EXIT_BASE + stopped.sigval) from stopped
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error
    except ValueError as error:
        _fail(str(error))


def _exit_code(codes: dict[int, int]) -> int:
    """Combine the exit codes of the failed processes. A process that was killed has a negative exit code."""
    for rank, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:  # the launcher stops the other processes with SIGTERM
            logger.error("process %d was killed by %s; the others were stopped", rank, signal.Signals(-code).name)
            return SIGNAL_EXIT_BASE - code
    return max(1, *codes.values())


def _fail(message: str) -> NoReturn:
    raise BertSnliError(f"accelerate launch: {message}")
