"""Convert a d2l checkpoint to a model folder of `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bert_snli.files import check_output_dir
from bert_snli.tokenization import read_vocabulary
from conversion.checkpoint import open_checkpoint_files, read_checkpoint

if TYPE_CHECKING:
    from conversion.certificate import Certificate


def convert_checkpoint(
    source: str | Path,
    output_dir: str | Path,
    *,
    vocab_file: str | Path | None = None,
    num_attention_heads: int | None = None,
    do_lower_case: bool = True,
    overwrite_output_dir: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> Certificate:
    """Convert a d2l checkpoint to a model folder of `transformers`, and prove that the numbers are the same.

    The weights get the widest type of the tensors in the checkpoint, which changes no value.

    Args:
        source: a folder, a zip file or a params file.
        output_dir: the model folder to write.
        vocab_file: the vocabulary, if it is not next to the params file.
        num_attention_heads: needed if the sizes are not those of one of d2l's models.
        do_lower_case: whether the tokenizer lower-cases text.
        overwrite_output_dir: write into a folder that already holds files.
        finish: called with the complete folder before it gets its name, for example to add a model card.

    Returns:
        The certificate, which is also in `output_dir`.

    Raises:
        BertSnliError: anything wrong with the source or the output folder; nothing is written then.

    Example:
        >>> from conversion import convert_checkpoint
        >>> certificate = convert_checkpoint("quickstart/d2l_checkpoint", "converted_again", num_attention_heads=4)
        >>> len(certificate.tensors)
        45
    """
    check_output_dir(Path(output_dir), overwrite=overwrite_output_dir)
    with open_checkpoint_files(Path(source), Path(vocab_file) if vocab_file else None) as files:
        tokens, checkpoint = read_vocabulary(files.vocabulary), read_checkpoint(files.params)
        from conversion.write_model import write_model_folder  # imports the model classes, which takes seconds

        return write_model_folder(
            files,
            tokens,
            checkpoint,
            Path(output_dir),
            num_attention_heads=num_attention_heads,
            do_lower_case=do_lower_case,
            overwrite_output_dir=overwrite_output_dir,
            finish=finish,
        )
