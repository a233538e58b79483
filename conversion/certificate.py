"""`conversion_certificate.json`: what a model folder was made from, tensor by tensor, and the proof that it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bert_snli.errors import BertSnliError
from bert_snli.files import CARD, CERTIFICATE, CONFIG, TOKENIZER, WEIGHTS, sha256_of_file
from bert_snli.modeling import D2LBertConfig
from bert_snli.tokenization import read_vocabulary
from conversion.archive import open_source
from conversion.checkpoint import Checkpoint, read_checkpoint, sha256_of
from conversion.model_folder import (
    MODEL_CLASSES,
    read_config,
    read_vocabulary_of,
    read_weights,
    rename_to_d2l,
    rules_of,
)
from conversion.proof import Difference, prove
from conversion.reference import ReferenceModel

FORMAT_VERSION = 1
GEOMETRY = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "num_labels",
    "classifier_head",
    "classifier_hidden_size",
)


@dataclass(frozen=True)
class TensorSide:
    """A tensor in the source or in the model: `sha256` is of its numbers, little-endian in C order."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """Where a tensor came from and where it went; `target` is `None` for one that was left out on purpose."""

    source: TensorSide
    target: TensorSide | None


@dataclass(frozen=True)
class SourceRecord:
    """The files that were converted: names without folders, and SHA-256 of the bytes."""

    framework: str
    form: str
    params: str
    params_sha256: str
    vocabulary: str
    vocabulary_sha256: str
    archive: str | None
    archive_sha256: str | None


@dataclass(frozen=True)
class Certificate:
    """All that is known of a conversion. `geometry` holds the fields of the configuration that shape the numbers."""

    source: SourceRecord
    software: dict[str, str]
    geometry: dict[str, Any]
    vocabulary_sha256: str
    tensors: list[TensorRecord]
    nonfinite: list[str]
    files: dict[str, str]
    proof: list[Difference]

    def write(self, folder: Path) -> None:
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        (folder / CERTIFICATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_certificate(folder: Path, name: str = CERTIFICATE) -> Certificate:
    """The certificate in a model folder.

    Raises:
        BertSnliError: there is none, or not one that this version can read.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format_version", None) != FORMAT_VERSION:
            raise ValueError("it is another version's")
        if content["geometry"].keys() != set(GEOMETRY):
            raise ValueError("its geometry is not complete")
        content["source"] = SourceRecord(**content["source"])
        content["proof"] = [Difference(**entry) for entry in content["proof"]]
        content["tensors"] = [
            TensorRecord(_side(entry["source"]), _side(entry["target"]) if entry["target"] else None)
            for entry in content["tensors"]
        ]
        return Certificate(**content)
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; only folders that bert-snli convert wrote have one") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BertSnliError(f"{path}: not a certificate that can be read ({error}); convert again") from error


def _side(entry: dict) -> TensorSide:
    if not isinstance(entry["name"], str):
        raise ValueError("the name of a tensor is no text")
    return TensorSide(**{**entry, "shape": tuple(entry["shape"])})


def sha256_of_files(folder: Path) -> dict[str, str]:
    """SHA-256 of what a folder holds beside weights, certificate and card: configuration, tokenizer, code."""
    apart = (WEIGHTS, CERTIFICATE, CARD)
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in apart)
    return {path.name: sha256_of_file(path) for path in files}


def geometry_of(config: D2LBertConfig) -> dict[str, Any]:
    """The fields of `config` that a certificate vouches for."""
    return {name: getattr(config, name) for name in GEOMETRY}


def sha256_of_tokens(tokens: list[str]) -> str:
    """SHA-256 of a vocabulary, whatever file it lies in."""
    return hashlib.sha256(json.dumps(tokens).encode("ascii")).hexdigest()


def verify_conversion(
    folder: str | Path, against: str | Path | None = None, vocabulary: str | Path | None = None
) -> Certificate:
    """Check a converted model folder against its certificate, and repeat the proof.

    Args:
        folder: the model folder.
        against: the checkpoint that was converted. Its own tensors are compared, too, and the proof starts from them.
        vocabulary: the vocabulary of `against`, if it is not next to it.

    Returns:
        The certificate with the differences that were measured now.

    Raises:
        BertSnliError: something differs from the certificate; the message names the first difference.
    """
    folder = Path(folder)
    certificate = read_certificate(folder)
    form, config = read_config(folder)
    for name, certified in certificate.geometry.items():
        if geometry_of(config).get(name) != certified:
            found = geometry_of(config).get(name)
            raise BertSnliError(f"{folder / CONFIG}: {name} is {found}, certified was {certified}; convert again")
    if sha256_of_tokens(read_vocabulary_of(folder)) != certificate.vocabulary_sha256:
        raise BertSnliError(f"{folder / TOKENIZER}: its vocabulary is not the certified one; convert again")
    files = sha256_of_files(folder)
    for name, certified in certificate.files.items():
        if files.get(name) != certified:
            raise BertSnliError(f"{folder / name}: not as certified: {'changed' if name in files else 'gone'} since")
    weights = read_weights(folder)
    check_tensors(weights, {record.target.name: record.target for record in certificate.tensors if record.target})
    rules = rules_of(form, config, weights)
    if against is None:
        book = rename_to_d2l(weights, rules)
        return _proved_again(certificate, book, folder, form)
    with open_source(Path(against), Path(vocabulary) if vocabulary else None) as source:
        if sha256_of_tokens(read_vocabulary(source.vocabulary)) != certificate.vocabulary_sha256:
            raise BertSnliError(f"{source.vocabulary}: not the vocabulary that {folder} was converted with")
        book = read_checkpoint(source.params)
        if book.framework != certificate.source.framework:
            raise BertSnliError(
                f"{against}: a file of {book.framework}; {folder} was made from one of {certificate.source.framework}"
            )
        names = {info.saved_as: name for name, info in book.tensors.items()}
        sides = [record.source for record in certificate.tensors]
        check_tensors(book, {names.get(side.name, side.name): side for side in sides})
        return _proved_again(certificate, book, folder, form)


def _proved_again(certificate: Certificate, book: Checkpoint, folder: Path, form: str) -> Certificate:
    heads = certificate.geometry["num_attention_heads"]
    differences = prove(ReferenceModel(book, heads), folder, MODEL_CLASSES[form])
    return Certificate(**{**vars(certificate), "proof": differences})


def check_tensors(found: Checkpoint, certified: Mapping[str, TensorSide]) -> None:
    """Every bit of every tensor.

    Raises:
        BertSnliError: tensors that are missing, unexpected or changed; the line names the first.
    """
    different = sorted(found.tensors.keys() ^ certified.keys())
    if not different:
        total = sum(info.nbytes for info in found.tensors.values())
        with tqdm(total=total, unit="B", unit_scale=True, desc="Verifying", disable=None, leave=False) as bar:
            for chunk in found.chunks(found.tensors):
                for name, array in chunk.items():
                    side = certified[name]
                    as_certified = (side.shape, side.dtype, side.sha256)
                    if (found.tensors[name].shape, found.tensors[name].dtype, sha256_of(array)) != as_certified:
                        different.append(name)
                    bar.update(array.nbytes)
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise BertSnliError(f"{found.path}: {different[0]}{more} not as certified: changed since, or another model's")
