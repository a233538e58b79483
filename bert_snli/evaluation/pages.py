"""A report as pages: `report.md`, `report.html` (one file, pictures inside), `report.json`, and the pictures."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader

from bert_snli.errors import BertSnliError
from bert_snli.evaluation.comparison import describe_swapped_labels
from bert_snli.evaluation.plots import plot_confusion_matrix, plot_reliability, plot_slices
from bert_snli.files import atomic_folder

PICTURES = {
    "confusion_matrix.png": "Confusion matrix: gold label by predicted label",
    "reliability.png": "Reliability: accuracy over confidence",
    "slices.png": "Accuracy by length, word overlap and unknown words",
}


def check_report_dir(folder: Path, model: str, weights_sha256: str | None) -> None:
    """Refuse a folder with a report on other weights. A report on the same weights may be replaced.

    Args:
        weights_sha256: of the file of weights; None for a model on the Hub, which is compared by its name.

    Raises:
        BertSnliError: the report there is on other weights, or does not say on which.
    """
    path = folder / "report.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        old_model, old_sha256 = old["model"], old["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        old_model, old_sha256 = None, None
    if old_sha256 != weights_sha256 or (weights_sha256 is None and old_model != model):
        whose = f"a report on other weights ({old_model})" if old_model else "a report.json that names no model"
        raise BertSnliError(f"--report {folder}: holds {whose}; name another folder, or delete that report")


def write_report(report: dict, folder: Path) -> list[Path]:
    """Write the pages of `full_report` into `folder`, all of them or none; returns the pages' paths.

    Raises:
        BertSnliError: the folder cannot be written.
    """
    with atomic_folder(folder, overwrite=True) as temporary:
        accuracy = f"{report['split']}: accuracy {report['accuracy']:.3f}"
        plot_confusion_matrix(report["confusion_matrix"], accuracy, temporary / "confusion_matrix.png")
        plot_reliability(report["calibration"], temporary / "reliability.png")
        plot_slices(report["slices"], report["accuracy"], temporary / "slices.png")
        (temporary / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        for name in ("report.md", "report.html"):
            pictures = {picture: _inline(temporary / picture) for picture in PICTURES}
            page = (
                _templates()
                .get_template(f"{name}.jinja")
                .render(
                    report=report,
                    captions=PICTURES,
                    pictures=pictures,
                    warning=describe_swapped_labels(report["swapped_labels"]) if report["swapped_labels"] else None,
                )
            )
            (temporary / name).write_text(page, encoding="utf-8")
    return [folder / name for name in ("report.md", "report.html", "report.json")]


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("bert_snli.evaluation"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["between"] = lambda ends: f"{ends[0]:.1%} to {ends[1]:.1%}"
    environment.filters["basename"] = lambda path: Path(path).name or path  # where it lies is nobody's business
    environment.filters["cell"] = _cell
    return environment


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, as it is read."""
    line = " ".join(text.split())
    return "".join("\\" + character if character in "\\`*_{}[]<>#|~$&" else character for character in line)
