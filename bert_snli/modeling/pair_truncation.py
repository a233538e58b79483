"""Truncation of pairs that are too long, the same in training and in the pipeline.

Its errors begin with the name of the parameter, `max_length` or `truncation`.
"""

from collections.abc import Sequence

import numpy as np

TRUNCATIONS = ("longest", "ratio", "only_first", "only_second", "do_not_truncate")
NUM_SPECIAL_TOKENS = 3  # <cls> premise <sep> hypothesis <sep>
DEFAULT_MAX_LENGTH = 128  # d2l's


def is_text(value: object) -> bool:
    """Return whether `value` is a string that UTF-8 can encode (without lone surrogates)."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def resolve_max_length(max_length: int | None, max_pair_length: int | None, positions: int) -> int:
    """Return the maximum length of a pair: the given one, else that of fine-tuning, else that of d2l."""
    if max_length is not None:
        return max_length
    return min(DEFAULT_MAX_LENGTH, positions) if max_pair_length is None else max_pair_length


def pair_budget(max_length: int, positions: int) -> int:
    """Return the number of tokens that both texts together may have. Each text must have at least one token."""
    shortest = NUM_SPECIAL_TOKENS + 2
    if not shortest <= max_length <= positions:
        allowed = f"from {shortest} to {positions}, the model's number of positions"
        raise ValueError(f"max_length {max_length}: not allowed; give a number {allowed}")
    return max_length - NUM_SPECIAL_TOKENS


def check_truncation(truncation: str) -> None:
    """Raise `ValueError` if `truncation` is none of `TRUNCATIONS`."""
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation {truncation}: choose one of {', '.join(TRUNCATIONS)}")


def truncated_lengths(
    premise: Sequence[int] | np.ndarray, hypothesis: Sequence[int] | np.ndarray, budget: int, truncation: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of premises and hypotheses after truncation to `budget` tokens for both.

    Raises:
        ValueError: a pair cannot be truncated in this way.
    """
    premise, hypothesis = np.array(premise), np.array(hypothesis)
    long = premise + hypothesis > budget
    if long.any():
        premise[long] = _truncate_premises(premise[long], hypothesis[long], budget, truncation)
        hypothesis[long] = budget - premise[long]
    return premise, hypothesis


def _truncate_premises(premise: np.ndarray, hypothesis: np.ndarray, budget: int, truncation: str) -> np.ndarray:
    """Return the new lengths of premises in pairs that are too long. The hypotheses get the rest of the budget."""
    if truncation == "longest":
        # d2l removes tokens from the longer text, or from the hypothesis if both are equally long. So a text that fits
        # into half of the budget stays whole, and the premise gets the larger half.
        half = budget // 2
        return np.where(hypothesis <= half, budget - hypothesis, np.minimum(premise, budget - half))
    if truncation == "ratio":
        # Keeps the ratio of the lengths, and at least one token of each text (an exercise of d2l's section 15.7).
        total = premise + hypothesis
        rounded = (2 * budget * premise + total) // (2 * total)
        return np.clip(rounded, np.minimum(premise, 1), budget - np.minimum(hypothesis, 1))
    name, untruncated = {
        "only_first": ("hypothesis", hypothesis),
        "only_second": ("premise", premise),
        "do_not_truncate": ("pair", premise + hypothesis),
    }[truncation]
    if (untruncated >= budget).any():
        problem = f"a {name} of {untruncated.max()} tokens does not fit"
        raise ValueError(f"truncation {truncation}: {problem}; increase max_length or use truncation longest")
    return budget - hypothesis if truncation == "only_first" else premise
