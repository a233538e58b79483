"""Examples to pretrain on: pairs of sentences of which every other is the next, and words to be predicted (d2l 15.9).

What the book draws with `random` while it builds lists of strings, is drawn here for all examples at once: `PairDraws`
and `MaskDraws` are all the chance there is.

Shape suffixes: T tokens of all sentences, S sentences, G paragraphs, C pairs of neighbours, R rows (pairs that are not
too long), N tokens of all rows, P words to predict in all rows, B rows of a batch, Q words to predict in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from bert_snli.data.batching import IGNORED_LABEL, MicroBatch, PaddedPairs
from bert_snli.data.pair_encoding import Vocabulary, ranges
from bert_snli.errors import BertSnliError

PREDICTED, MASKED, KEPT = 0.15, 0.8, 0.5  # shares: of the tokens; of these; of the rest (d2l 15.9.1.2)
PAIRS, MASKS = 1, 2  # keep their random numbers apart


class SentenceEncoder:
    """A function for `Dataset.map(batched=True)`: `sentences` to the ids of a paragraph and the sentences' lengths.

    Special tokens in the text, such as WikiText's `<unk>`, are unknown words: it cannot make structure.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.vocabulary = Vocabulary(tokenizer.get_vocab(), tokenizer.unk_token_id)
        self.vocabulary.update(dict.fromkeys(tokenizer.all_special_tokens, tokenizer.unk_token_id))

    def __call__(self, batch: Mapping[str, list[list[str]]]) -> dict[str, list]:
        split = [[sentence.split() for sentence in sentences] for sentences in batch["sentences"]]
        return {
            "ids": [[self.vocabulary[word] for words in sentences for word in words] for sentences in split],
            "lengths": [list(map(len, sentences)) for sentences in split],
        }


class Corpus(NamedTuple):
    """Sentence s is `ids_T[starts_S[s] : starts_S[s] + lengths_S[s]]`; paragraph g has `counts_G[g]` of them."""

    ids_T: np.ndarray
    starts_S: np.ndarray
    lengths_S: np.ndarray
    counts_G: np.ndarray


def encode_corpus(paragraphs: Dataset, tokenizer: PreTrainedTokenizerBase, *, num_proc: int | None = None) -> Corpus:
    """The sentences of `paragraphs` as ids; a second run is read from the cache."""
    encoded = paragraphs.map(
        SentenceEncoder(tokenizer),
        batched=True,
        num_proc=num_proc,
        remove_columns=paragraphs.column_names,
        features=Features({"ids": List(Value("int32")), "lengths": List(Value("int32"))}),
        desc="Encoding sentences",
    )
    table = encoded.with_format("arrow")[:]
    ids_T, lengths_S = (table[name].combine_chunks().flatten().to_numpy() for name in ("ids", "lengths"))
    counts_G = table["lengths"].combine_chunks().value_lengths().to_numpy()
    return Corpus(ids_T, np.cumsum(lengths_S) - lengths_S, lengths_S.astype(np.int64), counts_G.astype(np.int64))


class PairDraws(NamedTuple):
    """For each pair of neighbours: below 1/2 if the next sentence stays; else a paragraph and a place in it, 0 to 1."""

    stays_C: np.ndarray
    paragraph_C: np.ndarray
    place_C: np.ndarray


def draw_pairs(corpus: Corpus, seed: int) -> PairDraws:
    """The draws of a run: those of the pairs are the same in every epoch, so that a batch keeps its length."""
    random = np.random.default_rng((seed, 0, PAIRS))
    size = int((corpus.counts_G - 1).sum())
    return PairDraws(random.random(size), random.integers(len(corpus.counts_G), size=size), random.random(size))


