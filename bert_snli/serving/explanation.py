"""Explain a prediction: the tokens that the model read, and the influence of each token on the prediction."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS
from bert_snli.errors import BertSnliError
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.modeling import D2LBertForSequenceClassification
from bert_snli.prediction import Predictor

MAX_CHARACTERS = 5_000  # of a sentence; 128 tokens are about ten times shorter
WORD, UNKNOWN, SPECIAL, TRUNCATED = "word", "unknown", "special", "truncated"


class DisplayedToken(NamedTuple):
    """A token and the part of the user's text that it stands for."""

    space: str  # white space in the text before this token
    text: str  # the user's characters; empty for a special token
    token: str  # the token that the model read
    kind: str  # WORD, UNKNOWN, SPECIAL or TRUNCATED
    weight: float  # its share in the sum of all weights


@dataclass(frozen=True)
class Explanation:
    """A prediction for one pair."""

    premise: str  # both texts as the user typed them
    hypothesis: str
    scores: dict[str, float]  # probability of each label, the highest first
    tokens: dict[str, list[DisplayedToken]]  # by text: "premise" and "hypothesis"
    length: int  # number of tokens in the pair, including the special ones
    max_length: int  # maximum number of tokens that the model reads


def gradient_times_input(model: D2LBertForSequenceClassification, inputs: dict[str, Tensor]) -> Tensor:
    """Return the norm of gradient x token embedding at each token (L).

    The gradient is taken of the margin between the two highest logits. It does not vanish in confident predictions.
    """
    embeddings_BLD = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings_BLD, token_type_ids=inputs["token_type_ids"]).logits
    highest, second = logits[0].topk(2).values
    (gradient_BLD,) = torch.autograd.grad(highest - second, embeddings_BLD)
    return (gradient_BLD * embeddings_BLD.detach())[0].norm(dim=-1)


class ExplainedPredictor(Predictor):
    """A `Predictor` for a model folder or Hub id that also explains its predictions. Several threads may use it."""

    def __init__(self, model_name_or_path: str, *, revision: str | None = None):
        path = Path(model_name_or_path)
        self.name = path.resolve().name if path.is_dir() else model_name_or_path
        self.model = load_classifier(model_name_or_path, revision=revision)
        self.tokenizer = load_tokenizer(model_name_or_path, revision)
        super().__init__(self.model, self.tokenizer)  # moves the model to its device
        self.max_length = self.encoder.budget + NUM_SPECIAL_TOKENS

    def explain(self, premise: str, hypothesis: str) -> Explanation:
        """Predict one pair and compute the weight of each token."""
        check_pair(premise, hypothesis)
        row = self.encoder.encode([premise], [hypothesis]).to_pylist()[0]
        names = ("input_ids", "token_type_ids")
        inputs = {name: torch.tensor([row[name]], device=self.model.device) for name in names}
        weights_L = gradient_times_input(self.model, inputs)
        # If all weights are 0, the shares are 0 and not NaN.
        shares = (weights_L / weights_L.sum().clamp_min(torch.finfo(weights_L.dtype).tiny)).tolist()
        end = row["token_type_ids"].count(0) - 1  # index of the first <sep>
        cls, sep = self.tokenizer.cls_token, self.tokenizer.sep_token
        tokens = {
            "premise": [
                DisplayedToken("", "", cls, SPECIAL, shares[0]),
                *self._match_tokens(premise, shares[1:end]),
                DisplayedToken(" ", "", sep, SPECIAL, shares[end]),
            ],
            "hypothesis": [
                *self._match_tokens(hypothesis, shares[end + 1 : -1]),
                DisplayedToken(" ", "", sep, SPECIAL, shares[-1]),
            ],
        }
        (scores,) = self([(premise, hypothesis)])
        return Explanation(premise, hypothesis, scores, tokens, sum(map(len, tokens.values())), self.max_length)

    def _match_tokens(self, text: str, shares: list[float]) -> list[DisplayedToken]:
        """Split `text` into its tokens. `shares` are those of the first tokens; the model does not read the others."""
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        tokens: list[DisplayedToken] = []
        position = 0
        for token, id_, offsets in zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True):
            # Two tokens made from one character have the same offsets; the first one shows it.
            start, end = max(offsets[0], position), max(offsets[1], position)
            kind, share = TRUNCATED, 0.0
            if len(tokens) < len(shares):
                kind, share = UNKNOWN if id_ == self.tokenizer.unk_token_id else WORD, shares[len(tokens)]
            tokens.append(DisplayedToken(text[position:start], text[start:end], token, kind, share))
            position = end
        return tokens


def check_pair(premise: str, hypothesis: str) -> None:
    """Check that both sentences can be predicted."""
    for name, text in {"premise": premise, "hypothesis": hypothesis}.items():
        if not isinstance(text, str) or not text.strip():
            raise BertSnliError(f"No {name}: type a sentence")
        if len(text) > MAX_CHARACTERS:
            raise BertSnliError(f"The {name} has {len(text):,} characters; give at most {MAX_CHARACTERS:,}")
