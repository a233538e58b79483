"""A model's answer to a pair of sentences, with all that the page shows of it: words, tokens and their weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS
from bert_snli.errors import BertSnliError
from bert_snli.inference import label_names, load_classifier, load_tokenizer
from bert_snli.modeling import D2LBertForSequenceClassification
from bert_snli.prediction import Predictor

MAX_CHARACTERS = 5_000  # of a sentence; ten times as many as fit into 128 tokens

WORD, UNKNOWN, SPECIAL, CUT = "word", "unknown", "special", "cut"


class SeenToken(NamedTuple):
    """A token and the part of the user's text that it stands for."""

    before: str  # what the text has between the last token and this one: blanks
    text: str  # the user's own characters; none where the token was put in
    token: str  # what the model read
    kind: str  # WORD, UNKNOWN, SPECIAL, or CUT for what the model did not read
    weight: float  # its share of all tokens' weights


@dataclass(frozen=True)
class Answer:
    """What the model says of a pair."""

    scores: dict[str, float]  # probability of each label, the most probable first
    milliseconds: float  # of the model's forward pass
    sides: dict[str, list[SeenToken]]  # of premise and hypothesis, with the special tokens where they stand
    length: int  # of the whole pair in tokens, with the special ones
    max_length: int  # how many of them the model reads


def attention_of_cls(model: D2LBertForSequenceClassification, inputs: dict[str, Tensor]) -> Tensor:
    """How much `<cls>` attends to each token (L) in the last layer, as a mean over heads."""
    with torch.no_grad():
        attention_BNLL = model(**inputs, output_attentions=True).attentions[-1]
    return attention_BNLL[0, :, 0].mean(0)


def gradient_times_input(model: D2LBertForSequenceClassification, inputs: dict[str, Tensor]) -> Tensor:
    """Length of gradient ⊙ word embedding at each token (L).

    The gradient is that of the first label's lead in logits over the second: unlike a probability's it does not vanish
    where the model is sure, and it minds nothing that all logits have in common.
    """
    embeddings_BLD = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    first, second = model(inputs_embeds=embeddings_BLD, **others).logits[0].topk(2).values
    (gradient_BLD,) = torch.autograd.grad(first - second, embeddings_BLD)
    return (gradient_BLD * embeddings_BLD.detach())[0].norm(dim=-1)


WEIGHTS: dict[str, Callable[[D2LBertForSequenceClassification, dict[str, Tensor]], Tensor]] = {
    "gradient": gradient_times_input,
    "attention": attention_of_cls,
}


class Answerer:
    """A fine-tuned model that predicts pairs and explains its predictions. Several threads may call it at a time.

    A prediction depends on the weights and the pair only. The hooks that `output_attentions` leaves on the model record
    only for the thread that asked for attentions.

    Raises:
        BertSnliError: no fine-tuned model of ours; called, a pair that cannot be answered.
    """

    def __init__(self, model_name_or_path: str):
        path = Path(model_name_or_path)
        self.name = path.resolve().name if path.is_dir() else model_name_or_path
        self.model = load_classifier(model_name_or_path)
        label_names(self.model.config, model_name_or_path)
        self.model.set_attn_implementation("eager")  # the only one that tells its weights
        self.tokenizer = load_tokenizer(model_name_or_path)
        self.predictor = Predictor(self.model, self.tokenizer)  # which also moves the model to its device
        self.encoder = self.predictor.encoder
        self.max_length = self.encoder.budget + NUM_SPECIAL_TOKENS

    def predict(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        """What `bert-snli predict` says."""
        return self.predictor(pairs)

    def answer(self, premise: str, hypothesis: str, weights: str) -> Answer:
        """The answer to one pair, with the tokens weighed in the way of `WEIGHTS` that is named."""
        check_pair(premise, hypothesis)
        row = self.encoder.encode([premise], [hypothesis]).to_pylist()[0]
        names = ("input_ids", "token_type_ids")
        inputs = {name: torch.tensor([row[name]], device=self.model.device) for name in names}
        weights_L = WEIGHTS[weights](self.model, inputs)
        # A weight of 0 everywhere must not become 0/0.
        shares = (weights_L / weights_L.sum().clamp_min(torch.finfo(weights_L.dtype).tiny)).tolist()
        start = time.perf_counter()  # not before: a first pass ever takes much longer
        probabilities = self._probabilities(inputs)
        milliseconds = 1000 * (time.perf_counter() - start)
        sides, length = self._sides(premise, hypothesis, row["token_type_ids"].count(0) - 2, shares)
        labelled = zip(self.predictor.labels, probabilities, strict=True)
        scores = dict(sorted(labelled, key=lambda item: -item[1]))
        return Answer(scores, milliseconds, sides, length, self.max_length)

    @torch.no_grad()
    def _probabilities(self, inputs: dict[str, Tensor]) -> list[float]:
        return torch.softmax(self.model(**inputs).logits[0].float(), dim=-1).tolist()

    def _sides(
        self, premise: str, hypothesis: str, kept: int, shares: list[float]
    ) -> tuple[dict[str, list[SeenToken]], int]:
        """The tokens of both sides, of whose premise `kept` are read, and the length of the pair before it is cut."""
        cls, sep = self.tokenizer.cls_token, self.tokenizer.sep_token
        of_premise = self._seen(premise, shares[1 : 1 + kept])
        of_hypothesis = self._seen(hypothesis, shares[2 + kept : -1])
        sides = {
            "premise": [
                SeenToken("", "", cls, SPECIAL, shares[0]),
                *of_premise,
                SeenToken(" ", "", sep, SPECIAL, shares[1 + kept]),
            ],
            "hypothesis": [*of_hypothesis, SeenToken(" ", "", sep, SPECIAL, shares[-1])],
        }
        return sides, len(of_premise) + len(of_hypothesis) + NUM_SPECIAL_TOKENS

    def _seen(self, text: str, shares: list[float]) -> list[SeenToken]:
        """The tokens of a side, the first of which have `shares`; the others were cut."""
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        seen = []
        place = 0
        for number, (token, id_, (start, end)) in enumerate(
            zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True)
        ):
            # Two tokens made of one character have the same offsets; the first shows it.
            start, end = max(start, place), max(end, place)
            kind = UNKNOWN if id_ == self.tokenizer.unk_token_id else WORD
            weight = 0.0
            if number < len(shares):
                weight = shares[number]
            else:
                kind = CUT
            seen.append(SeenToken(text[place:start], text[start:end], token, kind, weight))
            place = end
        return seen


def check_pair(premise: str, hypothesis: str) -> None:
    """Refuse what is no pair of sentences.

    Raises:
        BertSnliError: a side is blank or too long.
    """
    for name, text in {"premise": premise, "hypothesis": hypothesis}.items():
        if not isinstance(text, str) or not text.strip():
            raise BertSnliError(f"No {name}: type a sentence")
        if len(text) > MAX_CHARACTERS:
            raise BertSnliError(f"The {name} has {len(text):,} characters; give at most {MAX_CHARACTERS:,}")
