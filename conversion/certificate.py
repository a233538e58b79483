"""`conversion_certificate.json`: where each tensor of a converted model came from, and the proof."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bert_snli.errors import BertSnliError
from bert_snli.files import CARD, CERTIFICATE, WEIGHTS, sha256_of_file
from bert_snli.tokenization import read_vocabulary
from conversion.checkpoint import Checkpoint, CheckpointFiles, open_checkpoint_files, read_checkpoint
from conversion.d2l_layout import summarize_names
from conversion.model_folder import (
    MODEL_CLASSES,
    detect_model_kind,
    read_config,
    read_tokens,
    read_weights,
    rename_to_d2l,
)
from conversion.proof import LayerDifference, prove
from conversion.reference import ReferenceModel

FORMAT_VERSION = 2
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the source or in the model. `sha256` is that of its values, little-endian in C order."""

    name: str
    shape: list[int]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """A tensor of the source and the tensor of the model that was made from it, if the model uses it."""

    source: TensorInfo
    target: TensorInfo | None


@dataclass(frozen=True)
class SourceRecord:
    """The files that were converted: names without folders, and SHA-256 of the bytes."""

    framework: str
    model_kind: str
    params: str
    params_sha256: str
    vocabulary: str
    vocabulary_sha256: str


@dataclass(frozen=True)
class Certificate:
    """The content of `conversion_certificate.json`.

    Args:
        source: the files that were converted.
        software: package → version.
        geometry: the `SIZES` in the configuration.
        tensors: each tensor before and after.
        files: other file of the model folder → SHA-256 (configuration, tokenizer, code).
        proof: difference between model and d2l's equations for each layer.
    """

    source: SourceRecord
    software: dict[str, str]
    geometry: dict[str, int]
    tensors: list[TensorRecord]
    files: dict[str, str]
    proof: list[LayerDifference]

    def write(self, folder: Path) -> None:
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        (folder / CERTIFICATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_certificate(folder: Path) -> Certificate:
    """Read the certificate in a model folder."""
    path = folder / CERTIFICATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError("another format version")
        if not isinstance(content["files"], dict):
            raise ValueError("files is not a dictionary")
        content["source"] = SourceRecord(**content["source"])
        content["proof"] = [LayerDifference(**entry) for entry in content["proof"]]
        content["tensors"] = [
            TensorRecord(*(entry[side] and _read_tensor_info(entry[side]) for side in ("source", "target")))
            for entry in content["tensors"]
        ]
        return Certificate(**content)
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; only a converted folder has one") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BertSnliError(f"{path}: not a certificate that can be read ({error}); convert again") from error


def _read_tensor_info(entry: dict) -> TensorInfo:
    return TensorInfo(**{**entry, "name": str(entry["name"])})


def describe_tensor(name: str, array: np.ndarray) -> TensorInfo:
    """The entry of a tensor in a certificate."""
    return TensorInfo(name, list(array.shape), array.dtype.name, hashlib.sha256(array.tobytes()).hexdigest())


def sha256_of_files(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a model folder, except weights, certificate and card."""
    excluded = (WEIGHTS, CERTIFICATE, CARD)
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in excluded)
    return {path.name: sha256_of_file(path) for path in files}


def verify_conversion(
    folder: str | Path, against: str | Path | None = None, vocab_file: str | Path | None = None
) -> Certificate:
    """Check a converted model folder against its certificate, and repeat the proof.

    Args:
        folder: the model folder.
        against: the checkpoint that was converted. Its tensors are then checked, too, and the proof uses them.
        vocab_file: the vocabulary of `against`, if it is not next to it.

    Returns:
        The certificate with the differences that were measured now.

    Raises:
        BertSnliError: something differs from the certificate; the message names the first difference.

    Example:
        >>> from conversion import verify_conversion
        >>> certificate = verify_conversion("quickstart/converted", against="quickstart/d2l_checkpoint")
        >>> certificate.source.framework
        'pytorch'
        >>> all(layer.in_float64 < 1e-11 for layer in certificate.proof)
        True
    """
    folder = Path(folder)
    certificate = read_certificate(folder)
    config = read_config(folder)
    files = sha256_of_files(folder)
    for name, sha256 in certificate.files.items():
        if files.get(name) != sha256:
            raise BertSnliError(f"{folder / name}: not as certified: {'changed' if name in files else 'missing'}")
    weights = read_weights(folder)
    check_tensors(weights, [record.target for record in certificate.tensors if record.target], folder / WEIGHTS)
    checkpoint = rename_to_d2l(folder, weights, config)
    if against is not None:
        with open_checkpoint_files(Path(against), Path(vocab_file) if vocab_file else None) as source:
            checkpoint = _read_certified_source(source, folder, certificate)
    reference = ReferenceModel(checkpoint, config.num_attention_heads)
    return replace(certificate, proof=prove(reference, folder, MODEL_CLASSES[detect_model_kind(folder, config)]))


def _read_certified_source(files: CheckpointFiles, folder: Path, certificate: Certificate) -> Checkpoint:
    if read_vocabulary(files.vocabulary) != read_tokens(folder):
        raise BertSnliError(f"{files.vocabulary}: not the vocabulary that {folder} was converted with")
    checkpoint = read_checkpoint(files.params)
    framework = certificate.source.framework
    if checkpoint.framework != framework:
        raise BertSnliError(
            f"{files.params}: a file of {checkpoint.framework}; {folder} was converted from one of {framework}"
        )
    arrays = {checkpoint.saved_names[name]: array for name, array in checkpoint.arrays.items()}
    check_tensors(arrays, [record.source for record in certificate.tensors], files.params)
    return checkpoint


def check_tensors(arrays: Mapping[str, np.ndarray], certified: list[TensorInfo], path: Path) -> None:
    """Compare names, shapes, types and SHA-256 of the tensors in the file `path` with a certificate."""
    expected = {info.name: info for info in certified}
    found = {name: describe_tensor(name, array) for name, array in arrays.items()}
    if different := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
        raise BertSnliError(
            f"{path}: {summarize_names(different)} not as certified: changed since, or from another model"
        )
