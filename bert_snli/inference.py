"""Models opened, and the logits of encoded pairs: what training, `evaluate` and `predict` have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file

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
REMEDY = "a folder that bert-snli convert, pretrain or finetune wrote, or the hub id of such a model"


def load_config(model_name_or_path: str) -> D2LBertConfig:
    """The configuration of a D2L-BERT folder or hub repository.

    Raises:
        BertSnliError: nothing there, or another kind of model.
    """
    path = Path(model_name_or_path)
    if (path / PARAMS).is_file():
        raise BertSnliError(
            f"{path}: a checkpoint of the book's; convert it first: bert-snli convert {path} --output_dir ..."
        )
    if path.is_file() or (not path.is_dir() and looks_like_path(model_name_or_path)):
        what = "a file" if path.is_file() else "no such folder"
        raise BertSnliError(f"{model_name_or_path}: {what}; give {REMEDY}")
    find_file(model_name_or_path, CONFIG)
    try:
        config_dict, _ = D2LBertConfig.get_config_dict(model_name_or_path)
    except (OSError, ValueError) as error:
        raise BertSnliError(
            f"{model_name_or_path}: its {CONFIG} is damaged ({_first_line(error)}); convert, train or download the "
            "model again"
        ) from error
    if config_dict.get("model_type") != MODEL_TYPE:
        raise BertSnliError(
            f"{model_name_or_path}: a model of type {config_dict.get('model_type')!r}, not {MODEL_TYPE!r}; "
            f"give {REMEDY}"
        )
    try:
        return D2LBertConfig.from_dict(config_dict)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BertSnliError(f"{model_name_or_path}/config.json: not the sizes of a model ({reason})") from error


def find_file(model_name_or_path: str, filename: str) -> str:
    """Return the path of one of a model's files. A file of a model on the Hub is downloaded, or found in the cache.

    transformers tells the causes apart here; its `from_pretrained` reports most of them as a missing file.

    Raises:
        BertSnliError: the Hub cannot be reached or refuses, has no such model, or the model has no such file.
    """
    try:
        path = cached_file(model_name_or_path, filename)
    except (OSError, HTTPError) as error:
        causes = list(causes_of(error))
        if any(isinstance(cause, RepositoryNotFoundError | HFValidationError) for cause in causes):
            problem = "no model folder of this name, and no model on the Hub that your token can read"
        elif (failure := hub_failure(causes)) is not None:
            raise BertSnliError(
                f"{model_name_or_path}: no model folder of this name, and {failure}, or give {REMEDY}"
            ) from error
        elif error.__cause__ is None and getattr(error, "errno", None) is None:  # not an error of the file system
            problem = f"has no {filename}"
        else:
            problem = _first_line(error)
        raise BertSnliError(f"{model_name_or_path}: {problem}; give {REMEDY}") from error
    if path is None:  # returned for config.json alone
        raise BertSnliError(f"{model_name_or_path}: has no {filename}; give {REMEDY}")
    return path


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
            return (
                f"the Hub at {constants.ENDPOINT} cannot be reached ({' '.join(str(cause).split())}); check the network"
            )
    return None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def load_tokenizer(model_name_or_path: str) -> PreTrainedTokenizerFast:
    """The tokenizer that a model folder carries.

    Raises:
        BertSnliError: as `find_file`; tokenizer.json or tokenizer_config.json is damaged.
    """
    find_file(model_name_or_path, TOKENIZER)
    try:
        return PreTrainedTokenizerFast.from_pretrained(model_name_or_path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # the file is there; of a damaged one the Rust reader raises bare Exception
        if failure := hub_failure(list(causes_of(error))):
            raise BertSnliError(f"{model_name_or_path}: {failure}") from error
        raise BertSnliError(
            f"{model_name_or_path}: its {TOKENIZER} is damaged ({type(error).__name__}: {_first_line(error)}); "
            "convert, train or download the model again"
        ) from error


def load_weights(
    model_name_or_path: str, config: D2LBertConfig, model_class: type[Model], **options
) -> tuple[Model, set[str]]:
    """A `model_class` with the weights of a folder, and the names of those it lacks, which start afresh.

    Raises:
        BertSnliError: as `find_file`; the weights are damaged or of other sizes.
    """
    if not Path(model_name_or_path).is_dir():
        find_file(model_name_or_path, WEIGHTS)
    try:
        model, info = model_class.from_pretrained(
            model_name_or_path, config=config, output_loading_info=True, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BertSnliError(
            f"{model_name_or_path}: its weights cannot be loaded ({_first_line(error)}); get or convert the model again"
        ) from error
    return model, set(info["missing_keys"])


def refuse_onnx_alone(model_name_or_path: str) -> None:
    """See that a folder was not written by `bert-snli export --format onnx`, which leaves PyTorch's weights behind.

    Raises:
        BertSnliError: it was.
    """
    if has_onnx_alone(model_name_or_path):
        raise BertSnliError(
            f"{model_name_or_path}: an ONNX export, which predict and evaluate alone can use; name the folder that it "
            "was exported from"
        )


def has_onnx_alone(model_name_or_path: str) -> bool:
    """Whether a folder holds `model.onnx` and no weights of PyTorch."""
    folder = Path(model_name_or_path)
    return (folder / ONNX_FILE).is_file() and not any(folder.glob("*.safetensors"))


def load_classifier(model_name_or_path: str) -> D2LBertForSequenceClassification:
    """A fine-tuned classifier, in evaluation mode.

    Raises:
        BertSnliError: nothing there, another kind of model, or one whose classifier was never trained.
    """
    refuse_onnx_alone(model_name_or_path)
    model, missing = load_weights(model_name_or_path, load_config(model_name_or_path), D2LBertForSequenceClassification)
    if missing:
        raise BertSnliError(
            f"{model_name_or_path}: a pretrained model without a trained classifier; fine-tune it first: "
            f"bert-snli finetune --model_name_or_path {model_name_or_path} --output_dir ..."
        )
    return model.eval()


def ordered_labels(config: D2LBertConfig) -> list[str]:
    """Return the label names of `config` in the order of the logits. config.json may list them in any order."""
    return [config.id2label[number] for number in range(config.num_labels)]


def label_names(config: D2LBertConfig, where: str) -> list[str]:
    """The labels of a classifier in the order of its logits.

    Raises:
        BertSnliError: they are not those of natural language inference.
    """
    names = [name.lower() for name in ordered_labels(config)]
    if set(names) != set(D2L_LABELS):
        raise BertSnliError(
            f"{where}: its labels are {', '.join(names)}, not {', '.join(D2L_LABELS)}; "
            "set id2label and label2id in its config.json"
        )
    return names


class LogitsFunction(Protocol):
    """Computes the logits of padded pairs, with PyTorch or ONNX Runtime.

    `device` is where the batches must be. The logits depend on the weights and the batch only.
    """

    config: D2LBertConfig
    device: torch.device

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute logits (B, C) from `input_ids`, `token_type_ids` and `attention_mask`, int64 tensors (B, L)."""


