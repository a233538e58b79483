"""Truncation of pairs of token sequences."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from bert_snli.modeling.pair_truncation import truncated_lengths


def pop_from_longer_side(premise: int, hypothesis: int, budget: int) -> tuple[int, int]:
    """Truncate as d2l does."""
    while premise + hypothesis > budget:
        if premise > hypothesis:
            premise -= 1
        else:
            hypothesis -= 1
    return premise, hypothesis


def preserve_ratio(premise: int, hypothesis: int, budget: int) -> tuple[int, int]:
    """Try every premise length and choose the one nearest to the exact share; of two equally near, the larger."""
    if premise + hypothesis <= budget:
        return premise, hypothesis
    share = Fraction(budget * premise, premise + hypothesis)
    nearest = min(range(budget + 1), key=lambda length: (abs(length - share), -length))
    truncated = max(min(nearest, budget - min(hypothesis, 1)), min(premise, 1))
    return truncated, budget - truncated


@pytest.mark.parametrize(("truncation", "reference"), [("longest", pop_from_longer_side), ("ratio", preserve_ratio)])
def test_truncation_equals_the_reference_for_all_short_pairs(truncation: str, reference):
    lengths = [(premise, hypothesis) for premise in range(25) for hypothesis in range(25)]
    for budget in range(2, 20):
        premise, hypothesis = truncated_lengths(*np.array(lengths).T, budget, truncation)
        assert list(zip(premise, hypothesis, strict=True)) == [reference(p, h, budget) for p, h in lengths], budget


@pytest.mark.parametrize(
    ("truncation", "lengths", "expected"),
    [
        ("only_first", (9, 4), (3, 4)),
        ("only_first", (9, 6), (1, 6)),
        ("only_first", (9, 7), "truncation only_first: a hypothesis of 7 tokens"),
        ("only_second", (4, 9), (4, 3)),
        ("only_second", (8, 9), "truncation only_second: a premise of 8 tokens"),
        ("do_not_truncate", (4, 3), (4, 3)),
        ("do_not_truncate", (4, 4), "truncation do_not_truncate: a pair of 8 tokens"),
    ],
)
def test_truncation_of_one_side_or_none_fits_the_budget_or_is_refused(
    truncation: str, lengths: tuple[int, int], expected
):
    arrays = [np.array([2, side]) for side in lengths]  # the first pair fits and stays unchanged
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"{expected} does not fit; increase max_length"):
            truncated_lengths(*arrays, 7, truncation)
    else:
        premise, hypothesis = truncated_lengths(*arrays, 7, truncation)
        assert (premise[0], hypothesis[0]) == (2, 2) and (premise[1], hypothesis[1]) == expected
