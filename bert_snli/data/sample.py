"""A small generated corpus in the file layout of SNLI 1.0, so that everything runs without a download.

Every sentence is made by the grammar below; none is taken from SNLI (Bowman et al., 2015) or Flickr30k. What is
borrowed is the *form*: caption-like premises, three hypotheses each, raw sentences beside Penn-Treebank parses,
five annotators for the held-out pairs, and about one pair in a hundred without a gold label (``-``).

**Why the gold labels are right.** A premise is rendered from a *scene*: for each slot (who, how many, clothes,
activity, company, place) a path through a taxonomy, such as *person, child, boy* or *outside, park*; a slot left
unsaid is the empty path. A hypothesis is a few claims, each a path as well. One claim is judged by comparing paths:

* the claim is a prefix of the scene's path: it says the same or less (*making music* for *guitar*): **entailment**;
* the scene's path is a proper prefix of the claim: it says more, or something unsaid: **neutral**;
* the paths part ways: **contradiction**, except where siblings can both hold (a hat and a T-shirt): **neutral**.

A sentence is a contradiction if any claim is, else neutral if any claim is, else entailed; a denied claim ("isn't")
swaps entailment and contradiction. As with SNLI's annotators, both sentences are taken to describe one event with one
subject who does one thing in one place, and numbers are exact.

**Why the hypothesis alone says little.** Claims are proposed without regard to the label, from the same slots, words
and templates, and kept if the judge returns the label that is wanted. So the same hypothesis can follow from,
contradict or be neutral to different premises; and as each premise comes once with each label, the premise alone says
nothing at all. Words have unequal frequencies, as in any language: the frequent ones teach a small model early
that premise and hypothesis must be compared, and the rest follows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")
Value = tuple[str, ...]
"""A path through a slot's taxonomy, the most general step first; () is "not said"."""
Facts = dict[str, Value]
Tree = tuple[Any, ...]
"""(tag, word) for a leaf, (label, child, ...) for a phrase."""

DEFAULT_PAIRS: Mapping[str, int] = MappingProxyType({"train": 15_000, "dev": 600, "test": 600})
MAX_PAIRS = 60_000
"""All splits together; beyond this, new scenes become rare."""
MAX_DRAWS = 10_000
"""Far more than any hypothesis needs; a changed lexicon that makes a label impossible ends here, not in a loop."""
LABELS = ("entailment", "neutral", "contradiction")
NO_GOLD = "-"
UNDECIDED = 0.01
"""Share of pairs without a gold label, the same for each intended label."""
COLUMNS = (
    "gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2 "
    "captionID pairID label1 label2 label3 label4 label5"
).split()

# Slot -> first step of the path -> further steps -> phrases, the frequent first. "|" parts phrases that mean the same,
# "/" the singular from the plural.
COLOURS = ("red", "blue", "green")
LEXICON: dict[str, dict[str, dict[str, str]]] = {
    "count": {"one": {"": "one"}, "many": {"": "some", "two": "two|2", "three": "three|3"}},
    "who": {
        "person": {
            **{"": "person/people", "man": "man/men", "woman": "woman/women"},
            **{"child": "child/children|kid/kids", "child boy": "boy/boys", "child girl": "girl/girls"},
        },
        "animal": {"": "animal/animals", "dog": "dog/dogs", "cat": "cat/cats"},
    },
    "clothes": {
        "hat": {"": "in a hat/in hats"} | {c: f"in a {c} hat/in {c} hats" for c in COLOURS},
        "T-shirt": {"": "in a T-shirt/in T-shirts"} | {c: f"in a {c} T-shirt/in {c} T-shirts" for c in COLOURS},
    },
    "activity": {
        "music": {"": "making music", "guitar": "playing the guitar", "song": "singing `` Hello ''"},
        "meal": {"": "eating|having a meal", "pizza": "eating pizza", "noodles": "eating noodles"},
        "game": {"": "playing a game", "chess": "playing chess", "cards": "playing cards"},
        "sport": {"": "exercising", "run": "running", "jump": "jumping"},
        "sleep": {"": "sleeping|taking a nap"},
    },
    "company": {
        "alone": {"": "alone"},
        "company": {"": "with someone", "friend": "with a friend", "baby": "with a neighbor 's baby"},
    },
    "place": {
        "outside": {"": "outside|outdoors", "park": "in a park", "beach": "on a beach", "street": "on a street"},
        "inside": {"": "inside|indoors", "kitchen": "in a kitchen", "office": "in an office"},
    },
}
TAXONOMY: dict[str, dict[Value, str]] = {
    slot: {(top, *path.split()): text for top, paths in tops.items() for path, text in paths.items()}
    for slot, tops in LEXICON.items()
}
LEAVES = {
    slot: [path for path in paths if not any(path == other[: len(path)] for other in paths if other != path)]
    for slot, paths in TAXONOMY.items()
}
PREDICATES = ("activity", "company", "place")
"""Slots said after the verb, in this order; the others belong to the subject."""
COMPATIBLE_AT = {"clothes": 0, "company": 1}
"""The depth at which siblings do not exclude each other: one can wear a hat and a T-shirt."""
ANIMAL_ACTIVITIES = ("sport", "sleep")

