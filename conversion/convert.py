"""Convert a d2l checkpoint to a model folder of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bert_snli.files import check_output_dir
from conversion.source import open_checked_source

if TYPE_CHECKING:
    from conversion.certificate import Certificate


def convert_checkpoint(
    source: Path,
    output_dir: Path,
    *,
    vocabulary: Path | None = None,
    num_attention_heads: int | None = None,
    do_lower_case: bool = True,
    oov_fallback: bool = False,
    allow_nonfinite: bool = False,
    overwrite_output_dir: bool = False,
) -> Certificate:
    """Convert `source` (folder, zip or params file), prove it, and write a model folder to `output_dir`.

    The weights keep their type. Where tensors differ in type, all get the widest one, which changes no number.

    Raises:
        BertSnliError: anything wrong with the source or the output folder; nothing is written then.
    """
    check_output_dir(output_dir, overwrite=overwrite_output_dir)
    with open_checked_source(source, vocabulary) as checked:
        from conversion.write_model import write_model_folder  # imports the model classes, which takes seconds

        return write_model_folder(
            checked,
            output_dir,
            num_attention_heads=num_attention_heads,
            do_lower_case=do_lower_case,
            oov_fallback=oov_fallback,
            allow_nonfinite=allow_nonfinite,
            overwrite_output_dir=overwrite_output_dir,
        )
