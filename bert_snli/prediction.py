"""Pairs of sentences in, labelled probabilities out: a few of them, or more than memory holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from bert_snli.data.batching import PaddedPairs
from bert_snli.data.pair_encoding import PairEncoder, encoder_of
from bert_snli.errors import BertSnliError
from bert_snli.inference import LogitsFunction, batches_by_length, logits_by_length, logits_of, ordered_labels
from bert_snli.modeling import D2LBertForSequenceClassification

Pair = tuple[str, str]
Prediction = dict[str, float]  # probability of each label by name, the most probable first

CHUNK = 16_384  # pairs of a stream that one process holds at a time


class Predictor:
    """Predicts the label of pairs of premise and hypothesis. Create it once and call it often.

    A prediction depends on the weights and the pair only, up to floating-point rounding: not on earlier calls or on the
    other pairs of a call. Limitation: an int8 ONNX model scales its activations by the batch, so there the other pairs
    matter. Several threads may call one `Predictor` at the same time.

    Args:
        classifier: a fine-tuned model, or whoever else computes its logits.
        tokenizer: of its folder.
        max_length, truncation: how pairs are cut, if not as the model was fine-tuned.
        batch_size: pairs computed at a time.
        accelerator: device and processes; by default a GPU if there is one.

    Raises:
        BertSnliError: `max_length` or `truncation` makes no sense; called, a pair that cannot be cut in this way.
    """

    def __init__(
        self,
        classifier: D2LBertForSequenceClassification | LogitsFunction,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        truncation: str | None = None,
        batch_size: int = 256,
        accelerator: Accelerator | None = None,
    ):
        self.encoder = encoder_of(classifier.config, tokenizer, max_length=max_length, truncation=truncation)
        self.accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
        self.compute = logits_of(classifier, self.accelerator)
        self.pad_token_id = tokenizer.pad_token_id
        self.batch_size = batch_size
        self.names = ordered_labels(classifier.config)

    def __call__(self, pairs: Sequence[Pair]) -> list[Prediction]:
        """The answer to each of `pairs`, computed in this process."""
        return self._predictions(self._logits(_encode(self.encoder, pairs))) if pairs else []

    def stream(
        self, pairs: Iterable[Pair], *, num_proc: int | None = None
    ) -> Iterator[tuple[list[Pair], list[Prediction]]]:
        """Chunks of `pairs` in their order, and their answers, shared among the accelerator's processes.

        Memory does not depend on how many there are. All processes are given the same pairs; the main one gets the
        answers, the others none. `num_proc` more processes tokenize ahead.

        Raises:
            BertSnliError: a pair that cannot be encoded; all processes raise it.
        """
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        chunks = _chunks(pairs, CHUNK * world)
        for chunk, encoded in _encoded_ahead(self.encoder, chunks, slice(index, None, world), num_proc):
            # Whoever found it, all end here: one that stopped alone would leave the others waiting for its rows.
            problems = gather_object([str(encoded)] if isinstance(encoded, BertSnliError) else [])
            if problems or isinstance(encoded, BertSnliError):
                raise BertSnliError(problems[0])
            rows = np.arange(index, len(chunk), world)
            logits_RC = self._share(self._logits(encoded), rows, len(chunk))
            yield chunk, self._predictions(logits_RC) if self.accelerator.is_main_process else []

    def _logits(self, encoded: pa.Table) -> torch.Tensor:
        padded = PaddedPairs(encoded, self.pad_token_id, device=self.compute.device)
        return logits_by_length(self.compute, padded, batches_by_length(padded.lengths, self.batch_size)).cpu()

    def _share(self, mine_RC: torch.Tensor, rows: np.ndarray, total: int) -> torch.Tensor:
        """All `total` rows, of which each process has computed its own `rows`."""
        # Zero in all processes but one, so that the sum is exact.
        everyone_RC = torch.zeros(total, mine_RC.shape[1])
        everyone_RC[rows] = mine_RC
        return self.accelerator.reduce(everyone_RC.to(self.accelerator.device), "sum").cpu()

    def _predictions(self, logits_RC: torch.Tensor) -> list[Prediction]:
        return [
            dict(sorted(zip(self.names, row, strict=True), key=lambda item: -item[1]))
            for row in torch.softmax(logits_RC, dim=-1).tolist()
        ]


def predict_pairs(
    classifier: D2LBertForSequenceClassification | LogitsFunction,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    **options,
) -> list[Prediction]:
    """The answer to each (premise, hypothesis), once; `options` are those of `Predictor`."""
    return Predictor(classifier, tokenizer, **options)(pairs)


def _chunks(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    pairs = iter(pairs)
    while chunk := list(islice(pairs, size)):
        yield chunk


def _encode(encoder: PairEncoder, pairs: Sequence[Pair]) -> pa.Table:
    premises, hypotheses = zip(*pairs, strict=True) if pairs else ((), ())
    return encoder.encode(premises, hypotheses)


def _encoded_ahead(
    encoder: PairEncoder, chunks: Iterator[list[Pair]], share: slice, num_proc: int | None
) -> Iterator[tuple[list[Pair], pa.Table | BertSnliError]]:
    """Each chunk and its encoded `share`, or why it cannot be.

    `num_proc` processes encode as many chunks and one more before their turn.
    """
    if num_proc is None:
        for chunk in chunks:
            yield chunk, _encode_or_say(encoder, chunk[share])
        return
    # Not forked: by now there are threads, of PyTorch and of the tokenizer, that a fork would leave behind.
    with ProcessPoolExecutor(num_proc, get_context("spawn"), _keep_encoder, (encoder,)) as pool:
        waiting: deque[tuple[list[Pair], Future[pa.Table | BertSnliError]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_encode_here, chunk[share])))
            if len(waiting) > num_proc:
                chunk, encoded = waiting.popleft()
                yield chunk, encoded.result()
        while waiting:
            chunk, encoded = waiting.popleft()
            yield chunk, encoded.result()


_encoder: PairEncoder


def _keep_encoder(encoder: PairEncoder) -> None:
    """Start a process that tokenizes; the encoder is sent to it once."""
    global _encoder
    _encoder = encoder


def _encode_here(pairs: Sequence[Pair]) -> pa.Table | BertSnliError:
    return _encode_or_say(_encoder, pairs)


def _encode_or_say(encoder: PairEncoder, pairs: Sequence[Pair]) -> pa.Table | BertSnliError:
    try:
        return _encode(encoder, pairs)
    except BertSnliError as error:
        return error
