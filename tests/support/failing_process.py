"""`bert_snli.finetune` of which one process fails for no reason of the user's."""

from __future__ import annotations

import os
import sys

from bert_snli import finetune
from bert_snli.finetune import PROG, RECIPE, check_recipe, parse_recipe  # noqa: F401 - what the launcher asks for
from bert_snli.training.objectives import Classification


class Failing(Classification):
    def __call__(self, model, batch, rows):
        if os.environ.get("RANK") == "1":
            raise RuntimeError("a planted fault")
        return super().__call__(model, batch, rows)


def main(argv=None) -> int:
    finetune.Classification = Failing
    return finetune.main(argv)


if __name__ == "__main__":
    sys.exit(main())