TAGS = {
    **dict.fromkeys("a an the some".split(), "DT"),
    **dict.fromkeys("one two three 2 3".split(), "CD"),
    **dict.fromkeys("in on with".split(), "IN"),
    **dict.fromkeys("outside outdoors inside indoors alone".split(), "RB"),
    **dict.fromkeys(COLOURS, "JJ"),
    **dict.fromkeys("men people women children kids boys girls animals dogs cats".split(), "NNS"),
    **dict.fromkeys("cards noodles hats T-shirts".split(), "NNS"),
    **{"Hello": "UH", "'s": "POS", "``": "``", "''": "''"},
}
HEADS = {"IN": "PP", "VBG": "VP", "RB": "ADVP"}
"""Tags that open a phrase of their own, and its label."""


class Dice:
    """Random choices built on ``random.random`` alone, the one method Python keeps reproducible over versions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, bound: int) -> int:
        return int(self._random() * bound)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], size: int) -> list[T]:
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(size)]


def random_value(dice: Dice, slot: str) -> Value:
    """A most specific path or, as `shorten` has it, one above it; the first in the lexicon are the most frequent."""
    leaves = LEAVES[slot]
    return shorten(dice, leaves[min(dice.below(len(leaves)), dice.below(len(leaves)))])


def shorten(dice: Dice, value: Value) -> Value:
    """``value`` itself or something more general."""
    return value[: 1 + dice.below(len(value))] if dice.chance(0.5) else value


def judge_claim(slot: str, scene: Value, claim: Value) -> str:
    """How ``claim`` relates to what the scene says of the same slot."""
    for depth, (told, claimed) in enumerate(zip(scene, claim, strict=False)):
        if told != claimed:
            return "neutral" if COMPATIBLE_AT.get(slot) == depth else "contradiction"
    return "entailment" if len(claim) <= len(scene) else "neutral"


def judge(scene: Facts, claims: Facts, negated: str | None) -> str:
    """The label of a hypothesis; ``negated`` names the slot whose claim is denied."""
    verdicts = {slot: judge_claim(slot, scene.get(slot, ()), claim) for slot, claim in claims.items()}
    if negated is not None:
        swap = {"entailment": "contradiction", "contradiction": "entailment"}
        verdicts[negated] = swap.get(verdicts[negated], "neutral")
    return next(label for label in ("contradiction", "neutral", "entailment") if label in verdicts.values())


def plausible(facts: Facts) -> bool:
    """Animals neither dress nor play the guitar."""
    if facts["who"][0] != "animal":
        return True
    return "clothes" not in facts and ("activity" not in facts or facts["activity"][0] in ANIMAL_ACTIVITIES)


def draw_scene(dice: Dice) -> Facts:
    """A scene of who, how many, and at least one of the further facts, but never all of them."""
    while True:
        who = random_value(dice, "who")
        optional = PREDICATES if who[0] == "animal" else (*PREDICATES, "clothes")
        said = dice.sample(optional, 1 + dice.below(len(optional) - 1))
        scene = {"who": who} | {slot: random_value(dice, slot) for slot in ("count", *said)}
        if plausible(scene):
            return scene


def draw_claims(dice: Dice, scene: Facts, label: str) -> tuple[Facts, str | None, bool]:
    """Claims that relate to ``scene`` as ``label`` says: (claims, the negated slot, whether the number is claimed).

    The subject is always named. Besides it one or two slots are in focus: half of the time their claim is what the
    scene says, else anything. How many is fixed before the label can have a say.
    """
    size = 2 if dice.chance(0.08) else 1
    for _ in range(MAX_DRAWS):
        focus = dice.sample(list(TAXONOMY), size)
        claims = {"who": shorten(dice, scene["who"]), "count": scene["count"][:1]}
        for slot in focus:
            truth = scene.get(slot)
            claims[slot] = shorten(dice, truth) if truth and dice.chance(0.5) else random_value(dice, slot)
        if "count" in focus and "company" in scene:
            continue  # a man with a friend: one person, or two?
        deniable = size == 1 and focus[0] not in ("who", "count")
        negated = focus[0] if deniable and dice.chance(0.06) else None
        if plausible(claims) and plausible(claims | {"who": scene["who"]}) and judge(scene, claims, negated) == label:
            return claims, negated, "count" in focus
    raise RuntimeError(f"the lexicon offers no {label} for {scene}; {MAX_DRAWS} draws tried")


def leaf(word: str) -> Tree:
    default = "VBG" if word.endswith("ing") else "NN"
    return (TAGS.get(word, default), word)


def phrase(leaves: Sequence[Tree]) -> Tree:
    """Words to a tree: a head takes the rest as its complement, a noun phrase ends where the next head begins."""
    if leaves[0][0] in HEADS:
        rest = [phrase(leaves[1:])] if leaves[1:] else []
        return (HEADS[leaves[0][0]], leaves[0], *rest)
    end = next((i for i, item in enumerate(leaves) if item[0] in HEADS), len(leaves))
    noun = ("NP", *leaves[:end])
    tags = [item[0] for item in leaves[:end]]
    if "POS" in tags:
        owner = tags.index("POS") + 1
        noun = ("NP", ("NP", *leaves[:owner]), *leaves[owner:end])
    return ("NP", noun, phrase(leaves[end:])) if leaves[end:] else noun


def wording(dice: Dice, slot: str, facts: Facts) -> list[Tree]:
    forms = dice.pick(TAXONOMY[slot][facts[slot]].split("|")).split("/")
    plural = facts["count"][0] == "many"
    return [leaf(word) for word in forms[-1 if plural else 0].split()]


def subject(dice: Dice, facts: Facts, exact: bool, there: bool) -> Tree:
    """Number and noun. ``exact`` says the number in a word of its own, else an article may do."""
    article = "the" if dice.chance(0.4) and not there else "a" if facts["count"] == ("one",) else "some"
    number = wording(dice, "count", facts) if exact or len(facts["count"]) > 1 else [leaf(article)]
    noun = wording(dice, "who", facts)
    if article == "a" and noun[0][1][0] in "aeiou" and not exact:
        number = [leaf("an")]
    return phrase([*number, *noun])


def sentence(dice: Dice, facts: Facts, *, exact: bool = False, negated: bool = False) -> Tree:
    """One of the templates *NP is ...* and *There is NP ...*, at times with the place in front."""
    said = [slot for slot in PREDICATES if slot in facts]
    complements = [phrase(wording(dice, slot, facts)) for slot in said]
    front: list[Tree] = []
    if len(said) > 1 and said[-1] == "place" and dice.chance(0.2):
        front = [complements.pop(), (",", ",")]
    clothes = [phrase(wording(dice, "clothes", facts))] if "clothes" in facts else []
    there = not negated and (not (said or clothes) or dice.chance(0.15))
    if not said and not there:  # the verb needs something to say
        complements = [("VP", leaf("wearing"), clothes.pop()[2])]
    noun = nest("NP", [subject(dice, facts, exact, there), *clothes])
    verb = ("VBP", "are") if facts["count"][0] == "many" else ("VBZ", "'s" if there and dice.chance(0.5) else "is")
    denial = [("RB", "n't" if dice.chance(0.7) else "not")] if negated else []
    if there:
        core = [("NP", ("EX", "there")), ("VP", verb, nest("NP", [noun, *complements]))]
    else:
        core = [noun, ("VP", verb, *denial, nest("VP", complements))]
    stop = [(".", ".")] if dice.chance(0.9) else []
    return capitalised(("S", *front, *core, *stop))


def nest(label: str, parts: Sequence[Tree]) -> Tree:
    """Attach modifiers one by one: ((a b) c) d."""
    return reduce(lambda tree, part: (label, tree, part), parts)


def capitalised(tree: Tree) -> Tree:
    if isinstance(tree[1], str):
        return (tree[0], tree[1][0].upper() + tree[1][1:])
    return (tree[0], capitalised(tree[1]), *tree[2:])


def labelled(tree: Tree) -> str:
    """``(NP (DT a) (NN man))``"""
    children = [tree[1]] if isinstance(tree[1], str) else map(labelled, tree[1:])
    return f"({tree[0]} {' '.join(children)})"


def binary(tree: Tree) -> str:
    """``( a man )``: no labels, a single child stands for its parent, further children nest to the right."""
    if isinstance(tree[1], str):
        return tree[1]
    text = binary(tree[-1])
    for child in reversed(tree[1:-1]):
        text = f"( {binary(child)} {text} )"
    return text


def raw(tree: Tree) -> str:
    """The sentence as one would type it: contractions and punctuation joined, plain quotation marks."""
    text = " ".join(word for word in binary(tree).split() if word not in ("(", ")"))
    for tokens, typed in ((" n't", "n't"), (" 's", "'s"), ("`` ", '"'), (" ''", '"'), (" ,", ","), (" .", ".")):
        text = text.replace(tokens, typed)
    return text


def annotate(dice: Dice, label: str, tie: bool, several: bool) -> list[str]:
    """The author's label and, where ``several``, four more: at least three agree, or with a ``tie`` no three do."""
    first, second = dice.sample([other for other in LABELS if other != label], 2)
    if tie:
        return [label, *dice.sample([label, first, first, second], 4)]
    if not several:
        return [label]
    agreeing = dice.pick((4, 4, 4, 3, 2))
    return [label, *dice.sample([label] * agreeing + [first] * (4 - agreeing), 4)]


