"""Global batches, their split into micro-batches and across processes, and padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from bert_snli.data.batching import IGNORED_LABEL, GlobalBatchSampler, MicroBatch, PaddedPairs
from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
from bert_snli.data.snli import load_snli
from bert_snli.tokenization import build_tokenizer
from tests.support.checkpoints import SPECIALS

LENGTHS = np.random.default_rng(0).integers(6, 60, size=1003)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
@pytest.mark.parametrize(("num_micro_batches", "num_processes"), [(1, 1), (1, 2), (3, 2), (1, 4)])
def test_each_row_is_counted_once_in_an_epoch_in_the_same_global_batches(
    strategy: str, num_micro_batches: int, num_processes: int
):
    def micro_batches(process: int) -> list[MicroBatch]:
        sampler = GlobalBatchSampler(
            LENGTHS,
            100,
            seed=1,
            strategy=strategy,
            num_micro_batches=num_micro_batches,
            num_processes=num_processes,
            process_index=process,
        )
        sampler.set_epoch(2)
        return list(sampler)

    sampler = GlobalBatchSampler(LENGTHS, 100, seed=1, strategy=strategy)
    sampler.set_epoch(2)
    global_batches = sampler.global_batches()
    assert sorted(np.concatenate(global_batches)) == list(range(len(LENGTHS)))
    by_process = [micro_batches(process) for process in range(num_processes)]
    assert [len(found) for found in by_process] == [len(global_batches) * num_micro_batches] * num_processes
    for number, batch in enumerate(global_batches):
        steps = slice(number * num_micro_batches, (number + 1) * num_micro_batches)
        counted = [row for found in by_process for piece in found[steps] if piece.has_labels for row in piece.rows]
        assert sorted(counted) == sorted(batch)


def test_order_depends_on_seed_and_epoch_only():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = GlobalBatchSampler(LENGTHS, 64, seed=seed)
        sampler.set_epoch(epoch)
        return np.concatenate(sampler.global_batches()).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_epoch_can_start_at_a_later_batch():
    sampler = GlobalBatchSampler(LENGTHS, 100, seed=1, num_micro_batches=2)
    whole_epoch = list(sampler)
    sampler.set_epoch(0, first_batch=4)
    assert list(sampler) == whole_epoch[8:]


def padding_share(sampler: GlobalBatchSampler) -> float:
    """The share of padding in all tokens of an epoch."""
    padded = sum(len(rows) * sampler.lengths[rows].max() for rows in sampler.global_batches())
    return 1 - sampler.lengths.sum() / padded


def test_grouping_by_length_reduces_padding():
    grouped, random = (
        GlobalBatchSampler(LENGTHS, 50, seed=1, strategy=strategy) for strategy in ("group_by_length", "random")
    )
    assert padding_share(grouped) < 0.05 < 0.3 < padding_share(random)


def test_grouping_by_length_leaves_less_than_two_percent_padding_at_the_lengths_of_snli():
    lengths = np.clip(np.random.default_rng(0).gamma(10, 2.5, 50_000).astype(int), 5, 128)
    assert padding_share(GlobalBatchSampler(lengths, 512, seed=0)) < 0.02


def test_padding_equals_data_collator_with_padding(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    tokenizer = build_tokenizer([*SPECIALS[::-1], "man", "."], model_max_length=64)
    encoded = encode_pairs(pairs, PairEncoder(tokenizer, 32)).select(range(10, 30))
    rows = [3, 0, 17, 8]
    expected = DataCollatorWithPadding(tokenizer)(
        [{name: value for name, value in encoded[row].items() if name != "length"} for row in rows]
    )
    found = PaddedPairs(encoded, tokenizer.pad_token_id)[MicroBatch(rows, has_labels=True)]
    assert found.keys() == set(expected.keys())
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_filler_micro_batch_has_ignored_labels(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    tokenizer = build_tokenizer(SPECIALS, model_max_length=64)
    padded = PaddedPairs(encode_pairs(pairs, PairEncoder(tokenizer, 32)), tokenizer.pad_token_id)
    assert padded[MicroBatch([5, 6], has_labels=False)]["labels"].tolist() == [IGNORED_LABEL] * 2
    assert padded[MicroBatch([5, 6], has_labels=True)]["labels"].tolist() == pairs[5:7]["label"]


def test_padding_to_a_fixed_length(corpus: Path):
    pairs = load_snli(str(corpus), splits=["test"]).splits["test"]
    tokenizer = build_tokenizer(SPECIALS, model_max_length=64)
    encoded = encode_pairs(pairs, PairEncoder(tokenizer, 32))
    batch = PaddedPairs(encoded, tokenizer.pad_token_id, pad_to_length=32)[MicroBatch([5], has_labels=True)]
    ids = encoded[5]["input_ids"]
    assert batch["input_ids"].tolist() == [ids + [tokenizer.pad_token_id] * (32 - len(ids))]
    assert batch["attention_mask"].tolist() == [[1] * len(ids) + [0] * (32 - len(ids))]
