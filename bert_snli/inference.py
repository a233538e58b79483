"""Load models, and compute the logits of encoded pairs with PyTorch or ONNX Runtime.

Shape suffixes: B pairs of a batch, R rows of a data set, L positions, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub import constants, errors, hf_hub_download
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bert_snli.data.batching import MicroBatch, PaddedPairs
from bert_snli.errors import BertSnliError, one_line
from bert_snli.fast.forward import FastClassifier, supports_fast_forward
from bert_snli.files import CONFIG, ONNX_FILE, PARAMS, TOKENIZER, WEIGHTS, looks_like_path
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification

if TYPE_CHECKING:
    from datasets import Dataset

Model = TypeVar("Model", bound=PreTrainedModel)

REMEDY = "give the folder or the Hub id of a converted, pretrained or fine-tuned model"


def load_config(model_name_or_path: str, revision: str | None = None) -> D2LBertConfig:
    """Load the configuration of a D2L-BERT folder, or of a revision (branch, tag or commit) of a Hub repository."""
    if revision and Path(model_name_or_path).is_dir():
        raise BertSnliError(
            f"revision {revision}: {model_name_or_path} is a folder, not a model on the Hub; leave it out"
        )
    if (Path(model_name_or_path) / PARAMS).is_file():
        raise BertSnliError(f"{model_name_or_path}: a d2l checkpoint; convert it first")
    check_has_file(model_name_or_path, CONFIG, revision)
    with explain_load_errors(model_name_or_path, CONFIG):
        config_dict, _ = D2LBertConfig.get_config_dict(model_name_or_path, revision=revision)
        found, expected = config_dict.get("model_type"), D2LBertConfig.model_type
        if found != expected:
            raise BertSnliError(f"{model_name_or_path}: a model of type {found!r}, not {expected!r}; {REMEDY}")
        return D2LBertConfig.from_dict(config_dict)


def load_tokenizer(model_name_or_path: str, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder or Hub repository."""
    check_has_file(model_name_or_path, TOKENIZER, revision)
    with explain_load_errors(model_name_or_path, TOKENIZER):
        return PreTrainedTokenizerFast.from_pretrained(model_name_or_path, revision=revision)


def load_weights(
    model_name_or_path: str,
    config: D2LBertConfig,
    model_class: type[Model],
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
) -> tuple[Model, set[str]]:
    """Load a `model_class`. Return also the names of missing weights, which are initialized randomly."""
    if not Path(model_name_or_path).is_dir():  # the weights in a folder may be split into several files
        check_has_file(model_name_or_path, WEIGHTS, revision)
    with explain_load_errors(model_name_or_path, "weights"):
        model, info = model_class.from_pretrained(
            model_name_or_path,
            config=config,
            output_loading_info=True,
            use_safetensors=True,
            revision=revision or "main",  # `from_pretrained` of a model does not accept None
            dtype=dtype,
        )
    return model, set(info["missing_keys"])


def check_has_file(model_name_or_path: str, filename: str, revision: str | None = None) -> None:
    """Check that a model folder has the file `filename`, or download the file from the Hub.

    `from_pretrained` reports most errors of the Hub as a missing file. This function reports the actual error.
    """
    folder, problem = Path(model_name_or_path), f"has no {filename}"
    if (folder / filename).is_file():
        return
    if folder.is_file():
        problem = "is a file, not a model folder"
    elif not folder.is_dir() and looks_like_path(model_name_or_path):
        problem = "no such folder"
    elif not folder.is_dir():
        try:
            hf_hub_download(model_name_or_path, filename, revision=revision)
            return
        except errors.RemoteEntryNotFoundError:
            pass
        except errors.RevisionNotFoundError:
            problem = f"the Hub has no revision {revision} of it"
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            problem = "no such model folder, and no model on the Hub that your token can read"
        except (OSError, errors.HTTPError) as error:
            failure = describe_hub_failure(error) or one_line(error)
            raise BertSnliError(f"{model_name_or_path}: no such model folder, and {failure}, or {REMEDY}") from error
    raise BertSnliError(f"{model_name_or_path}: {problem}; {REMEDY}")


@contextmanager
def explain_load_errors(model_name_or_path: str, part: str) -> Iterator[None]:
    """Turn an error about a damaged file into a `BertSnliError`. Libraries raise many types, even plain `Exception`."""
    try:
        yield
    except (BertSnliError, ImportError, MemoryError):
        raise
    except Exception as error:
        what = f"its {part} cannot be loaded ({type(error).__name__}: {one_line(error)})"
        raise BertSnliError(f"{model_name_or_path}: {what}; convert, train or download the model again") from error


def describe_hub_failure(error: BaseException) -> str | None:
    """Return `problem; remedy` for a failed request to the Hub, or None if `error` has another cause."""
    cause: BaseException | None = error
    while cause is not None:
        if (response := getattr(cause, "response", None)) is not None:
            message = " ".join((getattr(cause, "server_message", None) or "no reason given").split())
            remedy = "try again later" if response.status_code >= 500 else "check the name and your token"
            return f"the Hub answered {response.status_code} ({message}); {remedy}"
        if constants.HF_HUB_OFFLINE and isinstance(cause, errors.LocalEntryNotFoundError):
            return "the Hub cannot be reached (HF_HUB_OFFLINE is set); unset it"
        if isinstance(cause, errors.HTTPError | ConnectionError):
            return f"the Hub at {constants.ENDPOINT} cannot be reached ({one_line(cause)}); check the network"
        cause = cause.__cause__
    return None


def has_only_onnx(model_name_or_path: str) -> bool:
    """Return whether a folder holds `model.onnx` but no PyTorch weights."""
    folder = Path(model_name_or_path)
    return (folder / ONNX_FILE).is_file() and not any(folder.glob("*.safetensors"))