def pair_up(corpus: Corpus, draws: PairDraws, tokenizer: PreTrainedTokenizerBase, max_length: int) -> pa.Table:
    """Each sentence with its next one, or in half of the cases with any sentence: rows for `MaskedPairs`.

    `labels` is 1 where the second sentence is the next. Pairs of more than `max_length` tokens are left out.

    Raises:
        BertSnliError: all are.
    """
    ends_G = np.cumsum(corpus.counts_G)
    begins_G = ends_G - corpus.counts_G
    first_C = ranges(begins_G, corpus.counts_G - 1)
    other_C = begins_G[draws.paragraph_C] + (draws.place_C * corpus.counts_G[draws.paragraph_C]).astype(np.int64)
    is_next_C = draws.stays_C < 0.5
    second_C = np.where(is_next_C, first_C + 1, other_C)
    fits_C = corpus.lengths_S[first_C] + corpus.lengths_S[second_C] + 3 <= max_length
    first_R, second_R = first_C[fits_C], second_C[fits_C]
    if len(first_R) == 0:
        raise BertSnliError(f"--max_length {max_length}: no pair of sentences is so short; give more")
    a_R, b_R = corpus.lengths_S[first_R], corpus.lengths_S[second_R]
    lengths_R = a_R + b_R + 3
    ends_R = np.cumsum(lengths_R)
    starts_R = ends_R - lengths_R
    ids_N = np.full(ends_R[-1], tokenizer.sep_token_id, np.int32)
    ids_N[starts_R] = tokenizer.cls_token_id
    ids_N[ranges(starts_R + 1, a_R)] = corpus.ids_T[ranges(corpus.starts_S[first_R], a_R)]
    ids_N[ranges(starts_R + a_R + 2, b_R)] = corpus.ids_T[ranges(corpus.starts_S[second_R], b_R)]
    segments_N = np.zeros(ends_R[-1], np.uint8)
    segments_N[ranges(starts_R + a_R + 2, b_R + 1)] = 1
    offsets = pa.array(np.append(0, ends_R))
    return pa.table(
        {
            "input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(ids_N)),
            "token_type_ids": pa.LargeListArray.from_arrays(offsets, pa.array(segments_N)),
            "length": pa.array(lengths_R),
            "labels": pa.array(is_next_C[fits_C].astype(np.int64)),
        }
    )


class MaskDraws(NamedTuple):
    """A number for each token: of a row, the smallest are predicted; and for each of those what becomes of the word.

    Below 0.8 in `masked_P` it becomes `<mask>`; else it stays if `kept_P` is below 1/2, and is `word_P` if not.
    """

    order_N: np.ndarray
    masked_P: np.ndarray
    kept_P: np.ndarray
    word_P: np.ndarray


class Masks(NamedTuple):
    """The ids (N,) to read, and where (in the row) which words are to be predicted, row by row."""

    ids_N: np.ndarray
    columns_P: np.ndarray
    labels_P: np.ndarray


def num_predictions(lengths_R: np.ndarray) -> np.ndarray:
    """How many words of each row are predicted: 15 % of its tokens, rounded as Python rounds, and at least one."""
    return np.maximum(1, np.rint(lengths_R * PREDICTED)).astype(np.int64)


def draw_masks(num_tokens: int, num_predicted: int, vocab_size: int, seed: int, epoch: int) -> MaskDraws:
    """The draws of one epoch."""
    random = np.random.default_rng((seed, epoch, MASKS))
    return MaskDraws(
        random.random(num_tokens, np.float32),
        random.random(num_predicted, np.float32),
        random.random(num_predicted, np.float32),
        random.integers(vocab_size, size=num_predicted, dtype=np.int32),
    )


