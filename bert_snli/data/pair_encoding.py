"""Pairs encoded and truncated as the book does: `<cls> premise <sep> hypothesis <sep>` with segments (d2l 15.7.2).

The Rust tokenizer's own pair truncation is not used: on an odd budget it gives the extra token to the other side.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from bert_snli.choices import TEXT_SOURCES
from bert_snli.data.truncation import named_as_options, truncated_lengths
from bert_snli.errors import BertSnliError
from bert_snli.modeling import D2LBertConfig
from bert_snli.modeling.pair_truncation import (
    NUM_SPECIAL_TOKENS,
    check_truncation,
    is_text,
    longest_pair,
    pair_budget,
)

if TYPE_CHECKING:
    from datasets import Dataset, Features

ROWS_AT_ONCE = 10_000  # neighbours share premises, and a premise is tokenized once


class Sides(NamedTuple):
    """Token ids of many texts on end: text i is `ids[starts[i] : starts[i] + lengths[i]]`."""

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


class Vocabulary(dict[str, int]):
    """Maps a word to its id, and every other word to the id of the unknown token."""

    def __init__(self, ids: Mapping[str, int], unk_token_id: int):
        # Sorted by id, so that the hash is the same in each process.
        super().__init__(sorted(ids.items(), key=lambda item: item[1]))
        self.unknown = unk_token_id

    def __missing__(self, word: str) -> int:
        return self.unknown


class PairEncoder:
    """Encode the columns `premise` and `hypothesis` as `input_ids`, `token_type_ids` and `length`, without padding.

    A function for `map(batched=True)` of a `Dataset` or an `IterableDataset` in any format. A column `label` is
    returned unchanged as `labels`. In Arrow format, numbers have the smallest type that holds them.

    Several threads can use one encoder. It has its own copy of the tokenizer's Rust backend, so it neither changes the
    tokenizer nor follows later changes of it.

    Args:
        tokenizer: of a converted folder.
        max_length: longest pair in tokens, the three special ones included.
        truncation: what to do with longer ones, a name in `modeling/pair_truncation.py`.
        text_source: `"raw"` for text as people type it, `"parse"` for leaves of parses with spaces between them, which
            are looked up as they stand, as the book does.

    Raises:
        BertSnliError: `max_length` does not fit the model, or leaves no room for a token of each side; called, a pair
            that cannot be truncated in this way.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: str = "longest",
        text_source: str = "raw",
    ):
        with named_as_options():
            self.budget = pair_budget(max_length, tokenizer.model_max_length)
            check_truncation(truncation)
        if text_source not in TEXT_SOURCES:
            raise BertSnliError(f"--text_source {text_source}: choose one of {', '.join(TEXT_SOURCES)}")
        self.backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.unk_token_id = tokenizer.unk_token_id
        self.cls_token_id = tokenizer.cls_token_id
        self.sep_token_id = tokenizer.sep_token_id
        self.truncation = truncation
        self.text_source = text_source
        self.ids_type = np.min_scalar_type(len(tokenizer) - 1)
        self.length_type = np.min_scalar_type(max_length)
        self.lower_case = self.backend.normalizer.normalize_str("A") == "a"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.backend.get_vocab(), self.unk_token_id)

    def __getstate__(self) -> dict:
        """Leave out `vocabulary`, which `backend` holds already: the hash must not depend on earlier calls."""
        return {name: value for name, value in vars(self).items() if name != "vocabulary"}

    @property
    def features(self) -> Features:
        """The columns that come out, but for `labels`."""
        from datasets import Features, List, Value  # imported here: prediction does not need `datasets`

        return Features(
            {
                "input_ids": List(Value(self.ids_type.name)),
                "token_type_ids": List(Value("uint8")),
                "length": Value(self.length_type.name),
            }
        )

    def __call__(self, batch: Any) -> Any:
        """Encode a batch of `map`: a table gives a table, a DataFrame a DataFrame, a mapping a dict of lists."""
        premises, hypotheses = batch["premise"], batch["hypothesis"]
        if isinstance(premises, str):
            raise BertSnliError("PairEncoder: got one pair, not a batch; give batched=True to Dataset.map")
        if isinstance(batch, pa.Table):
            encoded = self.encode(premises.to_pylist(), hypotheses.to_pylist())
            return encoded.append_column("labels", batch["label"]) if "label" in batch.column_names else encoded
        columns = self.encode(premises, hypotheses).to_pydict()
        if "label" in batch:
            columns["labels"] = batch["label"]
        return columns if isinstance(batch, Mapping) else type(batch)(columns)

    def encode(self, premises: Sequence[str], hypotheses: Sequence[str]) -> pa.Table:
        """Encode pairs of texts.

        Returns:
            A table with the columns of `features`.

        Raises:
            BertSnliError: a pair cannot be truncated to `max_length`, or a value is not valid text.
        """
        premise, hypothesis = self._encode(premises), self._encode(hypotheses)
        p, h = truncated_lengths(premise.lengths, hypothesis.lengths, self.budget, self.truncation)
        lengths = p + h + NUM_SPECIAL_TOKENS
        ends = np.cumsum(lengths)
        starts = ends - lengths
        ids = np.full(lengths.sum(), self.sep_token_id, self.ids_type)
        ids[starts] = self.cls_token_id
        ids[ranges(starts + 1, p)] = premise.ids[ranges(premise.starts, p)]
        ids[ranges(starts + p + 2, h)] = hypothesis.ids[ranges(hypothesis.starts, h)]
        segments = np.zeros(lengths.sum(), np.uint8)
        segments[ranges(starts + p + 2, h + 1)] = 1
        offsets = pa.array(np.append(0, ends), pa.int32())
        return pa.table(
            {
                "input_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
                "token_type_ids": pa.ListArray.from_arrays(offsets, pa.array(segments)),
                "length": pa.array(lengths.astype(self.length_type)),
            }
        )

    def _encode(self, texts: Sequence[str]) -> Sides:
        """Tokenize each distinct text once."""
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        if not all(map(is_text, places)):
            wrong = next(text for text in places if not is_text(text))
            raise BertSnliError(f"{wrong!r:.80} is not a text that can be written as UTF-8; remove or correct the row")
        if self.text_source == "parse":
            sequences: list[list] = [text.lower().split() if self.lower_case else text.split() for text in places]
            flat: Iterable[int] = map(self.vocabulary.__getitem__, chain.from_iterable(sequences))
        else:
            encodings = self.backend.encode_batch_fast(list(places), add_special_tokens=False)
            sequences = [encoding.ids for encoding in encodings]
            flat = chain.from_iterable(sequences)
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        ids = np.fromiter(flat, self.ids_type, lengths.sum())
        rows = np.fromiter(map(places.__getitem__, texts), np.int64, len(texts))
        return Sides(ids, (np.cumsum(lengths) - lengths)[rows], lengths[rows])


