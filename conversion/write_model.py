"""Write a converted checkpoint as a model folder, with a record and a proof of every tensor."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from bert_snli.errors import BertSnliError
from bert_snli.files import atomic_folder, sha256_of_file
from bert_snli.tokenization import build_tokenizer
from conversion.archive import Source
from conversion.certificate import (
    Certificate,
    SourceRecord,
    TensorRecord,
    TensorSide,
    check_tensors,
    geometry_of,
    sha256_of_files,
    sha256_of_tokens,
)
from conversion.checkpoint import Checkpoint, TensorInfo, sha256_of
from conversion.d2l_layout import Rule, check_names
from conversion.geometry import read_geometry
from conversion.model_folder import (
    MODEL_CLASSES,
    model_shapes,
    read_vocabulary_of,
    read_weights,
    save_all_but_weights,
    write_weights,
)
from conversion.proof import prove
from conversion.reference import ReferenceModel
from conversion.source import CheckedSource
from conversion.weights_file import SAFETENSORS_DTYPES

SOFTWARE = ("bert-snli", "transformers", "tokenizers", "torch", "numpy")


def write_model_folder(
    source: CheckedSource,
    output_dir: Path,
    *,
    num_attention_heads: int | None,
    do_lower_case: bool,
    oov_fallback: bool,
    allow_nonfinite: bool,
    overwrite_output_dir: bool,
    finish: Callable[[Path], None] | None,
) -> Certificate:
    """Write `source` to `output_dir` as a model folder of `transformers`; see `conversion.convert.convert_checkpoint`.

    Raises:
        BertSnliError: the tensors and the vocabulary do not fit together, or hold non-finite values. Nothing is
            written then.
    """
    files, checkpoint, tokens = source.files, source.checkpoint, source.tokens
    config = read_geometry(checkpoint, source.form, num_attention_heads)
    if len(tokens) != config.vocab_size:
        raise BertSnliError(
            f"{files.vocabulary}: {len(tokens)} tokens, but {files.params} has {config.vocab_size} embedding "
            "rows; take the vocab.json that was saved with these weights"
        )
    targets = _targets(checkpoint, source.rules, model_shapes(source.form, config))
    tokenizer = build_tokenizer(
        tokens,
        model_max_length=config.max_position_embeddings,
        do_lower_case=do_lower_case,
        oov_fallback=oov_fallback,
    )
    config.pad_token_id = tokenizer.pad_token_id
    with atomic_folder(output_dir, overwrite=overwrite_output_dir) as folder:
        dtype = next(iter(targets.values())).dtype
        save_all_but_weights(folder, source.form, config, dtype, tokenizer)
        if read_vocabulary_of(folder) != tokens:
            raise BertSnliError(f"{files.vocabulary}: the tokenizer made from it has other ids; please report this")
        records, nonfinite = _copy_tensors(checkpoint, source.rules, targets, folder)
        if nonfinite and not allow_nonfinite:
            raise BertSnliError(
                f"{files.params}: NaN or infinite numbers in {_some(nonfinite)}; a model with them is broken: get "
                "the file again, or add --allow_nonfinite to convert it all the same"
            )
        check_tensors(read_weights(folder), {record.target.name: record.target for record in records if record.target})
        book = ReferenceModel(checkpoint, config.num_attention_heads)
        certificate = Certificate(
            source=_source_record(files, checkpoint, source.form),
            software={name: importlib.metadata.version(name) for name in SOFTWARE},
            geometry=geometry_of(config),
            vocabulary_sha256=sha256_of_tokens(tokens),
            tensors=records,
            nonfinite=nonfinite,
            files=sha256_of_files(folder),
            proof=prove(book, folder, MODEL_CLASSES[source.form]),
        )
        certificate.write(folder)
        if finish:
            finish(folder)
    return certificate


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _targets(checkpoint: Checkpoint, rules: list[Rule], expected: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """What `model.safetensors` will hold, in the order of `rules`.

    Raises:
        BertSnliError: a name is not the model's; a shape does not fit the others; numbers that are no weights.
    """
    kept_rules = [rule for rule in rules if rule.hugging_face]
    kept = {rule.hugging_face: checkpoint.tensors[rule.d2l(checkpoint.framework)] for rule in kept_rules}
    check_names(kept, expected, str(checkpoint.path))
    for rule in kept_rules:
        source, shape = kept[rule.hugging_face], expected[rule.hugging_face]
        if source.shape != ((1, *shape) if rule.leading_one else shape):
            raise BertSnliError(
                f"{checkpoint.path}: {source.saved_as} has shape {source.shape}, but the other tensors ask for {shape}"
            )
        if source.dtype not in SAFETENSORS_DTYPES:
            raise BertSnliError(
                f"{checkpoint.path}: {source.saved_as} is of type {source.dtype}; save float16, float32 or float64"
            )
    widest = np.result_type(*(source.dtype for source in kept.values())).name
    return {name: replace(source, shape=expected[name], dtype=widest) for name, source in kept.items()}


def _copy_tensors(
    checkpoint: Checkpoint, rules: list[Rule], targets: dict[str, TensorInfo], folder: Path
) -> tuple[list[TensorRecord], list[str]]:
    """Copy every tensor into `folder`; a record of each, and the names of those with NaN or infinite numbers."""
    by_source = {rule.d2l(checkpoint.framework): rule for rule in rules}
    records, nonfinite = [], []
    with write_weights(folder, targets) as weights, _bar(checkpoint) as bar:
        for name, array in _arrays(checkpoint, by_source):
            info, rule = checkpoint.tensors[name], by_source[name]
            source = TensorSide(info.saved_as, info.shape, info.dtype, sha256_of(array))
            target = None
            if rule.hugging_face:
                if not np.isfinite(array).all():
                    nonfinite.append(info.saved_as)
                wanted = targets[rule.hugging_face]
                copy = array.astype(wanted.dtype, copy=False)
                weights.append(copy)
                same = copy.dtype == array.dtype
                target = TensorSide(
                    rule.hugging_face, wanted.shape, wanted.dtype, source.sha256 if same else sha256_of(copy)
                )
            records.append(TensorRecord(source, target))
            bar.update(info.nbytes)
    return records, nonfinite


def _arrays(checkpoint: Checkpoint, names: Iterable[str]) -> Iterable[tuple[str, np.ndarray]]:
    for chunk in checkpoint.chunks(names):
        yield from chunk.items()


def _bar(checkpoint: Checkpoint) -> tqdm:
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    return tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=None, leave=False)


def _source_record(files: Source, checkpoint: Checkpoint, form: str) -> SourceRecord:
    return SourceRecord(
        framework=checkpoint.framework,
        form=form,
        params=files.params.name,
        params_sha256=sha256_of_file(files.params),
        vocabulary=files.vocabulary.name,
        vocabulary_sha256=sha256_of_file(files.vocabulary),
        archive=files.archive.name if files.archive else None,
        archive_sha256=sha256_of_file(files.archive) if files.archive else None,
    )
