"""Classifiers that ONNX Runtime computes, and who computes what a folder holds."""

from __future__ import annotations

from pathlib import Path

import torch

from bert_snli.errors import BertSnliError
from bert_snli.files import ONNX_FILE
from bert_snli.inference import LogitsFunction, has_only_onnx, load_classifier, load_config
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
OUTPUT = "logits"


class OnnxClassifier:
    """A `LogitsFunction` over a `model.onnx`; it computes on the CPU.

    Raises:
        BertSnliError: a file that ONNX Runtime cannot open, or of another model.
    """

    def __init__(self, path: Path, config: D2LBertConfig):
        import onnxruntime  # an extra; who stays with PyTorch does without it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # it minds OMP_NUM_THREADS; ONNX Runtime does not
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # what ONNX Runtime raises has no narrower ancestor
            reason = str(error).partition("\n")[0]
            raise BertSnliError(f"{path}: ONNX Runtime cannot open it ({reason}); export the model again") from error
        names = {tensor.name for tensor in self.session.get_inputs()}, {t.name for t in self.session.get_outputs()}
        if names != (set(INPUTS), {OUTPUT}):
            raise BertSnliError(f"{path}: its inputs are {', '.join(sorted(names[0]))}; export the model again")
        self.config = config
        self.device = torch.device("cpu")

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        (logits_BC,) = self.session.run([OUTPUT], {name: batch[name].numpy() for name in INPUTS})
        return torch.from_numpy(logits_BC)


def choose_backend(model_name_or_path: str, backend: str | None) -> str:
    """`backend`, and where it is None: "onnx" for a folder with `model.onnx` and no weights of PyTorch, else "torch".

    Raises:
        BertSnliError: the folder does not hold what `backend` needs.
    """
    folder = Path(model_name_or_path)
    has_onnx = (folder / ONNX_FILE).is_file()
    alone = has_only_onnx(model_name_or_path)
    if backend == "onnx" and not has_onnx:
        raise BertSnliError(
            f"--backend onnx: no {ONNX_FILE} in {folder}; write one: "
            f"bert-snli export {folder} --format onnx --output_dir ..."
        )
    if backend == "torch" and alone:
        raise BertSnliError(
            f"--backend torch: {folder} holds {ONNX_FILE} alone; leave the option out, or name the folder that it was "
            "exported from"
        )
    return backend or ("onnx" if alone else "torch")


def open_classifier(model_name_or_path: str, backend: str) -> D2LBertForSequenceClassification | LogitsFunction:
    """A fine-tuned classifier, for `predict_logits` and `Predictor`; `backend` as `choose_backend` gives it.

    Raises:
        BertSnliError: nothing there, or not a fine-tuned model.
    """
    if backend == "onnx":
        return OnnxClassifier(Path(model_name_or_path) / ONNX_FILE, load_config(model_name_or_path))
    return load_classifier(model_name_or_path)
