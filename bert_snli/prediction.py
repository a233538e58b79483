"""Predict the labels of sentence pairs, in a list or in a stream that is larger than memory.

Shape suffixes: R rows, C labels.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from bert_snli.data.batching import PaddedPairs
from bert_snli.data.pair_encoding import make_encoder
from bert_snli.errors import BertSnliError
from bert_snli.inference import Classifier, as_logits_function, batches_by_length, compute_logits, ordered_labels
from bert_snli.modeling.nli_pipeline import as_tuple, is_one_pair

Pair = tuple[str, str]
Prediction = dict[str, float]  # probability of each label by name, the most probable first

CHUNK_SIZE = 16_384  # pairs of a stream that one process holds at a time


class Predictor:
    """Predicts the label of pairs of premise and hypothesis. Create it once and call it often.

    A prediction depends only on the weights and the pair, up to floating-point rounding. Several threads can use one
    `Predictor`. Limitation: an int8 ONNX model scales its activations per batch, so its predictions also depend on
    the other pairs of a call.

    Args:
        classifier: a fine-tuned model, for PyTorch or ONNX Runtime.
        tokenizer: the tokenizer of the same folder.
        max_length, truncation: how to truncate pairs that are too long (default: as in fine-tuning).
        batch_size: pairs in a batch.
        accelerator: device and processes (default: a GPU if there is one).

    Raises:
        BertSnliError: `max_length` or `truncation` is invalid, or a call gets a pair that cannot be truncated.

    Example:
        >>> from transformers import AutoModelForSequenceClassification, AutoTokenizer
        >>> model = AutoModelForSequenceClassification.from_pretrained("quickstart/finetuned")
        >>> predictor = Predictor(model, AutoTokenizer.from_pretrained("quickstart/finetuned"))
        >>> prediction = predictor("A man is sleeping.", "A man is awake.")
        >>> sorted(prediction)
        ['contradiction', 'entailment', 'neutral']
    """

    def __init__(
        self,
        classifier: Classifier,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        truncation: str | None = None,
        batch_size: int = 256,
        accelerator: Accelerator | None = None,
    ):
        self.encoder = make_encoder(classifier.config, tokenizer, max_length=max_length, truncation=truncation)
        self.accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
        self.compute = as_logits_function(classifier, self.accelerator)
        self.pad_token_id = tokenizer.pad_token_id
        self.batch_size = batch_size
        self.labels = ordered_labels(classifier.config)

    def __call__(self, pairs: Any, hypothesis: str | None = None) -> Any:
        """Predict in this process: one pair, or an iterable of pairs, in any format that `NLIPipeline` accepts.

        Returns the prediction of one pair, or a list of predictions.
        """
        if hypothesis is not None:
            return self([(pairs, hypothesis)])[0]
        if is_one_pair(pairs):
            return self([pairs])[0]
        return self._predictions(self._logits([as_tuple(pair) for pair in pairs]))

    def stream(self, pairs: Iterable[Pair]) -> Iterator[tuple[list[Pair], list[Prediction]]]:
        """Yield chunks of `pairs` with their predictions, in order. The processes share the computation.

        The memory does not depend on the number of pairs. All processes must get the same pairs, and all raise the
        error about a pair that cannot be encoded. Only the main process gets predictions; the others get empty lists.
        """
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        pairs = iter(pairs)
        while chunk := list(islice(pairs, CHUNK_SIZE * world)):
            logits_RC, problem = torch.zeros(len(chunk), len(self.labels)), []
            try:
                logits_RC[index::world] = self._logits(chunk[index::world])
            except BertSnliError as error:
                problem = [str(error)]
            # All processes raise the error. If only one did, the others would wait for its rows forever.
            if problems := gather_object(problem):
                raise BertSnliError(problems[0])
            # Only one process computes a row, and the row is zero in all others. Therefore the sum is exact.
            logits_RC = self.accelerator.reduce(logits_RC.to(self.accelerator.device), "sum").cpu()
            yield chunk, self._predictions(logits_RC) if self.accelerator.is_main_process else []

    def _logits(self, pairs: Sequence[Pair]) -> torch.Tensor:
        encoded = self.encoder.encode([premise for premise, _ in pairs], [hypothesis for _, hypothesis in pairs])
        padded = PaddedPairs(encoded, self.pad_token_id, device=self.compute.device)
        return compute_logits(self.compute, padded, batches_by_length(padded.lengths, self.batch_size)).cpu()

    def _predictions(self, logits_RC: torch.Tensor) -> list[Prediction]:
        return [
            dict(sorted(zip(self.labels, row, strict=True), key=lambda item: -item[1]))
            for row in torch.softmax(logits_RC, dim=-1).tolist()
        ]
