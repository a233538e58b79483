"""A d2l checkpoint with its vocabulary, opened and checked.

This module imports no model class, so that a damaged file is reported early.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bert_snli.tokenization import read_vocabulary
from conversion.archive import Source, open_source
from conversion.checkpoint import Checkpoint, read_checkpoint
from conversion.d2l_layout import Rule, check_names, count_blocks, detect_form, refuse_other_architectures, rules_for


@dataclass(frozen=True)
class CheckedSource:
    """A readable checkpoint that has the tensors of a d2l BERT.

    Args:
        files: where its parameters and its vocabulary are.
        tokens: the vocabulary, in the order of the ids.
        checkpoint: names, shapes and types of the tensors, and how to read them.
        form: which of d2l's models it is, see `conversion.d2l_layout.detect_form`.
        rules: how each tensor is named here and there.
    """

    files: Source
    tokens: list[str]
    checkpoint: Checkpoint
    form: str
    rules: list[Rule]


@contextmanager
def open_checked_source(source: Path, vocabulary: Path | None) -> Iterator[CheckedSource]:
    """Open `source` (a folder, a zip file or a params file) and check it. An unpacked zip file is deleted at the end.

    Raises:
        BertSnliError: a file is missing or damaged, or the tensors are not those of a d2l BERT.
    """
    with open_source(source, vocabulary) as files:
        tokens = read_vocabulary(files.vocabulary)
        checkpoint = read_checkpoint(files.params)
        refuse_other_architectures(checkpoint.path, checkpoint.tensors)
        form = detect_form(checkpoint.tensors)
        rules = rules_for(form, count_blocks(checkpoint.tensors))
        check_names(checkpoint.tensors, (rule.d2l(checkpoint.framework) for rule in rules), str(files.params))
        yield CheckedSource(files, tokens, checkpoint, form, rules)
