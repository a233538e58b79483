"""`bert_snli.finetune` with an evaluation of 5 minutes; each process first creates a file in the folder EVALUATING."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bert_snli import finetune
from bert_snli.finetune import COMMAND, check_arguments  # noqa: F401 - the launcher reads them


def evaluate_slowly(*_) -> None:
    (Path(os.environ["EVALUATING"]) / str(os.getpid())).touch()
    time.sleep(300)


def main(argv=None) -> int:
    finetune.nli_metrics = evaluate_slowly
    return finetune.main(argv)


if __name__ == "__main__":
    sys.exit(main())
