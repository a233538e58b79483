"""The `bert-snli` command, one file a command: its help, its options (`add_arguments`) and what it runs (`run`).

These modules print results and turn errors into exit codes. They import the large libraries when a command runs, so
that `--help` and unknown options are answered in 0.1 s.
"""

from bert_snli.cli.main import COMMANDS, TRAINING, entry_point, main

__all__ = ["COMMANDS", "TRAINING", "entry_point", "main"]
