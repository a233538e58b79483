"""`pipeline("natural-language-inference")`: premise and hypothesis in, the answer out; cut and batched as in training.

    nli = pipeline("natural-language-inference", "runs/snli", trust_remote_code=True)
    nli(("A man inspects a uniform.", "The man is sleeping."))

This file travels to the hub beside the weights: it imports nothing of `bert_snli` but what lies beside it.

Shape suffixes: B pairs, L positions, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Pipeline

from .pair_truncation import check_truncation, is_text, longest_pair, pair_budget, truncated_lengths

TASK = "natural-language-inference"
# What `config.json` says of it. `pt` is the Auto class that opens the model.
CUSTOM_PIPELINES = {TASK: {"impl": "nli_pipeline.NLIPipeline", "pt": ["AutoModelForSequenceClassification"]}}
LIST_BATCH, STREAM_BATCH = 64, 1
BEST = ""  # `top_k` that was not given, as in `text-classification`: the best answer by itself, not in a list
KEYS = (("premise", "hypothesis"), ("text", "text_pair"))
REMEDY = 'give ("premise", "hypothesis"), {"premise": ..., "hypothesis": ...}, or a list of such pairs'


class TokenPair(NamedTuple):
    """Token ids of a pair that fits the model, without the special ones."""

    premise: list[int]
    hypothesis: list[int]


class NLIPipeline(Pipeline):
    """Whether a hypothesis follows from a premise.

    Called with one pair, it gives one answer; with a list of pairs, a list; with any other iterable, an iterator that
    takes no more pairs from it than it needs for the next batch. A pair is a tuple of two texts, or a dict with
    `premise` and `hypothesis` (or `text` and `text_pair`); in a list it may also be a list of two.

    An answer is `{"label", "score"}` of the most probable label; with `top_k=k` a list of the k best, best first; with
    `top_k=None` of all.

    Pairs that are too long are cut as when the model was fine-tuned (`config.max_pair_length`,
    `config.pair_truncation`), unless `max_length` or `truncation` say otherwise. A list is computed in batches of like
    length. `batch_size` is 64 by default, and 1 for an iterator, which may have to wait for its next pair.
    `num_workers` is taken, as other pipelines take it, and changes nothing.

    Raises:
        ValueError: what is given is no pair of texts, or an option makes no sense.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(
        self, max_length: int | None = None, truncation: str | None = None, top_k: Any = BEST
    ) -> tuple[dict, dict, dict]:
        if top_k not in (None, BEST) and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k {top_k!r}: give 1 or more, or None for all labels")
        if max_length is not None:
            pair_budget(max_length, self.tokenizer.model_max_length)
        if truncation is not None:
            check_truncation(truncation)
        encoding = {"max_length": max_length, "truncation": truncation}
        return (
            {name: value for name, value in encoding.items() if value is not None},
            {},
            {} if top_k == BEST else {"top_k": top_k},
        )

    def __call__(self, inputs: Any, *, batch_size: int | None = None, num_workers: int = 0, **options: Any) -> Any:
        given = self._sanitize_parameters(**options)
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        encoding, _, answering = ({**default, **new} for default, new in zip(defaults, given, strict=True))
        size = self._batch_size if batch_size is None else batch_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"batch_size {size!r}: give 1 or more")
        if isinstance(inputs, (tuple, Mapping)):
            return self._answer([inputs], 1, encoding, answering)[0]
        if isinstance(inputs, list):
            return self._answer(inputs, size or LIST_BATCH, encoding, answering)
        try:
            pairs = None if isinstance(inputs, (str, bytes)) else iter(inputs)  # a torch Dataset has no `__iter__`
        except TypeError:
            pairs = None
        if pairs is None:
            raise ValueError(f"{inputs!r:.80} is no pair of texts; {REMEDY}")
        return self._stream(pairs, size or STREAM_BATCH, encoding, answering)

    def _stream(self, pairs: Iterator, batch_size: int, encoding: dict, answering: dict) -> Iterator:
        while batch := list(islice(pairs, batch_size)):
            yield from self._answer(batch, batch_size, encoding, answering)

    def _answer(self, pairs: list, batch_size: int, encoding: dict, answering: dict) -> list:
        """One answer for each pair; those of like length are computed together."""
        encoded = self.encode(pairs, **encoding)
        by_length = sorted(range(len(encoded)), key=lambda row: sum(map(len, encoded[row])))
        answers: list = [None] * len(encoded)
        for start in range(0, len(encoded), batch_size):
            rows = by_length[start : start + batch_size]
            for row, answer in zip(
                rows, self.run_single([encoded[row] for row in rows], {}, {}, answering), strict=True
            ):
                answers[row] = answer
        return answers

    def encode(self, pairs: list, max_length: int | None = None, truncation: str | None = None) -> list[TokenPair]:
        """Token ids of pairs in any of the forms that a pipeline takes, cut to fit.

        Raises:
            ValueError: one is no pair of texts, or cannot be cut in this way.
        """
        texts = [text for pair in pairs for text in _texts_of(pair)]
        config, positions = self.model.config, self.tokenizer.model_max_length
        budget = pair_budget(longest_pair(max_length, config.max_pair_length, positions), positions)
        # Not the tokenizer's own truncation, which on an odd budget gives the extra token to the other side.
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        premises, hypotheses = ids[0::2], ids[1::2]
        p, h = truncated_lengths(
            [len(side) for side in premises],
            [len(side) for side in hypotheses],
            budget,
            config.pair_truncation if truncation is None else truncation,
        )
        return [
            TokenPair(premise[:stay_p], hypothesis[:stay_h])
            for premise, hypothesis, stay_p, stay_h in zip(premises, hypotheses, p, h, strict=True)
        ]

    def preprocess(self, pairs: list[TokenPair]) -> dict[str, torch.Tensor]:
        """`<cls> premise <sep> hypothesis <sep>` with segments, padded to the longest: each (B, L)."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = [torch.tensor([cls, *premise, sep, *hypothesis, sep]) for premise, hypothesis in pairs]
        segments = [
            torch.tensor([0] * (len(premise) + 2) + [1] * (len(hypothesis) + 1)) for premise, hypothesis in pairs
        ]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "token_type_ids": pad_sequence(segments, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }

    def _forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits_BC": self.model(**batch).logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: Any = BEST) -> list:
        names = self.model.config.id2label
        answers = [
            sorted(
                ({"label": names[number], "score": score} for number, score in enumerate(scores)),
                key=lambda answer: -answer["score"],
            )
            for scores in outputs["logits_BC"].float().softmax(dim=-1).tolist()
        ]
        return [answer[0] if top_k == BEST else answer[:top_k] for answer in answers]


def _texts_of(pair: Any) -> tuple[str, str]:
    """Premise and hypothesis of a pair in any of its forms.

    Raises:
        ValueError: it is none, or not of text.
    """
    if isinstance(pair, Mapping):
        known = [(pair[first], pair[second]) for first, second in KEYS if first in pair and second in pair]
        texts = known[0] if known else ()
    else:
        texts = tuple(pair) if isinstance(pair, (tuple, list)) else ()
    if len(texts) != 2 or not all(map(is_text, texts)):
        raise ValueError(f"{pair!r:.80} is no pair of texts; {REMEDY}")
    return texts
