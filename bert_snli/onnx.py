"""Run classifiers with ONNX Runtime, and choose the library that runs a model folder."""

from pathlib import Path

import torch

from bert_snli.errors import BertSnliError
from bert_snli.files import ONNX_FILE
from bert_snli.inference import LogitsFunction, has_only_onnx, load_classifier, load_config
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
OUTPUT = "logits"


class OnnxClassifier:
    """A `LogitsFunction` that computes a `model.onnx` on the CPU."""

    def __init__(self, path: Path, config: D2LBertConfig):
        import onnxruntime  # of an extra, which PyTorch's users need not install

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # ONNX Runtime does not read OMP_NUM_THREADS
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no narrower base class
            reason = str(error).partition("\n")[0]
            raise BertSnliError(f"{path}: ONNX Runtime cannot open it ({reason}); export the model again") from error
        inputs = sorted(tensor.name for tensor in self.session.get_inputs())
        if inputs != sorted(INPUTS) or [tensor.name for tensor in self.session.get_outputs()] != [OUTPUT]:
            raise BertSnliError(f"{path}: its inputs are {', '.join(inputs)}; export the model again")
        self.config = config
        self.device = torch.device("cpu")

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        (logits_BC,) = self.session.run([OUTPUT], {name: batch[name].numpy() for name in INPUTS})
        return torch.from_numpy(logits_BC)


def choose_backend(model_name_or_path: str, backend: str | None) -> str:
    """Return `backend`, or by default "onnx" for a folder that holds only `model.onnx`, else "torch"."""
    is_onnx_only = has_only_onnx(model_name_or_path)
    if backend == "onnx" and not (Path(model_name_or_path) / ONNX_FILE).is_file():
        raise BertSnliError(f"backend onnx: no {ONNX_FILE} in {model_name_or_path}; export the model first")
    if backend == "torch" and is_onnx_only:
        raise BertSnliError(
            f"backend torch: {model_name_or_path} holds only {ONNX_FILE}; use the folder that it was exported from"
        )
    return backend or ("onnx" if is_onnx_only else "torch")


def open_classifier(model_name_or_path: str, backend: str) -> D2LBertForSequenceClassification | LogitsFunction:
    """Load a fine-tuned classifier for a `backend` that `choose_backend` returned."""
    if backend == "onnx":
        return OnnxClassifier(Path(model_name_or_path) / ONNX_FILE, load_config(model_name_or_path))
    return load_classifier(model_name_or_path)
