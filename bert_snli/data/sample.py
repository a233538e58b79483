"""Generate a small corpus in the file layout of SNLI 1.0, so that everything runs without a download.

A premise describes a *scene*: values for some slots. A value is a path through a taxonomy, such as *outside, park*. A
hypothesis makes *claims*, which are values too; `judge` compares them with the scene. The claims for
all labels are drawn from the same values, and redrawn until the label fits. So a hypothesis does not reveal its label.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Value = tuple[str, ...]  # a path through the taxonomy of a slot, the most general step first; () is unknown
Facts = dict[str, Value]  # the values of slots in a scene or in a hypothesis

DEFAULT_PAIRS: Mapping[str, int] = {"train": 15_000, "dev": 600, "test": 600}
MAX_PAIRS = 45_000  # in all splits; beyond this, new scenes become rare
LABELS = ("entailment", "neutral", "contradiction")
NO_GOLD_LABEL = "-"

# Slot -> path -> tokens, with "|" between phrases that mean the same. The first leaves of a slot are the most frequent.
LEXICON: dict[str, dict[str, str]] = {
    "who": {
        "person": "person",
        "person man": "man",
        "person woman": "woman",
        "person child": "child",
        "person child boy": "boy",
        "person child girl": "girl",
    },
    "size": {"tall": "tall", "short": "short"},
    "clothes": {
        f"{item} {colour}".strip(): f"in a {colour} {item}".replace("  ", " ")
        for item in ("T-shirt", "coat")
        for colour in ("", "red", "blue", "green")
    },
    "activity": {
        "music": "making music",
        "music guitar": "playing the guitar",
        "music song": "singing `` Hello ''",
        "meal": "eating|having a meal",
        "meal pizza": "eating pizza",
        "meal noodles": "eating noodles",
        "game": "playing a game",
        "game chess": "playing chess",
        "game cards": "playing cards",
        "sport": "exercising",
        "sport run": "running",
        "sport jump": "jumping",
        "sleep": "sleeping",
    },
    "company": {"alone": "alone", "company": "with someone", "company friend": "with a friend"},
    "place": {
        "outside": "outside|outdoors",
        "outside park": "in a park",
        "outside beach": "on a beach",
        "outside street": "on a street",
        "inside": "inside|indoors",
        "inside house": "in a neighbor 's house",
        "inside kitchen": "in a kitchen",
        "inside office": "in an office",
    },
}
TAXONOMY = {slot: {tuple(path.split()): text for path, text in paths.items()} for slot, paths in LEXICON.items()}
LEAVES = {
    slot: [path for path in paths if not any(path == other[:-1] for other in paths)] for slot, paths in TAXONOMY.items()
}
PREDICATES = ("activity", "company", "place")  # slots that follow the verb, in this order


def random_value(rng: random.Random, slot: str) -> Value:
    """Draw a leaf and generalize it half of the time. The first leaves of a slot are drawn more often."""
    leaves = LEAVES[slot]
    return generalize(rng, leaves[min(rng.randrange(len(leaves)), rng.randrange(len(leaves)))])


def generalize(rng: random.Random, value: Value) -> Value:
    """Return `value` or, half of the time, a random prefix of it."""
    return value[: rng.randint(1, len(value))] if rng.random() < 0.5 else value


def judge_claim(scene: Value, claim: Value) -> str:
    """Return the label of a claim about a slot, given the scene's value of this slot.

    A claim is entailed if it is equal to the scene's value or more general (*making music* for *guitar*). A more
    specific one is neutral. A different one is a contradiction, because both sentences describe the same scene.
    """
    if any(known != claimed for known, claimed in zip(scene, claim, strict=False)):
        return "contradiction"
    return "entailment" if len(claim) <= len(scene) else "neutral"


def judge(scene: Facts, claims: Facts) -> str:
    """Return the label of a hypothesis that makes `claims` about `scene`."""
    labels = {judge_claim(scene.get(slot, ()), claim) for slot, claim in claims.items()}
    return next(label for label in ("contradiction", "neutral", "entailment") if label in labels)


def draw_scene(rng: random.Random) -> Facts:
    """Draw the facts of a scene: the person, the size, and some but not all of the other slots."""
    others = [slot for slot in TAXONOMY if slot not in ("who", "size")]
    slots = rng.sample(others, rng.randint(1, len(others) - 1))
    return {slot: random_value(rng, slot) for slot in ("who", "size", *slots)}


def draw_claims(rng: random.Random, scene: Facts, label: str) -> Facts:
    """Draw claims that have `label` for `scene`: one about the person, and one about a random slot.

    Half of the time, the second claim repeats a fact of the scene; otherwise it has a random value.
    """
    while True:
        slot = rng.choice(list(TAXONOMY))
        fact = slot if slot != "who" else rng.choice([known for known in scene if known != "who"])
        claims = {known: generalize(rng, scene[known]) for known in ("who", fact) if known in scene}
        if slot not in claims or rng.random() < 0.5:
            claims[slot] = random_value(rng, slot)
        if judge(scene, claims) == label:
            return claims


def make_sentence(rng: random.Random, facts: Facts) -> list[list[str]]:
    """Return phrases such as *A tall man*, *in a coat*, *is*, *singing*, *in a park*. The place may come first."""
    said = {slot: rng.choice(TAXONOMY[slot][value].split("|")).split() for slot, value in facts.items()}
    predicate = [said.pop(slot) for slot in PREDICATES if slot in said]
    if not predicate:
        predicate = [said.pop("clothes" if "clothes" in said else "size")]
    front = [predicate.pop(), [","]] if len(predicate) > 1 and "place" in facts and rng.random() < 0.2 else []
    subject = [[rng.choice(("a", "the")), *said.get("size", []), *said["who"]]]
    if "clothes" in said:
        subject.append(said["clothes"])
    phrases = [*front, *subject, ["is"], *predicate, *([["."]] if rng.random() < 0.9 else [])]
    phrases[0][0] = phrases[0][0].capitalize()
    return phrases


def binary_parse(nodes: Sequence[str | list[str]]) -> str:
    """Return `( ( A man ) ( is sleeping ) )`: the second child of a node holds the rest of the sentence."""
    first, *rest = [node if isinstance(node, str) else binary_parse(node) for node in nodes]
    return f"( {first} {binary_parse(rest)} )" if rest else first


def raw_text(phrases: list[list[str]]) -> str:
    """Join tokens to raw text: `The man is singing "Hello" in a neighbor's house.`"""
    text = " ".join(token for tokens in phrases for token in tokens)
    for tokens, typed in ((" 's", "'s"), ("`` ", '"'), (" ''", '"'), (" ,", ","), (" .", ".")):
        text = text.replace(tokens, typed)
    return text


def draw_votes(rng: random.Random, label: str, *, is_undecided: bool, num_votes: int) -> list[str]:
    """Return the labels of the author and of other annotators. With `is_undecided`, no three of them agree."""
    first, second = rng.sample([other for other in LABELS if other != label], 2)
    if is_undecided:
        return [label, label, first, first, second]
    agreeing = rng.choice((4, 4, 4, 3, 2))
    return [label, *rng.sample([label] * agreeing + [first] * (4 - agreeing), 4)][:num_votes]


def make_split(rng: random.Random, name: str, num_pairs: int, known_scenes: set) -> list[dict[str, Any]]:
    """Return `num_pairs` rows, three for each premise. Scenes are new, and are added to `known_scenes`."""
    rows = []
    for number in range(num_pairs // 3):
        scene = draw_scene(rng)
        while (key := frozenset(scene.items())) in known_scenes:
            scene = draw_scene(rng)
        known_scenes.add(key)
        premise = make_sentence(rng, scene)
        is_undecided = number % 100 == 1  # its hypotheses have no gold label
        for label in rng.sample(LABELS, 3):
            hypothesis = make_sentence(rng, draw_claims(rng, scene, label))
            num_votes = 5 if name != "train" or rng.random() < 0.1 else 1
            votes = draw_votes(rng, label, is_undecided=is_undecided, num_votes=num_votes)
            row = {
                "gold_label": label if votes.count(label) * 2 > len(votes) else NO_GOLD_LABEL,
                "sentence1": raw_text(premise),
                "sentence2": raw_text(hypothesis),
                "sentence1_binary_parse": binary_parse(premise),
                "sentence2_binary_parse": binary_parse(hypothesis),
                "captionID": f"{name}{number:06d}.jpg#0",
                "pairID": f"{name}{number:06d}.jpg#0r1{label[0]}",
                "annotator_labels": votes,
            }
            rows.append(row)
    return rows


def write_sample(folder: Path, *, num_pairs: Mapping[str, int] = DEFAULT_PAIRS, seed: int = 0) -> Path:
    """Write `snli_1.0_{split}.jsonl` for every split of `num_pairs` into `folder` and return it.

    `num_pairs` counts rows. The same `num_pairs` and `seed` give the same bytes in the same version of Python.
    """
    if any(size < 3 or size % 3 for size in num_pairs.values()) or sum(num_pairs.values()) > MAX_PAIRS:
        raise ValueError(f"num_pairs {dict(num_pairs)}: give multiples of 3 whose sum is at most {MAX_PAIRS}")
    rng = random.Random(seed)
    known_scenes: set = set()
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in num_pairs.items():
        text = "".join(f"{json.dumps(row)}\n" for row in make_split(rng, name, size, known_scenes))
        (folder / f"snli_1.0_{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
    return folder
