"""The console interface of all commands: help, one-line errors, messages on stderr, and exit codes."""

import argparse
import difflib
import functools
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from bert_snli.errors import BertSnliError, Stopped

UNEXPECTED_ERROR, USER_ERROR = 1, 2
SIGNAL_EXIT_BASE = 128  # plus the signal number, as in a shell
INTERRUPTED, BROKEN_PIPE = SIGNAL_EXIT_BASE + 2, SIGNAL_EXIT_BASE + 13
MAX_MESSAGE_LENGTH = 1000
OPTION = re.compile(r"^--\w[\w-]*(?==|$)")
# gloo reports a lost connection as a plain RuntimeError with one of these texts.
GLOO_LOST_CONNECTION = re.compile("Connection (closed|reset) by peer|Broken pipe")
# NCCL errors that begin in this process. torch.distributed raises them as the same class as a lost connection.
NCCL_LOCAL_FAULT = re.compile("ncclUnhandledCudaError|ncclInternalError|ncclInvalidArgument|ncclInvalidUsage")
# The name under which a package is imported, and the extra in pyproject.toml that installs it.
EXTRA_OF_IMPORT = {"onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "gradio": "serve"}

logger = logging.getLogger(__name__)


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs but not indented lines, and adds `(required)` or the default to the help of each option."""

    def add_usage(self, usage, actions, groups, prefix=None) -> None:
        """Show the required arguments, and `[options]` for all others."""
        if usage is None:
            required = [action for action in actions if action.required]
            names = [action.metavar or self._get_default_metavar_for_optional(action) for action in required]
            words = [" ".join([*action.option_strings, name]) for action, name in zip(required, names, strict=True)]
            usage = " ".join(["%(prog)s", *words, *["[options]"] * (len(required) < len(actions))])
        super().add_usage(usage, actions, groups, prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip().split("\n\n")
        wrapped = ([block] if "\n  " in block else self._split_lines(block, width - len(indent)) for block in blocks)
        return textwrap.indent("\n\n".join("\n".join(lines) for lines in wrapped), indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings and action.required:
            return f"{action.help} (required)"
        if action.nargs == 0 or action.default in (None, "", [], argparse.SUPPRESS):
            return action.help
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        return f"{action.help} (default: {default})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """Return N for an integer, X for a number, and otherwise the last word of the name: DIR for --output_dir."""
        last_word = action.dest.rpartition("_")[2].upper()
        return "N" if action.type is int else "X" if action.type is float else last_word


class OneLineErrorParser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports a wrong option in one line, without the usage.

    `--learning-rate` is accepted for `--learning_rate`. `remedies` maps options of other programs to advice for the
    user. `other_options` are parsed by the caller; here they only serve to suggest names for misspelled options.
    """

    remedies: Mapping[str, str] = {
        "model_name_or_path": "give the model without an option name",
        "dataset_name": "use --dataset_name_or_path",
    }
    other_options: Sequence[str] = ()

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", functools.partial(HelpFormatter, max_help_position=30))
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Replace dashes in option names by underscores, and parse the arguments."""
        args = sys.argv[1:] if args is None else args
        words = [OPTION.sub(lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in args]
        return super().parse_known_args(words, namespace)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Report the first unknown argument and exit."""
        word = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
        if not word.startswith("-"):
            self.error(f"{word}: unexpected argument")
        self.exit(USER_ERROR, f"{self.prog}: error: {word}: unknown option; {self.remedy(word.lstrip('-'))}\n")

    def remedy(self, name: str) -> str:
        """Return advice for the unknown option `name`."""
        if name in self.remedies:
            return self.remedies[name]
        names = [*(action.dest for action in self._actions if action.option_strings), *self.other_options]
        close = difflib.get_close_matches(name, names, n=1)
        return f"did you mean --{close[0]}?" if close else f"see {self.prog} --help"

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_dashes(message: str, options: Iterable[str]) -> str:
    """Add dashes to the option names in a message: `learning_rate` becomes `--learning_rate`.

    A name with an underscore is replaced everywhere except in a path. A name without an underscore may be a normal
    word, so it is replaced only at the beginning and after `or set`.
    """
    for name in sorted(options, key=len, reverse=True):
        where = r"(?<![\w/.-])" if "_" in name else "(?:^|(?<=or set ))"
        message = re.sub(rf"{where}{name}(?![\w/.-]\w|=)", f"--{name}", message)
    return message


def assignment(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE, for `type=`."""
    name, _, value = text.rpartition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=VALUE")
    return name, value


def add_token(parser: Any) -> None:
    """Add `--token` to a parser or to a group of its options."""
    parser.add_argument("--token", help="Token for private repositories on the Hub. (default: HF_TOKEN or the login)")


@contextmanager
def use_token(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yield the command line without `--token VALUE`, and use the token for the Hub until the block ends.

    The token is also removed from `sys.argv`, because experiment trackers store it. Child processes get the variable.
    """
    words, token, before = list(argv), None, os.environ.get("HF_TOKEN")
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--token" and (equals or number + 1 < len(argv)):
            token = value if equals else argv[number + 1]
            del words[number : number + (1 if equals else 2)]
            break
    if token is not None:
        os.environ["HF_TOKEN"] = token
        sys.argv[1:] = words if sys.argv[1:] == list(argv) else sys.argv[1:]
    try:
        yield words
    finally:
        if token is not None:
            os.environ.pop("HF_TOKEN")
            os.environ |= {"HF_TOKEN": before} if before is not None else {}


def run(prog: str, command: Callable[[], None], options: Iterable[str] = ()) -> int:
    """Run `command` and return its exit code. A `BertSnliError` is printed as one line, and the exit code is 2.

    Messages begin with `prog`. `options` are the names of the command's options, see `add_dashes`.
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
        return SIGNAL_EXIT_BASE + stopped.signum
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return 0


def run_and_leave(prog: str, command: Callable[[], None], options: Iterable[str] = ()) -> int:
    """Call `run`, then leave the process group, if there is one.

    A process that ends while gloo's threads are running is aborted (SIGABRT) in about one of six cases. A process that
    fails must end before the others report a lost connection, so that the launcher reports its exit code.
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
        code = UNEXPECTED_ERROR
    if _is_distributed():
        if code:
            sys.stderr.flush()
            os._exit(code)
        sys.modules["torch.distributed"].destroy_process_group()
    return code


def is_lost_connection(error: Exception) -> bool:
    """Return whether `error` means that the connection to another process is lost.

    torch.distributed has classes for errors of NCCL, the network and the store. gloo raises plain RuntimeErrors.
    """
    distributed = sys.modules.get("torch.distributed")  # None: not imported, so there are no other processes
    if isinstance(error, getattr(distributed, "DistError", ())):
        return not NCCL_LOCAL_FAULT.search(str(error))
    return isinstance(error, RuntimeError) and bool(GLOO_LOST_CONNECTION.search(str(error)))


def _is_distributed() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


class ConsoleHandler(logging.Handler):
    """Prints log messages to stderr, because stdout is for results."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"bert-snli: {_one_line(record.getMessage())}\n")


def configure_logging() -> None:
    """Print the messages of `bert_snli` and `conversion` from level INFO. Without this call, only warnings appear."""
    for name in ("bert_snli", "conversion"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [ConsoleHandler()]


def log_loading() -> None:
    """Log `loading ...` if PyTorch is not imported yet, because the import takes seconds."""
    if "torch" not in sys.modules:
        logger.info("loading ...")


def _one_line(message: str) -> str:
    """Escape control characters: names from files may contain line ends and terminal commands."""
    printable = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in message[:MAX_MESSAGE_LENGTH]
    )
    return printable + "..." * (len(message) > MAX_MESSAGE_LENGTH)


def quiet_libraries() -> None:
    """Hide the libraries' messages, and their progress bars if stderr is not a terminal."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # `datasets` reads it at import time
        if datasets := sys.modules.get("datasets"):
            datasets.disable_progress_bars()
