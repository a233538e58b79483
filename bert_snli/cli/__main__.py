"""Run `bert-snli` as `python -m bert_snli.cli`."""

import sys

from bert_snli.cli import entry_point

sys.exit(entry_point())
