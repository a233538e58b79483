"""Truncation of pairs that are too long, the same in training and in the pipeline.

A truncation function takes the lengths of the premises and hypotheses that do not fit, and the number of tokens that
do. It returns the new lengths of the premises; the hypotheses get the rest.

This file is copied to the Hub with the weights, so it imports nothing of `bert_snli`. Its errors begin with the name of
the parameter, `max_length` or `truncation`.
"""

from collections.abc import Callable, Sequence

import numpy as np

NUM_SPECIAL_TOKENS = 3  # <cls> premise <sep> hypothesis <sep>
DEFAULT_MAX_LENGTH = 128  # d2l's


def is_text(value: object) -> bool:
    """Whether `value` is a string that UTF-8 can encode. A string with lone surrogates is not."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def longest_pair(max_length: int | None, max_pair_length: int | None, positions: int) -> int:
    """Return the longest pair in tokens: as given, else as in fine-tuning, else as in d2l."""
    if max_length is not None:
        return max_length
    return min(DEFAULT_MAX_LENGTH, positions) if max_pair_length is None else max_pair_length


def pair_budget(max_length: int, positions: int) -> int:
    """Return the number of tokens for both texts in a pair of `max_length`.

    Raises:
        ValueError: `max_length` is more than the model's `positions`, or too small for a token of each text.
    """
    shortest = NUM_SPECIAL_TOKENS + 2
    if not shortest <= max_length <= positions:
        allowed = f"from {shortest} to {positions}, the model's number of positions"
        raise ValueError(f"max_length {max_length}: must be {allowed}")
    return max_length - NUM_SPECIAL_TOKENS


def longest(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """Pop tokens from the longer text, from the hypothesis on a tie, as d2l does.

    So a text that needs no more than its half stays whole, and the premise gets the larger half.
    """
    hypothesis_half = budget // 2
    premise_half = budget - hypothesis_half
    return np.where(hypothesis <= hypothesis_half, budget - hypothesis, np.minimum(premise, premise_half))


def ratio(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """Keep the ratio of the lengths, and at least one token of each text (an exercise of d2l's section 15.7)."""
    total = premise + hypothesis
    rounded = (2 * budget * premise + total) // (2 * total)
    return np.clip(rounded, np.minimum(premise, 1), budget - np.minimum(hypothesis, 1))


def only_first(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """Truncate only the premise; at least one token of it must fit."""
    _check_room(budget - hypothesis, "only_first", "hypothesis", hypothesis)
    return budget - hypothesis


def only_second(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """Truncate only the hypothesis; at least one token of it must fit."""
    _check_room(budget - premise, "only_second", "premise", premise)
    return premise


def do_not_truncate(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """Refuse any pair that does not fit."""
    _check_room(budget - premise - hypothesis + 1, "do_not_truncate", "pair", premise + hypothesis)
    return premise


def _check_room(room: np.ndarray, truncation: str, text: str, lengths: np.ndarray) -> None:
    if (room < 1).any():
        what = f"a {text} of {lengths.max()} tokens does not fit"
        raise ValueError(f"truncation {truncation}: {what}; raise max_length or take truncation longest")


TRUNCATIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    function.__name__: function for function in (longest, ratio, only_first, only_second, do_not_truncate)
}


def check_truncation(truncation: str) -> None:
    """Raise `ValueError` if there is no truncation function of this name."""
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
        premise[long] = TRUNCATIONS[truncation](premise[long], hypothesis[long], budget)
        hypothesis[long] = budget - premise[long]
    return premise, hypothesis
