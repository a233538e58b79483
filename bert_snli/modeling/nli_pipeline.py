"""The `natural-language-inference` pipeline. It truncates and batches pairs as in training.

This file is copied to the Hub with the weights, so it imports only files of this folder from `bert_snli`.

Shape suffixes: B pairs, L positions, C labels.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Pipeline

from .pair_truncation import check_truncation, is_text, pair_budget, resolve_max_length, truncated_lengths

TASK = "natural-language-inference"
# The entry in `config.json`. `pt` is the Auto class that loads the model.
CUSTOM_PIPELINES = {TASK: {"impl": "nli_pipeline.NLIPipeline", "pt": ["AutoModelForSequenceClassification"]}}
ONLY_BEST = ""  # default of `top_k`: only the best label, as in `text-classification`


class NLIPipeline(Pipeline):
    """Predicts whether a premise entails or contradicts a hypothesis, or neither (`neutral`).

    The input is a premise and a hypothesis, a pair, a list of pairs, or any other iterable of pairs. A pair is a tuple
    of two texts or a dict with `premise` and `hypothesis` (or `text` and `text_pair`); in a list it may also be a list
    of two texts. A list is computed in batches of pairs of similar length. Another iterable gives an iterator that
    reads one batch at a time.

    Several threads can use one pipeline. `preprocess` and `postprocess` work on lists, not on single pairs.

    Args:
        max_length, truncation: how to truncate pairs that are too long (default: as in fine-tuning, from the config).
        top_k: the number of labels to return, the most probable first; None returns all labels. By default, only the
            most probable label is returned, and not a list.
        batch_size: by default 64 for a list and 1 for another iterable.

    Returns:
        `{"label": ..., "score": ...}` for each pair, or a list of them with `top_k`.

    Raises:
        ValueError: an input is not a pair of texts, or an option is invalid.

    Example:
        >>> from transformers import pipeline
        >>> nli = pipeline("natural-language-inference", "quickstart/finetuned", trust_remote_code=True)
        >>> premise = "A tall woman in a coat is eating in a kitchen."
        >>> nli(premise, "The woman is with a friend.")["label"]
        'neutral'
        >>> predictions = nli([(premise, "The woman is with a friend."), (premise, "The woman is in a kitchen.")])
        >>> [prediction["label"] for prediction in predictions]
        ['neutral', 'entailment']
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(
        self, max_length: int | None = None, truncation: str | None = None, top_k: Any = ONLY_BEST
    ) -> tuple[dict, dict, dict]:
        preprocess_params: dict[str, Any] = {}
        if max_length is not None:
            pair_budget(max_length, self.tokenizer.model_max_length)
            preprocess_params["max_length"] = max_length
        if truncation is not None:
            check_truncation(truncation)
            preprocess_params["truncation"] = truncation
        if top_k not in (None, ONLY_BEST) and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k {top_k!r}: give 1 or more, or None for all labels")
        return preprocess_params, {}, {} if top_k == ONLY_BEST else {"top_k": top_k}

    # The base class runs the tokenizer for each pair, and does not sort a list by length.
    def __call__(
        self,
        inputs: Any,
        hypothesis: str | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> Any:
        if hypothesis is not None:
            inputs = (inputs, hypothesis)
        preprocess, _, postprocess = self._sanitize_parameters(**kwargs)
        params = self._preprocess_params | preprocess, self._postprocess_params | postprocess
        batch_size = self._batch_size if batch_size is None else batch_size
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ValueError(f"batch_size {batch_size!r}: give 1 or more")
        if isinstance(inputs, list):
            return self._predict(inputs, batch_size or 64, *params)
        if not is_one_pair(inputs) and isinstance(inputs, (Iterable, torch.utils.data.Dataset)):
            return self._stream(iter(inputs), batch_size or 1, *params)  # it may have to wait for the next pair
        return self._predict([inputs], 1, *params)[0]

    def _stream(self, inputs: Iterator, batch_size: int, *params: dict) -> Iterator:
        while pairs := list(islice(inputs, batch_size)):
            yield from self._predict(pairs, batch_size, *params)

    def _predict(self, pairs: list, batch_size: int, preprocess: dict, postprocess: dict) -> list:
        """Predict in batches of pairs of similar length; the predictions are in the order of `pairs`."""
        rows = self.preprocess(pairs, **preprocess) if pairs else []
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
        predictions: list = [None] * len(rows)
        for start in range(0, len(rows), batch_size):
            numbers = order[start : start + batch_size]
            outputs = self.forward(self.collate([rows[number] for number in numbers]))
            for number, prediction in zip(numbers, self.postprocess(outputs, **postprocess), strict=True):
                predictions[number] = prediction
        return predictions

    def preprocess(
        self, pairs: list, max_length: int | None = None, truncation: str | None = None
    ) -> list[dict[str, list[int]]]:
        """Encode pairs as `<cls> premise <sep> hypothesis <sep>`, truncated but not padded."""
        config, positions = self.model.config, self.tokenizer.model_max_length
        budget = pair_budget(resolve_max_length(max_length, config.max_pair_length, positions), positions)
        texts = [text for pair in pairs for text in as_tuple(pair)]
        # The tokenizer does not truncate as d2l does: with an odd budget, the other sentence gets the extra token.
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        premises, hypotheses = ids[0::2], ids[1::2]
        truncation = truncation or config.pair_truncation
        p_B, h_B = truncated_lengths(list(map(len, premises)), list(map(len, hypotheses)), budget, truncation)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [
            {
                "input_ids": [cls, *premise[:p], sep, *hypothesis[:h], sep],
                "token_type_ids": [0] * (p + 2) + [1] * (h + 1),
            }
            for premise, hypothesis, p, h in zip(premises, hypotheses, p_B.tolist(), h_B.tolist(), strict=True)
        ]

    def collate(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pad encoded pairs to the longest one: tensors (B, L)."""
        ids, segments = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "token_type_ids"))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "token_type_ids": pad_sequence(segments, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }

    def _forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits_BC": self.model(**batch).logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: Any = ONLY_BEST) -> list:
        predictions = []
        for scores in outputs["logits_BC"].float().softmax(dim=-1).tolist():
            by_score = sorted(enumerate(scores), key=lambda item: -item[1])
            labels = [{"label": self.model.config.id2label[number], "score": score} for number, score in by_score]
            predictions.append(labels[0] if top_k == ONLY_BEST else labels[:top_k])
        return predictions


def is_one_pair(inputs: Any) -> bool:
    """Return whether the input is meant as one pair, and not as a list or another iterable of pairs."""
    return isinstance(inputs, (tuple, Mapping, str, bytes))


def as_tuple(pair: Any) -> tuple[str, str]:
    """Return the premise and the hypothesis of a pair in any format that the pipeline accepts."""
    if isinstance(pair, Mapping):
        names = ("premise", "hypothesis") if "premise" in pair else ("text", "text_pair")
        texts: tuple = tuple(map(pair.get, names))
    else:
        texts = tuple(pair) if isinstance(pair, (tuple, list)) else ()
    if len(texts) != 2 or not all(map(is_text, texts)):
        example = '("premise", "hypothesis"), {"premise": ..., "hypothesis": ...}, or a list of such pairs'
        raise ValueError(f"{pair!r:.80}: not a pair of texts; give {example}")
    return texts
