"""`bert_snli.finetune` whose evaluation takes minutes."""

from __future__ import annotations

import sys
import time

from bert_snli import finetune
from bert_snli.finetune import PROG, RECIPE, check_recipe, parse_recipe  # noqa: F401 - what the launcher asks for


def main(argv=None) -> int:
    finetune.nli_metrics = lambda *_: time.sleep(300)
    return finetune.main(argv)


if __name__ == "__main__":
    sys.exit(main())
