"""`bert_snli.finetune` with a process that raises an unexpected error in its first step."""

from __future__ import annotations

import os
import sys

from bert_snli import finetune
from bert_snli.finetune import COMMAND, check_arguments  # noqa: F401 - the launcher reads them
from bert_snli.training.objectives import ClassificationObjective


class Failing(ClassificationObjective):
    def __call__(self, model, batch, rows):
        if os.environ.get("RANK") == "1":
            raise RuntimeError("an error of the test")
        return super().__call__(model, batch, rows)


def main(argv=None) -> int:
    finetune.ClassificationObjective = Failing
    return finetune.main(argv)


if __name__ == "__main__":
    sys.exit(main())
