"""What all model cards share, and the card of a converted model.

This module imports no model class and no package of an extra, because `bert-snli convert` needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined, TemplateError

from bert_snli.errors import BertSnliError
from bert_snli.files import CARD, CERTIFICATE, TRAIN_RESULTS

GENERATED = "<!-- made by bert-snli; a README.md without this line is taken for your own -->"
FRAMEWORKS = {"pytorch": "PyTorch", "mxnet": "MXNet"}
T = TypeVar("T")


def is_converted_model(folder: Path) -> bool:
    """Return whether a folder is as `bert-snli convert` wrote it: its certificate describes its weights."""
    return (folder / CERTIFICATE).is_file() and not (folder / TRAIN_RESULTS).is_file()


def make_converted_card(folder: Path, where: str, license: str | None = None) -> str:
    """Return the card of a converted model, made from its certificate.

    Args:
        folder: the model folder.
        where: what the example gives to `pipeline`, see `where_it_is`.
        license: the licence that the metadata name.

    Raises:
        BertSnliError: the certificate is missing or damaged.
    """

    def fill(text: str) -> str:
        certificate = json.loads(text)
        source, tensors = certificate["source"], certificate["tensors"]
        targets = [tensor["target"] for tensor in tensors if tensor["target"]]
        return render_card(
            "converted_model_card.md",
            license=license,
            generated=GENERATED,
            framework=FRAMEWORKS[source["framework"]],
            pretrained=source["model_kind"] == "pretraining",
            source=source,
            geometry=certificate["geometry"],
            targets=targets,
            num_dropped=len(tensors) - len(targets),
            where=where,
            certificate=CERTIFICATE,
            proof=certificate["proof"],
        )

    card = read_file(folder / CERTIFICATE, fill)
    if card is None:
        raise BertSnliError(f"{folder / CERTIFICATE}: not found; convert the checkpoint again")
    return card


def write_converted_card(folder: Path) -> None:
    """Write `README.md` into a converted model folder."""
    card = make_converted_card(folder, '"PATH OR HUB ID"')
    (folder / CARD).write_text(card, encoding="utf-8")


def where_it_is(repo_id: str, revision: str | None) -> str:
    """Return a repository as the arguments of `from_pretrained`."""
    return f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")


def render_card(template: str, **values: Any) -> str:
    """Fill one of `templates/` with `values`."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    text = resources.files("bert_snli").joinpath("templates", template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


def read_file(path: Path, parse: Callable[[str], T]) -> T | None:
    """Read and parse a file. Return None if it does not exist.

    Raises:
        BertSnliError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, TemplateError) as error:
        reason = " ".join(str(error).split())
        raise BertSnliError(f"{path}: cannot be read ({reason}); write it again or move it away") from error
