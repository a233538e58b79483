"""`python -m bert_snli.cli` is `bert-snli`."""

import sys

from bert_snli.cli import main

sys.exit(main())
