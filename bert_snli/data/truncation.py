"""How many tokens of each side stay: the rule of `modeling/pair_truncation.py`, whose errors here name options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bert_snli.errors import BertSnliError
from bert_snli.modeling import pair_truncation


@contextmanager
def named_as_options() -> Iterator[None]:
    """A `ValueError` of the rule begins with the name of an option; a user typed it with dashes.

    Raises:
        BertSnliError: in the place of a `ValueError`.
    """
    try:
        yield
    except ValueError as error:
        raise BertSnliError(f"--{error}") from error


def truncated_lengths(
    premise: np.ndarray, hypothesis: np.ndarray, budget: int, truncation: str = "longest"
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of each side stay when every pair must fit `budget`.

    Raises:
        BertSnliError: a pair cannot be made to fit in this way.
    """
    with named_as_options():
        return pair_truncation.truncated_lengths(premise, hypothesis, budget, truncation)
