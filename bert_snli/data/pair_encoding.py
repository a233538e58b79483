"""Encode sentence pairs as `<cls> premise <sep> hypothesis <sep>` with segments, truncated as in d2l 15.7.2.

The Rust tokenizer does not truncate pairs as d2l does: with an odd budget, the other sentence gets the extra token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from bert_snli.choices import TEXT_SOURCES
from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig, pair_truncation
from bert_snli.modeling.pair_truncation import NUM_SPECIAL_TOKENS, is_text
from bert_snli.tokenization import is_uncased

if TYPE_CHECKING:
    from datasets import Dataset, Features


class TokenSequences(NamedTuple):
    """Token ids of many texts in one array: text i is `ids[starts[i] : starts[i] + lengths[i]]`."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def take(self, texts: np.ndarray) -> TokenSequences:
        """Return the sequences of `texts`, in that order."""
        return self._replace(starts=self.starts[texts], lengths=self.lengths[texts])

    def concatenate(self) -> np.ndarray:
        """Return the ids of all sequences, in order."""
        return self.ids[concatenate_ranges(self.starts, self.lengths)]


def pack_pairs(first: TokenSequences, second: TokenSequences, cls_token_id: int, sep_token_id: int) -> pa.Table:
    """Build `<cls> first <sep> second <sep>` for each pair: `input_ids`, `token_type_ids` (0, then 1) and `length`."""
    lengths = first.lengths + second.lengths + NUM_SPECIAL_TOKENS
    ends = np.cumsum(lengths)
    starts = ends - lengths
    second_starts = starts + first.lengths + 2
    ids = np.full(lengths.sum(), sep_token_id, first.ids.dtype)
    ids[starts] = cls_token_id
    ids[concatenate_ranges(starts + 1, first.lengths)] = first.concatenate()
    ids[concatenate_ranges(second_starts, second.lengths)] = second.concatenate()
    segments = np.zeros(len(ids), np.uint8)
    segments[concatenate_ranges(second_starts, second.lengths + 1)] = 1
    offsets = pa.array(np.append(0, ends))
    return pa.table(
        {
            "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(ids)),
            "token_type_ids": pa.LargeListArray.from_arrays(offsets, pa.array(segments)),
            "length": pa.array(lengths),
        }
    )


def concatenate_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the numbers `starts[i], ..., starts[i] + lengths[i] - 1` of all i, concatenated."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


