"""Export a fine-tuned classifier as `model.onnx`, which is compared with PyTorch before the folder is written."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from bert_snli.errors import BertSnliError
from bert_snli.files import ONNX_FILE, WEIGHTS, atomic_folder, check_output_dir, sha256_of_file
from bert_snli.inference import OnnxClassifier, load_classifier, load_tokenizer
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification

if TYPE_CHECKING:
    import onnx  # an optional dependency

OPSET = 18  # the oldest one that PyTorch's exporter writes directly, so that old ONNX Runtimes can read it
TOLERANCE = 1e-5  # allowed |difference| of an fp32 logit, relative to the largest |logit| if that is above 1
PROBES = ((1, 3), (1, 512), (64, 32), (8, 128))  # (rows, positions) of the batches that test the export


class ExportResult(NamedTuple):
    """The result of `export_onnx`."""

    size: int  # bytes of model.onnx
    fp32_size: int  # bytes before quantization
    difference: float  # largest |difference| of a logit from PyTorch's
    pairs: int  # number of random pairs that were compared


def export_onnx(
    model_name_or_path: str, output_dir: str | Path, *, quantize: str | None = None, overwrite_output_dir: bool = False
) -> ExportResult:
    """Export a fine-tuned model as `model.onnx`, with `config.json` and the tokenizer. Needs the extra `onnx`.

    Args:
        model_name_or_path: a model folder or a Hub id.
        output_dir: the folder to write.
        quantize: `int8` for smaller weights, see `write_int8`.
        overwrite_output_dir: write into a folder that already holds files.

    Returns:
        The sizes, and the largest difference of a logit from PyTorch.

    Raises:
        BertSnliError: the model is not fine-tuned, a folder is invalid, or the exported logits differ from PyTorch's.

    Example:
        >>> from bert_snli import export_onnx
        >>> result = export_onnx("quickstart/finetuned", "quickstart/onnx", overwrite_output_dir=True)
        >>> result.difference < 1e-4
        True
    """
    if quantize not in (None, "int8"):
        raise BertSnliError(f"quantize {quantize}: choose int8, or leave it out")
    output_dir = Path(output_dir)
    check_output_dir(output_dir, overwrite=overwrite_output_dir, model=Path(model_name_or_path))
    model, tokenizer = load_classifier(model_name_or_path).float(), load_tokenizer(model_name_or_path)
    batches = [random_batch(rows, positions, model.config) for rows, positions in PROBES]
    with torch.no_grad():
        expected = torch.cat([model(**batch).logits for batch in batches])
    with atomic_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        graph, path = to_onnx(model), folder / ONNX_FILE
        weights = Path(model_name_or_path) / WEIGHTS
        if weights.is_file():  # not for a model on the Hub
            graph.metadata_props.add(key="weights_sha256", value=sha256_of_file(weights))
        if quantize:
            write_int8(graph, path)
        else:
            path.write_bytes(graph.SerializeToString())
        classifier = OnnxClassifier(path, model.config)
        difference = (torch.cat([classifier(batch) for batch in batches]) - expected).abs().max().item()
        bound = math.inf if quantize else TOLERANCE * max(1.0, expected.abs().max().item())
        if not difference <= bound:  # also true for NaN
            what = f"the exported logits differ by {difference:.1e} from PyTorch's, more than {bound:.0e}"
            raise BertSnliError(f"{model_name_or_path}: {what}; install the versions in constraints.txt")
        model.config.auto_map = None  # the folder holds no weights for the model's code
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return ExportResult(path.stat().st_size, graph.ByteSize(), difference, len(expected))


def random_batch(rows: int, positions: int, config: D2LBertConfig) -> dict[str, torch.Tensor]:
    """Return a batch (B, L) of random tokens in two segments. All rows except the first one are padded."""
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
    """Export `model` as a graph. The inputs are int64 (batch, length), the output `logits` is fp32 (batch, labels).

    The model is switched to eager attention, because its graph is simpler: matrix products, a sum and a softmax.
    """
    import onnx  # noqa: F401 (torch.onnx needs both, and its errors are less clear if one is missing)
    import onnxscript  # noqa: F401

    model.set_attn_implementation("eager")
    example = random_batch(2, 5, model.config)  # the exporter treats a size of 1, and equal sizes, as constants
    with without_warnings():
        program = torch.onnx.export(
            model,
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example),
            output_names=["logits"],
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in example},
            verbose=False,
        )
    assert program is not None  # only PyTorch's older exporter returns None
    graph = program.model_proto
    for node in graph.graph.node:  # the metadata holds stack traces with paths of this machine
        del node.metadata_props[:]
    return graph


def write_int8(graph: onnx.ModelProto, path: Path, *, per_channel: bool = True, reduce_range: bool = True) -> None:
    """Write `graph` with 8-bit integers for the weights of matrix products and embeddings (dynamic quantization).

    `per_channel` gives each column of a matrix its own scale. `reduce_range` stores weights in 7 bits, because the sum
    of two 8-bit products may overflow on processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = {"per_channel": per_channel, "reduce_range": reduce_range, "weight_type": QuantType.QInt8}
    with without_warnings():
        quantize_dynamic(graph, path, op_types_to_quantize=["MatMul", "Gather"], **options)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide the warnings of the exporter and the quantizer, which do not help users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
