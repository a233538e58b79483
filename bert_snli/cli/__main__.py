"""`python -m bert_snli.cli` is `bert-snli`."""

import sys

from bert_snli.cli import entry_point

sys.exit(entry_point())
