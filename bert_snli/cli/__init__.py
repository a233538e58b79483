"""The `bert-snli` program. The module of a command has its help, its options (`add_arguments`) and its code (`run`).

These modules import large libraries only when a command runs, so that `--help` and errors about options take 0.1 s.
"""

from bert_snli.cli.main import COMMANDS, TRAINING, entry_point, main

__all__ = ["COMMANDS", "TRAINING", "entry_point", "main"]
