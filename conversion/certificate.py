"""`conversion_certificate.json`: the source of each tensor of a converted model, and the proof."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_snli.errors import BertSnliError
from bert_snli.files import CARD, CERTIFICATE, WEIGHTS, sha256_of_file
from conversion.d2l_layout import summarize_names
from conversion.model_folder import MODEL_CLASSES, read_config, read_weights, rename_to_d2l
from conversion.proof import LayerDifference, prove
from conversion.reference import ReferenceModel

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Certificate:
    """The content of `conversion_certificate.json`."""

    source: dict[str, str]  # framework, kind of model, and the name and SHA-256 of both source files
    software: dict[str, str]  # package → version
    geometry: dict[str, int]  # the sizes in the configuration
    # Each tensor of the source, and the tensor in the model (None if it is not used), see `describe_tensor`.
    tensors: list[dict[str, Any]]
    files: dict[str, str]  # other file of the model folder → SHA-256 (configuration, tokenizer, code)
    proof: list[LayerDifference]  # differences from d2l's equations

    def write(self, folder: Path) -> None:
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        (folder / CERTIFICATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_certificate(folder: Path) -> Certificate:
    """Read the certificate in a model folder."""
    path = folder / CERTIFICATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError("unknown format version")
        content["proof"] = [LayerDifference(**entry) for entry in content["proof"]]
        return Certificate(**content)
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; give a folder that convert wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BertSnliError(f"{path}: cannot be read as a certificate ({error}); convert again") from error


def describe_tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    """Return name, shape, type and SHA-256 of the values (little-endian, C order)."""
    sha256 = hashlib.sha256(array.tobytes()).hexdigest()
    return {"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "sha256": sha256}


def sha256_of_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files in a model folder, except weights, certificate and card."""
    excluded = (WEIGHTS, CERTIFICATE, CARD)
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in excluded)
    return {path.name: sha256_of_file(path) for path in files}


def verify_conversion(folder: str | Path) -> Certificate:
    """Check a converted model folder against its certificate, and repeat the proof.

    Args:
        folder: the model folder.

    Returns:
        The certificate with newly measured differences.

    Raises:
        BertSnliError: something differs from the certificate; the message names the first difference.

    Example:
        >>> from conversion import verify_conversion
        >>> certificate = verify_conversion("quickstart/converted")
        >>> certificate.source["framework"]
        'pytorch'
        >>> all(layer.in_float64 < 1e-11 for layer in certificate.proof)
        True
    """
    folder = Path(folder)
    certificate = read_certificate(folder)
    files = sha256_of_files(folder)
    for name, sha256 in certificate.files.items():
        if files.get(name) != sha256:
            problem = "changed" if name in files else "missing"
            raise BertSnliError(f"{folder / name}: {problem} since conversion; convert again")
    weights = check_tensors(folder, certificate.tensors)
    config, model_kind = read_config(folder)
    checkpoint = rename_to_d2l(folder / WEIGHTS, weights, model_kind, config.num_hidden_layers)
    reference = ReferenceModel(checkpoint, config.num_attention_heads)
    return replace(certificate, proof=prove(reference, folder, MODEL_CLASSES[model_kind]))


def check_tensors(folder: Path, records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Read the weights of a model folder, and compare names, shapes, types and SHA-256 with a certificate."""
    weights = read_weights(folder)
    expected = {record["target"]["name"]: record["target"] for record in records if record["target"]}
    found = {name: describe_tensor(name, array) for name, array in weights.items()}
    if different := [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]:
        raise BertSnliError(f"{folder / WEIGHTS}: {summarize_names(different)} changed since conversion; convert again")
    return weights
