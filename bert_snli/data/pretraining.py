"""Pretraining examples: sentence pairs, half of them consecutive, with masked tokens (d2l 15.9).

`draw_pairs` and `draw_masks` draw all random numbers; the other functions are deterministic.

Shape suffixes: S sentences, G paragraphs, C candidate pairs, R pairs (rows), N tokens of all pairs, P predicted tokens
of all pairs, B rows of a batch, Q predicted tokens of a row of a batch.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from bert_snli.data.batching import IGNORED_LABEL, MicroBatch, PaddedPairs
from bert_snli.data.pair_encoding import (
    NUM_SPECIAL_TOKENS,
    TokenSequences,
    concatenate_ranges,
    flat_columns,
    ids_by_token,
    pack_pairs,
)
from bert_snli.errors import BertSnliError

# d2l 15.9.1.2: of all tokens, 15 % are predicted; of these, 80 % become <mask>; of the rest, half stay unchanged.
PREDICTION_SHARE, MASK_PROBABILITY, UNCHANGED_PROBABILITY = 0.15, 0.8, 0.5
PAIR_STREAM, MASK_STREAM = 1, 2  # part of the seed, so that pairs and masks use different random numbers


class Corpus(NamedTuple):
    """All sentences in order; paragraph g has `counts_G[g]` of them."""

    sentences: TokenSequences
    counts_G: np.ndarray


def encode_corpus(paragraphs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Corpus:
    """Encode the sentences of `paragraphs`. `datasets` caches the result.

    Special tokens in the text, such as WikiText's `<unk>`, become the unknown token.
    """
    special = tokenizer.all_special_tokens
    vocabulary = {token: number for token, number in ids_by_token(tokenizer).items() if token not in special}
    features = Features({"ids": List(Value("int32")), "lengths": List(Value("int32"))})
    options = {"batched": True, "remove_columns": paragraphs.column_names, "features": features}
    options["fn_kwargs"] = {"vocabulary": vocabulary, "unk_token_id": tokenizer.unk_token_id}
    encoded = paragraphs.map(encode_batch, desc="Encoding sentences", **options)
    table = encoded.with_format("arrow")[:]
    ids, lengths = (table[name].combine_chunks() for name in ("ids", "lengths"))
    lengths_S = lengths.flatten().to_numpy().astype(np.int64)
    sentences = TokenSequences(ids.flatten().to_numpy(), np.cumsum(lengths_S) - lengths_S, lengths_S)
    return Corpus(sentences, lengths.value_lengths().to_numpy().astype(np.int64))


def encode_batch(
    batch: Mapping[str, list[list[str]]], vocabulary: dict[str, int], unk_token_id: int
) -> dict[str, list]:
    """Encode the column `sentences` as the token `ids` of each paragraph and the `lengths` of its sentences."""
    paragraphs = [[sentence.split() for sentence in sentences] for sentences in batch["sentences"]]
    return {
        "ids": [[vocabulary.get(word, unk_token_id) for word in chain(*sentences)] for sentences in paragraphs],
        "lengths": [[len(sentence) for sentence in sentences] for sentences in paragraphs],
    }


def draw_pairs(corpus: Corpus, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw for each candidate pair: a number in [0, 1), a paragraph, and another number in [0, 1)."""
    random = np.random.default_rng((seed, 0, PAIR_STREAM))
    size = int((corpus.counts_G - 1).sum())
    return random.random(size), random.integers(len(corpus.counts_G), size=size), random.random(size)


