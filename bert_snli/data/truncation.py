"""How many tokens of the premise stay when a pair is too long: one function for each way, over arrays of lengths.

Each takes the lengths of premise and hypothesis in pairs that do not fit, and the number of tokens that do; the
hypothesis gets the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bert_snli.errors import BertSnliError


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
        raise BertSnliError(
            f"--truncation {way}: a {side} of {lengths.max()} tokens does not fit; raise --max_length or take "
            "--truncation longest"
        )


TRUNCATIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    function.__name__: function for function in (longest, ratio, only_first, only_second, do_not_truncate)
}


def truncated_lengths(
    premise: np.ndarray, hypothesis: np.ndarray, budget: int, truncation: str = "longest"
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of each side stay when every pair must fit `budget`.

    Raises:
        BertSnliError: a pair cannot be made to fit in this way.
    """
    premise, hypothesis = np.array(premise), np.array(hypothesis)
    long = premise + hypothesis > budget
    if long.any():
        premise[long] = TRUNCATIONS[truncation](premise[long], hypothesis[long], budget)
        hypothesis[long] = budget - premise[long]
    return premise, hypothesis
