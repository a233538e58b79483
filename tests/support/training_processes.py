"""Fine-tuning runs in other processes, one or several that train together.

A new Python process needs 6 seconds of CPU time to import the package. The processes here are forks of a server
process that has imported it, and start at once. They run `bert_snli.finetune` with the environment that a launcher
sets, so they are not a test of `bert-snli finetune --num_processes`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from tests.support.finetuning import D2L_OPTIONS
from tests.support.processes import unused_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["bert_snli.finetune", "bert_snli.pretrain", "tests.support.training_processes"])


class TrainingRun:
    """Processes that train together.

    Args:
        module: `bert_snli.finetune` or `bert_snli.pretrain`.
        arguments: those of the command line.
        logs: a prefix; process N writes what it prints to `{logs}-N.log`.
        prepare: called in each process before it trains; a function of a module.
    """

    def __init__(
        self,
        module: str,
        arguments: list[str],
        logs: Path,
        num_processes: int = 1,
        prepare: Callable[[], None] | None = None,
    ):
        self.logs = [Path(f"{logs}-{rank}.log") for rank in range(num_processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        if num_processes > 1:
            environment |= {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1"}
            environment |= {"MASTER_PORT": str(unused_port())}
        self.processes = []
        for rank, log in enumerate(self.logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_processes > 1 else {}
            process = SERVER.Process(
                target=_train, args=(module, arguments, {**environment, **place}, log, prepare), daemon=True
            )
            process.start()
            self.processes.append(process)

    def is_running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, code: int = 0, timeout: float = 300) -> str:
        """Wait for the end of the run. Return what process 0 printed.

        Raises:
            AssertionError: a process has not ended with the exit code `code`.
        """
        limit = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, limit - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if self.is_running():
            self.kill()
        printed = [log.read_text() if log.exists() else "" for log in self.logs]
        assert set(codes) == {code}, f"exit codes {codes}, expected {code}\n" + "\n".join(printed)
        return printed[0]

    def kill(self) -> None:
        """Send SIGKILL to all processes and wait for their end."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def _train(
    module: str,
    arguments: list[str],
    environment: Mapping[str, str],
    log: Path,
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.clear()  # the server process has the environment of the test that started it
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    tqdm.set_lock(threading.RLock())  # a killed process leaks the default lock, a semaphore of the system
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if prepare:
        prepare()
    sys.exit(sys.modules[module].main(arguments))


def command_line(base_model: Path, corpus: Path, output_dir: Path, **options: object) -> list[str]:
    """Return the arguments of `bert-snli finetune` for `D2L_OPTIONS` and `options`."""
    paths = {"model_name_or_path": base_model, "dataset_name_or_path": corpus, "output_dir": output_dir}
    return [str(word) for name, value in {**paths, **D2L_OPTIONS, **options}.items() for word in (f"--{name}", value)]


def start_finetuning(
    base_model: Path,
    corpus: Path,
    output_dir: Path,
    num_processes: int = 1,
    *,
    prepare: Callable[[], None] | None = None,
    **options: object,
) -> TrainingRun:
    """Start or resume a run with `D2L_OPTIONS` and `options`."""
    arguments = command_line(base_model, corpus, output_dir, resume_from_checkpoint="auto", **options)
    return TrainingRun("bert_snli.finetune", arguments, output_dir, num_processes, prepare)