def encoder_of(
    config: D2LBertConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    truncation: str | None = None,
    text_source: str = "raw",
) -> PairEncoder:
    """The encoder that a model was fine-tuned with, but for what is given; the book's where nothing is known."""
    return PairEncoder(
        tokenizer,
        longest_pair(max_length, config.max_pair_length, tokenizer.model_max_length),
        config.pair_truncation if truncation is None else truncation,
        text_source,
    )


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[i], …, starts[i] + lengths[i] − 1` for every i, on end."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def flat_columns(encoded: Dataset) -> Iterator[np.ndarray]:
    """All numbers of encoded pairs, a column at a time; rows on end."""
    for column in encoded.with_format("arrow")[:].columns:
        whole = column.combine_chunks()
        yield (whole.flatten() if pa.types.is_list(whole.type) else whole).to_numpy()


def distinct_ids(encoded: Dataset) -> np.ndarray:
    """Return the token ids that occur in encoded pairs, sorted."""
    return np.unique(encoded.with_format("arrow")[:]["input_ids"].combine_chunks().flatten().to_numpy())


def encode_pairs(pairs: Dataset, encoder: PairEncoder, *, num_proc: int | None = None) -> Dataset:
    """Map `encoder` over `pairs`; a `label` column is kept as `labels`. A second run is read from the cache."""
    from datasets import Dataset, Features

    features = encoder.features
    if "label" in pairs.column_names:
        features = Features({**features, "labels": pairs.features["label"]})
    if len(pairs) == 0:  # `map` would leave no columns
        return Dataset.from_dict({name: [] for name in features}, features=features)
    encoded = pairs.with_format("arrow").map(
        encoder,
        batched=True,
        batch_size=ROWS_AT_ONCE,
        num_proc=num_proc,
        remove_columns=pairs.column_names,
        features=features,
        desc="Encoding pairs",
    )
    return encoded.with_format(None)