class PairEncoder:
    """Encodes the columns `premise` and `hypothesis` as `input_ids`, `token_type_ids` and `length`, without padding.

    Use it in `map(batched=True)` of a `Dataset` or an `IterableDataset` in any format. A column `label` is returned
    unchanged as `labels`. In Arrow format, integers have the smallest type that can hold them.

    Several threads can use one encoder. It has its own copy of the tokenizer's Rust backend, so it does not change the
    tokenizer, and later changes of the tokenizer do not change the encoder.

    Args:
        tokenizer: the tokenizer of a converted model.
        max_length: the maximum number of tokens of a pair, with the three special tokens.
        truncation: how to truncate longer pairs, one of `TRUNCATIONS` in `modeling/pair_truncation.py`.
        text_source: `"raw"` for raw text; `"parse"` for the tokens of parse trees, separated by spaces, which are not
            split further, as in d2l.

    Raises:
        BertSnliError: `max_length` is below 5 or above the model's maximum, another argument is not allowed, or a
            call gets a pair that cannot be truncated.

    Example:
        >>> from transformers import AutoTokenizer
        >>> encoder = PairEncoder(AutoTokenizer.from_pretrained("quickstart/converted"), max_length=16)
        >>> encoder({"premise": ["A man is sleeping."], "hypothesis": ["A person sleeps."]})["token_type_ids"]
        [[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]]
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: str = "longest", text_source: str = "raw"
    ):
        with _raise_bert_snli_error():
            self.budget = pair_truncation.pair_budget(max_length, tokenizer.model_max_length)
            pair_truncation.check_truncation(truncation)
        if text_source not in TEXT_SOURCES:
            raise BertSnliError(f"text_source {text_source}: choose one of {', '.join(TEXT_SOURCES)}")
        self.backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.unk_token_id = tokenizer.unk_token_id
        self.cls_token_id = tokenizer.cls_token_id
        self.sep_token_id = tokenizer.sep_token_id
        self.truncation = truncation
        self.text_source = text_source
        self.uncased = is_uncased(tokenizer)
        self.vocabulary = ids_by_token(tokenizer) if text_source == "parse" else {}
        self.schema = pa.schema(
            {
                "input_ids": pa.list_(pa.from_numpy_dtype(np.min_scalar_type(len(tokenizer) - 1))),
                "token_type_ids": pa.list_(pa.uint8()),
                "length": pa.from_numpy_dtype(np.min_scalar_type(max_length)),
            }
        )

    @property
    def features(self) -> Features:
        """Return the columns of the result, without `labels`."""
        from datasets import Features  # imported here, because prediction does not need `datasets`

        return Features.from_arrow_schema(self.schema)

    def __call__(self, batch: Any) -> Any:
        """Encode a batch of `map`. A table gives a table, a DataFrame gives a DataFrame, a mapping gives a dict."""
        premises, hypotheses = batch["premise"], batch["hypothesis"]
        if isinstance(premises, str):
            raise BertSnliError("PairEncoder: got one pair, not a batch; pass batched=True to Dataset.map")
        if isinstance(batch, pa.Table):
            encoded = self.encode(premises.to_pylist(), hypotheses.to_pylist())
            return encoded.append_column("labels", batch["label"]) if "label" in batch.column_names else encoded
        columns = self.encode(premises, hypotheses).to_pydict()
        if "label" in batch:
            columns["labels"] = batch["label"]
        return columns if isinstance(batch, Mapping) else type(batch)(columns)

    def encode(self, premises: Sequence[str], hypotheses: Sequence[str]) -> pa.Table:
        """Encode pairs of texts as a table with the columns of `features`."""
        premise, hypothesis = self._tokenize(premises), self._tokenize(hypotheses)
        with _raise_bert_snli_error():
            p, h = pair_truncation.truncated_lengths(premise.lengths, hypothesis.lengths, self.budget, self.truncation)
        premise, hypothesis = premise._replace(lengths=p), hypothesis._replace(lengths=h)
        return pack_pairs(premise, hypothesis, self.cls_token_id, self.sep_token_id).cast(self.schema)

    def describe_problems(self, premise: str, hypothesis: str) -> list[str]:
        """Return notes for the user: the pair is truncated, or the vocabulary has no word of a text."""
        limit, notes = self.budget + NUM_SPECIAL_TOKENS, []
        encodings = [self.backend.encode(text, add_special_tokens=False) for text in (premise, hypothesis)]
        if (length := sum(map(len, encodings)) + NUM_SPECIAL_TOKENS) > limit:
            notes.append(f"the pair has {length} tokens; it is truncated to {limit}, the model's maximum (max_length)")
        for name, encoding in zip(("premise", "hypothesis"), encodings, strict=True):
            known = [t for t, id_ in zip(encoding.tokens, encoding.ids, strict=True) if id_ != self.unk_token_id]
            if not any(character.isalnum() for character in "".join(known)):
                reason = "use a model that was trained on the language of the text"
                notes.append(f"{name}: the model knows none of its words, so the prediction is meaningless; {reason}")
        return notes

    def _tokenize(self, texts: Sequence[str]) -> TokenSequences:
        """Tokenize each distinct text once."""
        index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        for text in index:
            if not is_text(text):
                raise BertSnliError(f"{text!r:.80}: is not a text that can be written as UTF-8; correct or remove it")
        if self.text_source == "parse":
            words = ((text.lower() if self.uncased else text).split() for text in index)
            sequences = [[self.vocabulary.get(word, self.unk_token_id) for word in text] for text in words]
        else:
            sequences = [text.ids for text in self.backend.encode_batch_fast(list(index), add_special_tokens=False)]
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        ids = np.fromiter(chain.from_iterable(sequences), np.int32, lengths.sum())
        distinct = TokenSequences(ids, np.cumsum(lengths) - lengths, lengths)
        return distinct.take(np.array([index[text] for text in texts], np.int64))


@contextmanager
def _raise_bert_snli_error() -> Iterator[None]:
    """Turn a `ValueError` of `pair_truncation`, which cannot import `BertSnliError`, into a `BertSnliError`."""
    try:
        yield
    except ValueError as error:
        raise BertSnliError(str(error)) from error


def ids_by_token(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the vocabulary, sorted by id, so that its hash is the same in each process."""
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def make_encoder(
    config: D2LBertConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    truncation: str | None = None,
    text_source: str = "raw",
) -> PairEncoder:
    """Return an encoder with the settings of fine-tuning (without them: d2l's), changed by the given options."""
    return PairEncoder(
        tokenizer,
        pair_truncation.resolve_max_length(max_length, config.max_pair_length, tokenizer.model_max_length),
        config.pair_truncation if truncation is None else truncation,
        text_source,
    )


def flat_columns(encoded: Dataset | pa.Table) -> dict[str, np.ndarray]:
    """Concatenate the rows of each column of encoded pairs."""
    table = encoded if isinstance(encoded, pa.Table) else encoded.with_format("arrow")[:]
    arrays = {name: table[name].combine_chunks() for name in table.column_names}
    return {name: (a.flatten() if pa.types.is_nested(a.type) else a).to_numpy() for name, a in arrays.items()}


def encode_pairs(pairs: Dataset, encoder: PairEncoder) -> Dataset:
    """Map `encoder` over `pairs`. A column `label` becomes `labels`. `datasets` caches the result."""
    features = encoder.features
    if "label" in pairs.column_names:
        features["labels"] = pairs.features["label"]
    # The batches are large, because each distinct text of a batch is tokenized once.
    options = {"batched": True, "batch_size": 10_000, "remove_columns": pairs.column_names, "features": features}
    return pairs.with_format("arrow").map(encoder, desc="Encoding pairs", **options).with_format(None)