class TorchLogits:
    """A PyTorch model as a `LogitsFunction`, on the accelerator's device, in evaluation mode.

    It computes in the dtype of the weights and never in mixed precision, so that the metrics of a folder do not depend
    on how it was trained.
    """

    def __init__(self, model: D2LBertForSequenceClassification, accelerator: Accelerator):
        self.device = accelerator.device
        self.model = FastClassifier(model.to(accelerator.device)).eval()
        self.config: D2LBertConfig = model.config

    @torch.inference_mode()
    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**batch).logits


def logits_of(
    classifier: D2LBertForSequenceClassification | LogitsFunction, accelerator: Accelerator
) -> LogitsFunction:
    """Who computes: a model of PyTorch, which is moved to the accelerator's device, or a `LogitsFunction` as it is."""
    if isinstance(classifier, D2LBertForSequenceClassification):
        return TorchLogits(classifier, accelerator)
    return classifier


def batches_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows of like length together; the same batches on however many processes, so that no digit depends on that."""
    order = np.argsort(lengths, kind="stable")
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]


def logits_by_length(
    compute: LogitsFunction,
    pairs: PaddedPairs,
    batches: Sequence[np.ndarray],
    advance: Callable[[int], object] = lambda _: None,
) -> torch.Tensor:
    """Compute logits (len(pairs), labels) of the rows in `batches`; the other rows are 0.

    Args:
        compute: the classifier.
        pairs: on the device of `compute`.
        batches: row numbers, for example from `batches_by_length`.
        advance: is called with the number of rows of each batch when it has been started.

    Returns:
        A float32 tensor on the device of `compute`. The host does not wait for the device.
    """
    logits_RC = torch.zeros(len(pairs), compute.config.num_labels, device=compute.device)
    for rows in batches:
        micro_batch = MicroBatch(rows.tolist(), has_labels=True)
        batch = pairs[micro_batch]
        batch.pop("labels", None)
        logits_RC[pairs.numbers(micro_batch)] = compute(batch).float()
        advance(len(rows))
    return logits_RC


def predict_logits(
    classifier: D2LBertForSequenceClassification | LogitsFunction,
    encoded: Dataset,
    *,
    pad_token_id: int,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """Logits (rows, labels) of encoded pairs, in their order; computed by length and shared among the processes.

    A model of PyTorch is moved to the accelerator's device and left in evaluation mode.
    """
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    world = accelerator.num_processes
    compute = logits_of(classifier, accelerator)
    pairs = PaddedPairs(encoded, pad_token_id, device=compute.device)
    mine = batches_by_length(pairs.lengths, batch_size)[accelerator.process_index :: world]
    hidden = True if len(pairs) <= batch_size or not accelerator.is_local_main_process else None
    with tqdm(total=len(pairs), desc="Predicting", unit="pair", leave=False, disable=hidden) as bar:
        logits_RC = logits_by_length(compute, pairs, mine, lambda rows: bar.update(rows * world))
    # Those of a row are zero in all processes but one, so that the sum is exact.
    return accelerator.reduce(logits_RC.to(accelerator.device), "sum").cpu().numpy()
