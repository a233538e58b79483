"""A fine-tuned classifier → a folder with `model.onnx`, compared with PyTorch before it is finished."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxscript  # noqa: F401 (torch.onnx needs it, and names it less plainly where it is missing)
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from bert_snli.errors import BertSnliError
from bert_snli.files import ONNX_FILE, atomic_folder, check_export_dir
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.onnx import INPUTS, OUTPUT, OnnxClassifier

OPSET = 18  # the oldest that PyTorch's exporter writes as it is, for the sake of older runtimes
# Largest |difference| of a logit, times the largest logit where that is above 1: of large ones fp32 rounds more off.
# Of int8's the figure is only reported.
TOLERANCE = {None: 1e-5, "int8": math.inf}
PROBES = ((1, 3), (1, 512), (64, 32), (8, 128))  # rows and positions
EXAMPLE = (2, 5)  # two different numbers above 1, which the exporter would take for constants


class Exported(NamedTuple):
    """Bytes of the file written and of its fp32 form, max |difference| of a logit from PyTorch's on `pairs` pairs."""

    size: int
    fp32_size: int
    difference: float
    pairs: int


class LogitsAlone(torch.nn.Module):
    """The classifier as the graph has it: three tensors in, one out."""

    def __init__(self, classifier: D2LBertForSequenceClassification):
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, attention_mask: torch.Tensor):
        return self.classifier(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


def export_onnx(
    model_name_or_path: str, output_dir: str | Path, *, quantize: str | None = None, overwrite_output_dir: bool = False
) -> Exported:
    """Export a fine-tuned model as `model.onnx`, with `config.json` and the tokenizer.

    Args:
        model_name_or_path: a model folder or a Hub id.
        output_dir: the folder to write.
        quantize: `int8` for smaller weights, see `write_int8`.
        overwrite_output_dir: write into a folder that already holds files.

    Returns:
        The sizes, and the largest difference of a logit from PyTorch.

    Raises:
        BertSnliError: not a fine-tuned model, something about the folders, or an export whose logits differ.
    """
    output_dir = Path(output_dir)
    check_export_dir(output_dir, Path(model_name_or_path), overwrite=overwrite_output_dir)
    model, tokenizer = load_classifier(model_name_or_path).float(), load_tokenizer(model_name_or_path)
    probes = [random_batch(rows, positions, model.config) for rows, positions in PROBES]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in probes]
    with atomic_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        graph, path = to_onnx(model), folder / ONNX_FILE
        if quantize:
            write_int8(graph, path)
        else:
            path.write_bytes(graph.SerializeToString())
        difference = max_difference(OnnxClassifier(path, model.config), probes, expected)
        bound = TOLERANCE[quantize] * max(1.0, torch.cat(expected).abs().max().item())
        if not difference <= bound:
            raise BertSnliError(
                f"--format onnx: logits of {model_name_or_path} as exported are {difference:.1e} from PyTorch's, "
                f"more than {bound:.0e}; nothing was written; try the versions in constraints.txt"
            )
        save_config(model.config, folder)
        tokenizer.save_pretrained(folder)
        return Exported(path.stat().st_size, graph.ByteSize(), difference, sum(rows for rows, _ in PROBES))


def random_batch(rows: int, positions: int, config: D2LBertConfig) -> dict[str, torch.Tensor]:
    """A batch of random tokens in two segments, the first row full and the others padded: three tensors (B, L)."""
    generator = torch.Generator().manual_seed(0)
    positions = min(positions, config.max_position_embeddings)
    lengths_B1 = torch.randint(3, positions + 1, (rows, 1), generator=generator)
    lengths_B1[0] = positions
    columns_L = torch.arange(positions)
    mask_BL = columns_L < lengths_B1
    return {
        "input_ids": torch.randint(config.vocab_size, (rows, positions), generator=generator),
        "token_type_ids": (mask_BL & (columns_L >= lengths_B1 // 2)).long(),
        "attention_mask": mask_BL.long(),
    }


def to_onnx(model: D2LBertForSequenceClassification) -> onnx.ModelProto:
    """The graph of `model` from `INPUTS`, int64 (batch, length), to `OUTPUT`, fp32 (batch, labels).

    The model is left with eager attention, whose graph is the plainer one: a matrix product, a sum, a softmax.
    """
    model.set_attn_implementation("eager")
    example = random_batch(*EXAMPLE, model.config)
    with quiet():
        program = torch.onnx.export(
            LogitsAlone(model).eval(),
            tuple(example[name] for name in INPUTS),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=[OUTPUT],
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
            verbose=False,
        )
    assert program is not None  # it is None only for PyTorch's older exporter
    graph = program.model_proto
    for node in graph.graph.node:  # stack traces, with the paths of this machine
        del node.metadata_props[:]
    return graph


def write_int8(graph: onnx.ModelProto, path: Path, *, per_channel: bool = True, reduce_range: bool = True) -> None:
    """Write `graph` with 8-bit integers for the weights of matrix products and embeddings.

    Activations become integers as they are computed, on a scale of the batch's own. `reduce_range` leaves one bit of
    the weights unused: on processors without VNNI two products of eight bits do not fit into the sum of sixteen.
    `per_channel` gives each column of a matrix its own scale. benchmarks/onnx.py --settings measures both.
    """
    with quiet():
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


def max_difference(
    classifier: OnnxClassifier, batches: Sequence[dict[str, torch.Tensor]], expected: Sequence[torch.Tensor]
) -> float:
    """Largest |difference| of a logit of `batches` from the `expected`; NaN where a logit is."""
    differences = [classifier(batch) - logits for batch, logits in zip(batches, expected, strict=True)]
    return torch.cat(differences).abs().max().item()


def save_config(config: D2LBertConfig, folder: Path) -> None:
    """Write `config.json` and its code; it names no code of models, as the folder holds no weights for them."""
    alone = copy.deepcopy(config)
    alone.auto_map = None
    alone.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's and the quantizer's remarks, which are for those who work on them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
