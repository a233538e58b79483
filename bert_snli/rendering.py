"""Render the templates in `templates/`: model cards, reports, the web page, and the files of a Hugging Face Space."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

TEMPLATES = Environment(
    loader=PackageLoader("bert_snli"),
    autoescape=select_autoescape(["html.jinja"]),  # escapes all text from users and models
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters.update(
    percent=lambda share: f"{share:.1%}",
    interval=lambda limits: f"{limits[0]:.1%} to {limits[1]:.1%}",
    basename=lambda path: Path(path).name or path,  # a report shows no private folders
    cell=lambda text: re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", " ".join(text.split())),  # escapes a table cell
)


def render(template: str, **values: Any) -> str:
    """Render a template. `template` is its file name without `.jinja`."""
    return TEMPLATES.get_template(f"{template}.jinja").render(**values)