def refuse_onnx_export(model_name_or_path: str) -> None:
    """Raise `BertSnliError` if a folder holds only an ONNX model."""
    if has_only_onnx(model_name_or_path):
        problem = f"has no PyTorch weights, only {ONNX_FILE}, which predict and evaluate can run"
        raise BertSnliError(f"{model_name_or_path}: {problem}; give the folder that it was exported from")


def load_classifier(
    model_name_or_path: str, *, revision: str | None = None, dtype: str = "auto"
) -> D2LBertForSequenceClassification:
    """Load a fine-tuned classifier, in evaluation mode."""
    refuse_onnx_export(model_name_or_path)
    config = load_config(model_name_or_path, revision)
    model, missing = load_weights(
        model_name_or_path, config, D2LBertForSequenceClassification, revision=revision, dtype=dtype
    )
    if missing:
        raise BertSnliError(f"{model_name_or_path}: a model without a trained classifier; fine-tune it first")
    return model.eval()


def open_classifier(
    model_name_or_path: str, backend: str | None = None, *, revision: str | None = None, dtype: str | None = None
) -> D2LBertForSequenceClassification | OnnxClassifier:
    """Load a fine-tuned classifier for a backend. Default: `onnx` if a folder has only `model.onnx`, else `torch`."""
    if backend not in (None, "torch", "onnx"):
        raise BertSnliError(f"backend {backend}: choose torch or onnx")
    path = Path(model_name_or_path) / ONNX_FILE
    if backend == "torch" or not (backend or has_only_onnx(model_name_or_path)):
        return load_classifier(model_name_or_path, revision=revision, dtype=dtype or "auto")
    if dtype:
        raise BertSnliError(f"dtype {dtype}: an ONNX model has its own precision; leave dtype out")
    if not path.is_file():
        raise BertSnliError(f"backend onnx: no {ONNX_FILE} in {model_name_or_path}; export the model first")
    return OnnxClassifier(path, load_config(model_name_or_path))


def ordered_labels(config: D2LBertConfig) -> list[str]:
    """Return the label names of `config` in the order of the logits. config.json may list them in any order."""
    return [config.id2label[number] for number in range(config.num_labels)]


def classifier_labels(config: D2LBertConfig) -> list[str]:
    """Return the labels of a classifier in the order of its logits, in lower case."""
    return [name.lower() for name in ordered_labels(config)]


class TorchLogits:
    """Computes logits with PyTorch, on the accelerator's device.

    It uses the dtype of the weights and no mixed precision, so metrics do not depend on the precision of training.
    """

    def __init__(self, model: D2LBertForSequenceClassification, accelerator: Accelerator):
        self.device = accelerator.device
        model = model.to(accelerator.device).eval()
        is_plain = isinstance(model, PreTrainedModel) and supports_fast_forward(model)
        self.model = FastClassifier(model).eval() if is_plain else model
        self.config: D2LBertConfig = model.config

    @torch.inference_mode()
    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute logits (B, C) from `input_ids`, `token_type_ids` and `attention_mask`, int64 tensors (B, L)."""
        return self.model(**batch).logits


class OnnxClassifier:
    """Computes logits with ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, config: D2LBertConfig):
        import onnxruntime  # an optional dependency

        self.config, self.device = config, torch.device("cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # ONNX Runtime does not read OMP_NUM_THREADS
        with explain_load_errors(str(path.parent), path.name):
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        (logits_BC,) = self.session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
        return torch.from_numpy(logits_BC)


LogitsFunction = TorchLogits | OnnxClassifier
Classifier = D2LBertForSequenceClassification | LogitsFunction


def as_logits_function(classifier: Classifier, accelerator: Accelerator) -> LogitsFunction:
    """Return a PyTorch model as `TorchLogits`, and an `OnnxClassifier` unchanged."""
    # Do not check for D2LBertForSequenceClassification: the class may come from the code in the model folder.
    return TorchLogits(classifier, accelerator) if isinstance(classifier, torch.nn.Module) else classifier


def batches_by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the row numbers of each batch. The pairs in a batch have similar lengths."""
    order = np.argsort(lengths, kind="stable")
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]


def compute_logits(compute: LogitsFunction, pairs: PaddedPairs, batches: Iterable[np.ndarray]) -> torch.Tensor:
    """Compute fp32 logits (R, C). Rows outside `batches` are 0. The host does not wait for the device."""
    logits_RC = torch.zeros(len(pairs), compute.config.num_labels, device=compute.device)
    for rows in batches:
        micro_batch = MicroBatch(rows.tolist(), has_labels=True)
        batch = {name: tensor for name, tensor in pairs[micro_batch].items() if name != "labels"}
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
    """Compute the logits (R, C) of encoded pairs, split across processes. Moves a PyTorch model to the device."""
    accelerator = accelerator or Accelerator(cpu=not torch.accelerator.is_available())
    compute = as_logits_function(classifier, accelerator)
    pairs = PaddedPairs(encoded, pad_token_id, device=compute.device)
    batches = batches_by_length(pairs.lengths, batch_size)[accelerator.process_index :: accelerator.num_processes]
    hide_bar = True if len(pairs) <= batch_size or not accelerator.is_local_main_process else None
    bar = tqdm(batches, desc="Predicting", unit="batch", leave=False, disable=hide_bar)
    logits_RC = compute_logits(compute, pairs, bar)
    # Only one process computes a row, and the row is zero in all others. Therefore the sum is exact.
    return accelerator.reduce(logits_RC.to(accelerator.device), "sum").cpu().numpy()
