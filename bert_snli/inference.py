"""Load models, and compute the logits of encoded pairs for training, `evaluate` and `predict`.

Shape suffixes: B pairs of a batch, R rows of a data set, L positions, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_snli.data.batching import MicroBatch, PaddedPairs
from bert_snli.errors import BertSnliError
from bert_snli.fast.forward import FastClassifier
from bert_snli.files import CONFIG, ONNX_FILE, PARAMS, TOKENIZER, WEIGHTS, looks_like_path
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.modeling.labels import D2L_LABELS

if TYPE_CHECKING:
    from datasets import Dataset

Model = TypeVar("Model", bound=PreTrainedModel)

MODEL_TYPE = D2LBertConfig.model_type
REMEDY = "give the folder or the hub id of a converted, pretrained or fine-tuned model"
GET_AGAIN = "convert, train or download the model again"


def load_config(model_name_or_path: str) -> D2LBertConfig:
    """Load the configuration of a D2L-BERT folder or hub repository."""
    path = Path(model_name_or_path)
    if (path / PARAMS).is_file():
        raise BertSnliError(f"{path}: a d2l checkpoint; convert it first")
    if path.is_file() or (not path.is_dir() and looks_like_path(model_name_or_path)):
        raise BertSnliError(f"{model_name_or_path}: {'a file' if path.is_file() else 'no such folder'}; {REMEDY}")
    check_has_file(model_name_or_path, CONFIG)
    try:
        config_dict, _ = D2LBertConfig.get_config_dict(model_name_or_path)
    except (OSError, ValueError) as error:
        reason = f"its {CONFIG} is damaged ({_first_line(error)})"
        raise BertSnliError(f"{model_name_or_path}: {reason}; {GET_AGAIN}") from error
    model_type = config_dict.get("model_type")
    if model_type != MODEL_TYPE:
        raise BertSnliError(f"{model_name_or_path}: a model of type {model_type!r}, not {MODEL_TYPE!r}; {REMEDY}")
    try:
        return D2LBertConfig.from_dict(config_dict)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BertSnliError(f"{model_name_or_path}/{CONFIG}: not the sizes of a model ({reason})") from error


def load_tokenizer(model_name_or_path: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder or hub repository."""
    check_has_file(model_name_or_path, TOKENIZER)
    try:
        return PreTrainedTokenizerFast.from_pretrained(model_name_or_path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the Rust library raises a bare Exception for a damaged file
        if failure := hub_failure(list(causes_of(error))):
            raise BertSnliError(f"{model_name_or_path}: {failure}") from error
        reason = f"its {TOKENIZER} is damaged ({type(error).__name__}: {_first_line(error)})"
        raise BertSnliError(f"{model_name_or_path}: {reason}; {GET_AGAIN}") from error


def check_has_file(model_name_or_path: str, filename: str) -> None:
    """Check that a model has a file; download the file of a model on the Hub.

    `from_pretrained` reports most errors of the Hub as a missing file. This function tells them apart.
    """
    folder, problem = Path(model_name_or_path), f"has no {filename}; {REMEDY}"
    try:
        if (folder / filename).is_file() or (not folder.is_dir() and hf_hub_download(model_name_or_path, filename)):
            return
    except RemoteEntryNotFoundError:
        pass
    except (RepositoryNotFoundError, HFValidationError):
        problem = f"no model folder of this name, and no model on the Hub that your token can read; {REMEDY}"
    except (OSError, HTTPError) as error:
        failure = hub_failure(list(causes_of(error)))
        problem = f"no model folder of this name, and {failure}, or {REMEDY}" if failure else _first_line(error)
    raise BertSnliError(f"{model_name_or_path}: {problem}")


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and its causes, the first one last."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def hub_failure(causes: Sequence[BaseException]) -> str | None:
    """Say how the Hub refused a request or could not be reached, and what to do; None if that is not the error."""
    for cause in causes:
        if (response := getattr(cause, "response", None)) is not None:
            message = " ".join((getattr(cause, "server_message", None) or "no reason given").split())
            remedy = "try again later" if response.status_code >= 500 else "check the name and your token"
            return f"the Hub answered {response.status_code} ({message}); {remedy}"
    if constants.HF_HUB_OFFLINE and any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        return "the Hub cannot be reached (HF_HUB_OFFLINE is set); unset it"
    for cause in causes:
        if isinstance(cause, HTTPError | ConnectionError):
            reason = " ".join(str(cause).split())
            return f"the Hub at {constants.ENDPOINT} cannot be reached ({reason}); check the network"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def load_weights(
    model_name_or_path: str, config: D2LBertConfig, model_class: type[Model], **options
) -> tuple[Model, set[str]]:
    """Load a `model_class` and return it with the names of the weights that the folder lacks, which are initialized."""
    if not Path(model_name_or_path).is_dir():
        check_has_file(model_name_or_path, WEIGHTS)
    try:
        model, info = model_class.from_pretrained(
            model_name_or_path, config=config, output_loading_info=True, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = f"its weights cannot be loaded ({_first_line(error)})"
        raise BertSnliError(f"{model_name_or_path}: {reason}; {GET_AGAIN}") from error
    return model, set(info["missing_keys"])


def has_only_onnx(model_name_or_path: str) -> bool:
    """Whether a folder holds `model.onnx` and no PyTorch weights, as an ONNX export does."""
    folder = Path(model_name_or_path)
    return (folder / ONNX_FILE).is_file() and not any(folder.glob("*.safetensors"))


def refuse_onnx_export(model_name_or_path: str) -> None:
    """Raise `BertSnliError` if a folder has no PyTorch weights, only an ONNX model."""
    if has_only_onnx(model_name_or_path):
        problem = "an ONNX export, which predict and evaluate alone can use"
        raise BertSnliError(f"{model_name_or_path}: {problem}; name the folder that it was exported from")


def load_classifier(model_name_or_path: str) -> D2LBertForSequenceClassification:
    """Load a fine-tuned classifier, in evaluation mode."""
    refuse_onnx_export(model_name_or_path)
    model, missing = load_weights(model_name_or_path, load_config(model_name_or_path), D2LBertForSequenceClassification)
    if missing:
        raise BertSnliError(
            f"{model_name_or_path}: a pretrained model without a trained classifier; fine-tune it first"
        )
    return model.eval()


def ordered_labels(config: D2LBertConfig) -> list[str]:
    """Return the label names of `config` in the order of the logits. config.json may list them in any order."""
    return [config.id2label[number] for number in range(config.num_labels)]


def label_names(config: D2LBertConfig, where: str) -> list[str]:
    """Return the labels of a classifier in the order of its logits, in lower case."""
    names = [name.lower() for name in ordered_labels(config)]
    if set(names) != set(D2L_LABELS):
        what = f"its labels are {', '.join(names)}, not {', '.join(D2L_LABELS)}"
        raise BertSnliError(f"{where}: {what}; set id2label and label2id in its {CONFIG}")
    return names


class LogitsFunction(Protocol):
    """Computes the logits of padded pairs on `device`, with PyTorch or ONNX Runtime."""

    config: D2LBertConfig
    device: torch.device

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute logits (B, C) from `input_ids`, `token_type_ids` and `attention_mask`, int64 tensors (B, L)."""


class TorchLogits:
    """A PyTorch model as a `LogitsFunction`, on the accelerator's device, in evaluation mode.

    It computes in the dtype of the weights, never in mixed precision, so metrics do not depend on how it was trained.
    """

    def __init__(self, model: D2LBertForSequenceClassification, accelerator: Accelerator):
        self.device = accelerator.device
        self.model = FastClassifier(model.to(accelerator.device)).eval()
        self.config: D2LBertConfig = model.config

    @torch.inference_mode()
    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch).logits


Classifier = D2LBertForSequenceClassification | LogitsFunction


def as_logits_function(classifier: Classifier, accelerator: Accelerator) -> LogitsFunction:
    """Return a PyTorch model as `TorchLogits`, and any other `LogitsFunction` unchanged."""
    if isinstance(classifier, PreTrainedModel):  # its class may come from the code in the model folder
        return TorchLogits(classifier, accelerator)
    return classifier


def batches_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the row numbers of batches of similar length, which do not depend on the number of processes."""
    order = np.argsort(lengths, kind="stable")
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]


def compute_logits(compute: LogitsFunction, pairs: PaddedPairs, batches: Iterable[np.ndarray]) -> torch.Tensor:
    """Compute the logits of the rows in `batches`; those of other rows are 0. The host does not wait for the device.

    Args:
        compute: the classifier.
        pairs: on the device of `compute`.
        batches: row numbers, for example from `batches_by_length`.

    Returns:
        A float32 tensor (len(pairs), labels) on the device of `compute`.
    """
    logits_RC = torch.zeros(len(pairs), compute.config.num_labels, device=compute.device)
    for rows in batches:
        micro_batch = MicroBatch(rows.tolist(), has_labels=True)
        batch = pairs[micro_batch]
        batch.pop("labels", None)
        logits_RC[pairs.row_numbers(micro_batch)] = compute(batch).float()
    return logits_RC


def predict_logits(
    classifier: Classifier,
    encoded: Dataset,
    *,
    pad_token_id: int,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """Return the logits (rows, labels) of encoded pairs, in their order. The processes share the work.

    A PyTorch model is moved to the accelerator's device and left in evaluation mode.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    compute = as_logits_function(classifier, accelerator)
    pairs = PaddedPairs(encoded, pad_token_id, device=compute.device)
    batches = batches_by_length(pairs.lengths, batch_size)[accelerator.process_index :: accelerator.num_processes]
    no_bar = True if len(pairs) <= batch_size or not accelerator.is_local_main_process else None
    bar = tqdm(batches, desc="Predicting", unit="batch", leave=False, disable=no_bar)
    logits_RC = compute_logits(compute, pairs, bar)
    # The logits of a row are zero in all processes but one, so the sum is exact.
    return accelerator.reduce(logits_RC.to(accelerator.device), "sum").cpu().numpy()
