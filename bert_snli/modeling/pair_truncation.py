"""Which pairs of texts are too long, and how they are cut: the one place that knows, in training and in a pipeline.

A way of cutting is a function over arrays: it takes the lengths of premise and hypothesis in pairs that do not fit, and
the number of tokens that do, and says how many tokens of the premise stay; the hypothesis gets the rest.

This file travels to the hub beside the weights: it imports nothing of `bert_snli`. Its errors begin with the name of
what is wrong, `max_length` or `truncation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

NUM_SPECIAL_TOKENS = 3  # <cls> premise <sep> hypothesis <sep>
DEFAULT_MAX_LENGTH = 128  # the book's


def is_text(value: object) -> bool:
    """Whether `value` is a string without halves of characters, which come of bytes that are not UTF-8."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))


def longest_pair(max_length: int | None, of_the_model: int | None, positions: int) -> int:
    """How many tokens a pair may have: as given, else as the model was fine-tuned, else as in the book."""
    known = (max_length, of_the_model, min(DEFAULT_MAX_LENGTH, positions))
    return next(length for length in known if length is not None)


def pair_budget(max_length: int, positions: int) -> int:
    """How many tokens of both texts there is room for in `max_length`.

    Raises:
        ValueError: more than the model's `positions`, or no room for a token of each side.
    """
    if not NUM_SPECIAL_TOKENS + 2 <= max_length <= positions:
        raise ValueError(
            f"max_length {max_length}: must be from {NUM_SPECIAL_TOKENS + 2} to {positions}, "
            "the model's number of positions"
        )
    return max_length - NUM_SPECIAL_TOKENS


def longest(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """The book's way: a token is popped from the longer side, from the hypothesis on a tie, until the pair fits.

    So a side that needs no more than its half stays whole, and otherwise the premise gets the larger half.
    """
    half_of_hypothesis = budget // 2
    half_of_premise = budget - half_of_hypothesis
    premise_stays = np.where(premise <= half_of_premise, premise, half_of_premise)
    return np.where(hypothesis <= half_of_hypothesis, budget - hypothesis, premise_stays)


def ratio(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """The sides keep the proportion of their lengths, and at least one token each (an exercise of section 15.7)."""
    whole = premise + hypothesis
    rounded = (2 * budget * premise + whole) // (2 * whole)
    return np.clip(rounded, np.minimum(premise, 1), budget - np.minimum(hypothesis, 1))


def only_first(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """The premise alone is cut; a hypothesis that leaves no room for a token of it is an error."""
    _check_room(budget - hypothesis, "only_first", "hypothesis", hypothesis)
    return budget - hypothesis


def only_second(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """The hypothesis alone is cut; a premise that leaves no room for a token of it is an error."""
    _check_room(budget - premise, "only_second", "premise", premise)
    return premise


def do_not_truncate(premise: np.ndarray, hypothesis: np.ndarray, budget: int) -> np.ndarray:
    """Any pair that does not fit is an error."""
    _check_room(budget - premise - hypothesis + 1, "do_not_truncate", "pair", premise + hypothesis)
    return premise


def _check_room(room: np.ndarray, way: str, side: str, lengths: np.ndarray) -> None:
    if (room < 1).any():
        raise ValueError(
            f"truncation {way}: a {side} of {lengths.max()} tokens does not fit; raise max_length or take "
            "truncation longest"
        )


TRUNCATIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    function.__name__: function for function in (longest, ratio, only_first, only_second, do_not_truncate)
}


def check_truncation(truncation: str) -> None:
    """See that there is such a way of cutting.

    Raises:
        ValueError: there is none.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation {truncation}: choose one of {', '.join(TRUNCATIONS)}")


def truncated_lengths(
    premise: Sequence[int] | np.ndarray, hypothesis: Sequence[int] | np.ndarray, budget: int, truncation: str
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of each side stay when every pair must fit `budget`.

    Raises:
        ValueError: a pair cannot be made to fit in this way.
    """
    premise, hypothesis = np.array(premise), np.array(hypothesis)
    long = premise + hypothesis > budget
    if long.any():
        premise[long] = TRUNCATIONS[truncation](premise[long], hypothesis[long], budget)
        hypothesis[long] = budget - premise[long]
    return premise, hypothesis