def mask_words(
    ids_N: np.ndarray, lengths_R: np.ndarray, draws: MaskDraws, mask_token_id: int, never: tuple[int, ...]
) -> Masks:
    """Hide words as `draws` says; those in `never`, `<cls>` and `<sep>`, are not predicted."""
    counts_R = num_predictions(lengths_R)
    row_N = np.repeat(np.arange(len(lengths_R)), lengths_R)
    # Draws are below 1, so whole numbers keep the rows apart: a tenth of the time of a lexsort. What is never predicted
    # comes last in its row, and before a 0 of the next, as the sort is stable.
    by_row_N = np.argsort(row_N + np.where(np.isin(ids_N, never), 1.0, draws.order_N), kind="stable")
    starts_R = np.cumsum(lengths_R) - lengths_R
    chosen_P = np.sort(by_row_N[ranges(starts_R, counts_R)])
    labels_P = ids_N[chosen_P]
    stays_or_other_P = np.where(draws.kept_P < KEPT, labels_P, draws.word_P)
    masked_N = ids_N.copy()
    masked_N[chosen_P] = np.where(draws.masked_P < MASKED, mask_token_id, stays_or_other_P)
    return Masks(masked_N, chosen_P - starts_R[row_N[chosen_P]], labels_P)


class MaskedPairs(PaddedPairs):
    """Pairs of sentences with words to predict; indexed by a `MicroBatch`, gives a batch for `FastPreTraining`.

    Besides what `PaddedPairs` gives: `predicted` (B, Q), columns; `labels` (B, Q), their words; and
    `next_sentence_label` (B,). Masks are drawn anew for each epoch, unless `static_masks`, from (seed, epoch) alone:
    whatever the number of processes, and wherever a run is resumed.
    """

    def __init__(
        self,
        pairs: pa.Table,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        static_masks: bool = False,
        device: torch.device | str = "cpu",
    ):
        super().__init__(pairs, tokenizer.pad_token_id, device=device)
        self.tokenizer = tokenizer
        self.seed = seed
        self.static_masks = static_masks
        self.ids_N, self.segments_N = (
            pairs[name].combine_chunks().flatten().to_numpy() for name in ("input_ids", "token_type_ids")
        )
        self.is_next_R = pairs["labels"].to_numpy()
        self.predictions_R = num_predictions(self.lengths)
        self.first_prediction_R = torch.from_numpy(np.cumsum(self.predictions_R) - self.predictions_R).to(device)
        self.counts_R = torch.from_numpy(self.predictions_R).to(device)
        self.drawn: int | None = None  # the epoch whose masks are there
        self.set_epoch(0)

    def arrays(self) -> list[np.ndarray]:
        """Return all data of the pairs before masking: token ids, segments, lengths and next-sentence labels."""
        return [self.ids_N, self.segments_N, self.lengths, self.is_next_R]

    def set_epoch(self, epoch: int) -> None:
        """Draw the masks of the epoch, if they are not there."""
        epoch = 0 if self.static_masks else epoch
        if epoch == self.drawn:
            return
        self.drawn = epoch
        draws = draw_masks(
            len(self.ids_N),
            int(self.predictions_R.sum()),
            len(self.tokenizer),
            self.seed,
            epoch,
        )
        never = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        masks = mask_words(self.ids_N, self.lengths, draws, self.tokenizer.mask_token_id, never)
        self.tokens["input_ids"] = torch.from_numpy(masks.ids_N).to(self.device)
        self.columns_P, self.labels_P = (
            torch.from_numpy(numbers.astype(np.int64)).to(self.device) for numbers in (masks.columns_P, masks.labels_P)
        )

    def __getitem__(self, micro_batch: MicroBatch) -> dict[str, torch.Tensor]:
        batch = super().__getitem__(micro_batch)
        batch["next_sentence_label"] = batch["labels"]
        rows = self.row_numbers(micro_batch)
        places = torch.arange(int(self.predictions_R[micro_batch.rows].max()), device=self.device)
        there_BQ = places < self.counts_R[rows, None]
        index_BQ = (self.first_prediction_R[rows, None] + places) * there_BQ
        batch["predicted"] = self.columns_P[index_BQ] * there_BQ
        batch["labels"] = torch.where(there_BQ & micro_batch.has_labels, self.labels_P[index_BQ], IGNORED_LABEL)
        return batch