def make_row(premise: Tree, hypothesis: Tree, caption: str, label: str, votes: list[str]) -> dict[str, Any]:
    decided = max(map(votes.count, votes)) * 2 > len(votes)
    row: dict[str, Any] = {"annotator_labels": votes, "captionID": caption}
    row |= {"gold_label": label if decided else NO_GOLD, "pairID": f"{caption}r1{label[0]}"}
    for name, tree in (("sentence1", premise), ("sentence2", hypothesis)):
        row |= {name: raw(tree), f"{name}_binary_parse": binary(tree), f"{name}_parse": labelled(("ROOT", tree))}
    return row


def make_split(dice: Dice, name: str, pairs: int, seen: set[Any]) -> list[dict[str, Any]]:
    """``pairs`` rows, three a premise; scenes in ``seen`` (those of other splits too) are not used again."""
    premises = pairs // 3
    ties = max(1, round(premises * UNDECIDED))
    undecided = {(number, label) for label in LABELS for number in dice.sample(range(premises), ties)}
    rows = []
    for number in range(premises):
        scene = draw_scene(dice)
        while (key := tuple(sorted(scene.items()))) in seen:
            scene = draw_scene(dice)
        seen.add(key)
        premise = sentence(dice, scene)
        for label in dice.sample(LABELS, 3):
            claims, negated, exact = draw_claims(dice, scene, label)
            hypothesis = sentence(dice, claims, exact=exact, negated=negated is not None)
            votes = annotate(dice, label, (number, label) in undecided, name != "train" or dice.chance(0.1))
            rows.append(make_row(premise, hypothesis, f"{name}{number:06d}.jpg#0", label, votes))
    return rows