def pair_up(
    corpus: Corpus, draws: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> pa.Table:
    """Pair each sentence with the next one in its paragraph or with a random one (d2l 15.9.1.1).

    Sentence s is paired with s + 1 if its first draw is below 0.5, else with sentence floor(third draw * n) of the n
    sentences of the drawn paragraph. Pairs longer than `max_length` tokens are left out. Returns the table of
    `pack_pairs` with the column `labels`: 1 if the second sentence is the next one, else 0.
    """
    choice_C, paragraph_C, sentence_C = draws
    starts_G = np.cumsum(corpus.counts_G) - corpus.counts_G
    first_C = concatenate_ranges(starts_G, corpus.counts_G - 1)
    offset_C = (sentence_C * corpus.counts_G[paragraph_C]).astype(np.int64)
    is_next_C = choice_C < 0.5
    second_C = np.where(is_next_C, first_C + 1, starts_G[paragraph_C] + offset_C)
    lengths_S = corpus.sentences.lengths
    fits_C = lengths_S[first_C] + lengths_S[second_C] + NUM_SPECIAL_TOKENS <= max_length
    if not fits_C.any():
        raise BertSnliError(f"max_length {max_length}: all pairs of sentences are longer; increase it")
    first, second = corpus.sentences.take(first_C[fits_C]), corpus.sentences.take(second_C[fits_C])
    pairs = pack_pairs(first, second, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return pairs.append_column("labels", pa.array(is_next_C[fits_C].astype(np.int64)))


def draw_masks(num_tokens: int, num_predicted: int, vocab_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Draw the numbers of an epoch: one in [0, 1) for each token; two and a token id for each predicted token."""
    random = np.random.default_rng((seed, epoch, MASK_STREAM))
    numbers = [random.random(size, np.float32) for size in (num_tokens, num_predicted, num_predicted)]
    return [*numbers, random.integers(vocab_size, size=num_predicted, dtype=np.int32)]


def count_masked(lengths_R: np.ndarray) -> np.ndarray:
    """Return the number of predicted tokens of each row: max(1, round(0.15 * length))."""
    return np.maximum(1, np.rint(lengths_R * PREDICTION_SHARE)).astype(np.int64)


def mask_tokens(
    ids_N: np.ndarray,
    lengths_R: np.ndarray,
    draws: Sequence[np.ndarray],
    mask_token_id: int,
    excluded_ids: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the predicted tokens and replace most of them (d2l 15.9.1.2).

    In each row, the `count_masked` tokens with the smallest draws are predicted, except `excluded_ids`. Returns all
    token ids after masking (N,), and the column (P,) and the original id (P,) of each predicted token.
    """
    order_N, mask_P, unchanged_P, random_id_P = draws
    starts_R = np.cumsum(lengths_R) - lengths_R
    row_N = np.repeat(np.arange(len(lengths_R)), lengths_R)
    # One sort orders the tokens within all rows, ten times faster than a lexsort: `order_N` is below 1. Excluded tokens
    # are the last of their row; the sort is stable, so they stay before the next row.
    sorted_N = np.argsort(row_N + np.where(np.isin(ids_N, excluded_ids), 1.0, order_N), kind="stable")
    predicted_P = np.sort(sorted_N[concatenate_ranges(starts_R, count_masked(lengths_R))])
    labels_P = ids_N[predicted_P]
    unmasked_P = np.where(unchanged_P < UNCHANGED_PROBABILITY, labels_P, random_id_P)
    masked_N = ids_N.copy()
    masked_N[predicted_P] = np.where(mask_P < MASK_PROBABILITY, mask_token_id, unmasked_P)
    return masked_N, predicted_P - starts_R[row_N[predicted_P]], labels_P


class MaskedPairs(PaddedPairs):
    """Sentence pairs with masked tokens. Indexed by a `MicroBatch`, it returns a batch for `FastPreTraining`.

    In addition to what `PaddedPairs` returns: `predicted` (B, Q), the columns of predicted tokens; `labels` (B, Q),
    their ids; `next_sentence_label` (B,). The masks depend only on the seed and the epoch (with `static_masks` only
    on the seed). The number of processes and a resume do not change them.
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
        self.pairs = pairs  # before masking
        self.ids_N = flat_columns(pairs)["input_ids"]  # before masking
        self.num_masked_R = count_masked(self.lengths)
        self.prediction_counts_R = torch.from_numpy(self.num_masked_R).to(device)
        self.prediction_starts_R = self.prediction_counts_R.cumsum(0) - self.prediction_counts_R
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Mask the tokens for the epoch."""
        num_predicted = int(self.num_masked_R.sum())
        epoch = 0 if self.static_masks else epoch
        draws = draw_masks(len(self.ids_N), num_predicted, len(self.tokenizer), self.seed, epoch)
        excluded_ids = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        masked = mask_tokens(self.ids_N, self.lengths, draws, self.tokenizer.mask_token_id, excluded_ids)
        masked_N, self.columns_P, labels_P = (torch.from_numpy(numbers).to(self.device) for numbers in masked)
        self.tokens["input_ids"], self.labels_P = masked_N, labels_P.long()

    def __getitem__(self, micro_batch: MicroBatch) -> dict[str, torch.Tensor]:
        batch = super().__getitem__(micro_batch)
        batch["next_sentence_label"] = batch["labels"]
        rows = self.row_numbers(micro_batch)
        numbers = torch.arange(int(self.num_masked_R[micro_batch.rows].max()), device=self.device)
        is_prediction_BQ = numbers < self.prediction_counts_R[rows, None]  # False for padding
        index_BQ = (self.prediction_starts_R[rows, None] + numbers) * is_prediction_BQ
        batch["predicted"] = self.columns_P[index_BQ] * is_prediction_BQ
        batch["labels"] = torch.where(is_prediction_BQ & micro_batch.has_labels, self.labels_P[index_BQ], IGNORED_LABEL)
        return batch
