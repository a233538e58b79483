"""What all commands print: one line for each error, messages on stderr, and exit codes."""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

from bert_snli.errors import BertSnliError, Stopped

UNEXPECTED, USER_ERROR = 1, 2
BY_SIGNAL = 128  # and the signal's number, as the shell has it
INTERRUPTED, BROKEN_PIPE = BY_SIGNAL + 2, BY_SIGNAL + 13
LONGEST_MESSAGE = 1000
# gloo reports a lost connection as a plain RuntimeError with one of these texts.
GLOO_LOST_CONNECTION = re.compile("Connection (closed|reset) by peer|Broken pipe")
# NCCL errors that begin in this process. torch.distributed raises them as the same class as a lost connection.
NCCL_LOCAL_FAULT = re.compile("ncclUnhandledCudaError|ncclInternalError|ncclInvalidArgument|ncclInvalidUsage")
# The name under which a package is imported, and the extra in pyproject.toml that installs it.
EXTRA_OF_IMPORT = {"onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "gradio": "serve"}

logger = logging.getLogger(__name__)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints examples unchanged, and the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


class OneLineErrorParser(argparse.ArgumentParser):
    """An `ArgumentParser` that answers a wrong option with one line instead of the whole usage."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_dashes(message: str, options: Iterable[str]) -> str:
    """Write parameters as options: `learning_rate` becomes `--learning_rate`.

    A name with an underscore is replaced anywhere, but not within a path. A plain word is one only at the beginning.
    """
    for name in sorted(options, key=len, reverse=True):
        where = r"(?<![\w/.-])" if "_" in name else "^"
        message = re.sub(rf"{where}{name}(?![\w/.-]\w|=)", f"--{name}", message)
    return message


def run(prog: str, command: Callable[[], None], options: Iterable[str] = ()) -> int:
    """Run `command`; a `BertSnliError` becomes one line on stderr, which begins with `prog`, and exit code 2.

    `options` are the names of the command's options, see `add_dashes`.
    """
    try:
        command()
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF_IMPORT:
            raise
        extra = EXTRA_OF_IMPORT[error.name]
        sys.stderr.write(f"{prog}: error: {error.name} is not installed; pip install 'bert-snli[{extra}]'\n")
        return USER_ERROR
    except BertSnliError as error:
        sys.stderr.write(f"{prog}: error: {_one_line(add_dashes(str(error), options))}\n")
        return USER_ERROR
    except Stopped as stopped:
        if str(stopped):
            sys.stderr.write(f"{prog}: {_one_line(add_dashes(str(stopped), options))}\n")
        return BY_SIGNAL + stopped.signum
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return 0


def run_and_leave(prog: str, command: Callable[[], None], options: Iterable[str] = ()) -> int:
    """Call `run`, then leave the process group, if there is one.

    A process that ends while gloo's threads are running is aborted (SIGABRT) in one case of six. A process that fails
    must end before the others report a lost connection, so that the launcher reports its exit code.
    """
    try:
        code = run(prog, command, options)
    except Exception as error:
        if not _is_distributed():
            raise
        if is_lost_connection(error):
            reason = _one_line(str(error).partition("\n")[0])
            sys.stderr.write(f"{prog}: lost the connection to another process ({reason}); see its messages\n")
        else:
            traceback.print_exc()
        code = UNEXPECTED
    if _is_distributed():
        if code:
            sys.stderr.flush()
            os._exit(code)
        sys.modules["torch.distributed"].destroy_process_group()
    return code


def is_lost_connection(error: Exception) -> bool:
    """Return whether `error` says that another process of the group has gone.

    torch.distributed has classes for errors of NCCL, the network and the store. gloo raises plain RuntimeErrors.
    """
    distributed = sys.modules.get("torch.distributed")  # where it is not imported, no process group can be lost
    if isinstance(error, getattr(distributed, "DistError", ())):
        return not NCCL_LOCAL_FAULT.search(str(error))
    return isinstance(error, RuntimeError) and bool(GLOO_LOST_CONNECTION.search(str(error)))


def _is_distributed() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


class ConsoleHandler(logging.Handler):
    """Prints messages of the packages to stderr, next to the results on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"bert-snli: {_one_line(record.getMessage())}\n")


def configure_logging() -> None:
    """Print the messages of `bert_snli` and `conversion` from level INFO. Python programs see warnings only."""
    for name in ("bert_snli", "conversion"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [ConsoleHandler()]


def say_loading() -> None:
    """Say that the libraries are being imported, which takes seconds, if PyTorch is not imported yet."""
    if "torch" not in sys.modules:
        logger.info("loading ...")


def _one_line(message: str) -> str:
    """Escape control characters, because names from files may contain line ends and terminal commands."""
    printable = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in message[:LONGEST_MESSAGE]
    )
    return printable + "..." * (len(message) > LONGEST_MESSAGE)


def quiet_libraries() -> None:
    """Hide the libraries' messages, and their progress bars if stderr is not a terminal."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when it is imported, if ever: conversion does not
        if datasets := sys.modules.get("datasets"):
            datasets.disable_progress_bars()