def write_sample(folder: Path, *, num_pairs: Mapping[str, int] = DEFAULT_PAIRS, seed: int = 0) -> Path:
    """Write ``snli_1.0_{split}.jsonl`` and ``.txt`` for every split of ``num_pairs`` into ``folder`` and return it.

    The bytes depend on ``num_pairs`` and ``seed`` alone. Sizes count all rows, those without gold label too.

    Raises:
        ValueError: a size is not a positive multiple of three (a premise has three hypotheses), or all are too many.
    """
    if any(pairs < 3 or pairs % 3 for pairs in num_pairs.values()) or sum(num_pairs.values()) > MAX_PAIRS:
        raise ValueError(f"num_pairs is {dict(num_pairs)}: use multiples of three, at most {MAX_PAIRS} in all")
    dice = Dice(seed)
    seen: set[Any] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in num_pairs.items():
        rows = make_split(dice, name, pairs, seen)
        votes = [{f"label{i}": vote for i, vote in enumerate(row["annotator_labels"], start=1)} for row in rows]
        cells = [[(row | vote).get(column, "") for column in COLUMNS] for row, vote in zip(rows, votes, strict=True)]
        jsonl = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        text = "".join("\t".join(line) + "\n" for line in [COLUMNS, *cells])
        (folder / f"snli_1.0_{name}.jsonl").write_bytes(jsonl.encode())
        (folder / f"snli_1.0_{name}.txt").write_bytes(text.encode())
    return folder
