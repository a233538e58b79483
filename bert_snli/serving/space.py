"""A folder that is a Hugging Face Space: the page, the model, and a copy of this package, ready to upload.

The Space holds a copy of the package, so that it does not depend on a published release.
"""

import shutil
import sys
from importlib.metadata import requires, version
from importlib.resources import as_file, files
from pathlib import Path

from packaging.requirements import Requirement

from bert_snli.files import atomic_folder, check_output_dir
from bert_snli.serving.explanation import ExplainedPredictor
from bert_snli.serving.page import TEMPLATES

# The files of a model folder that inference needs.
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "*.py")


def write_space(model_name_or_path: str, folder: Path) -> None:
    """Write a Space of a fine-tuned model. A local model is copied into it."""
    check_output_dir(folder)
    name = ExplainedPredictor(model_name_or_path).name  # fails for a model that the Space could not load
    source = Path(model_name_or_path)
    is_local = source.is_dir()
    readme = TEMPLATES.get_template("README.md.jinja").render(
        gradio_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        hub_id=None if is_local else model_name_or_path,
        name=name,
    )
    model = f'str(Path(__file__).parent / "models" / {name!r})' if is_local else repr(model_name_or_path)
    app = TEMPLATES.get_template("app.py.jinja").render(model=model)
    with atomic_folder(folder) as space:
        for filename, text in {"README.md": readme, "app.py": app, "requirements.txt": list_requirements()}.items():
            (space / filename).write_text(text, encoding="utf-8")
        with as_file(files("bert_snli")) as package:
            shutil.copytree(package, space / "bert_snli", ignore=shutil.ignore_patterns("__pycache__"))
        if is_local:
            (space / "models" / name).mkdir(parents=True)
            for path in {path for pattern in MODEL_FILES for path in source.glob(pattern)}:
                shutil.copyfile(path, space / "models" / name / path.name)


def list_requirements() -> str:
    """Return the packages of `bert-snli[serve]` in the installed versions, as lines of requirements.txt.

    PyPI does not have local versions such as `2.8.0+cpu`, so their suffix is left out.
    """
    requirements = map(Requirement, requires("bert-snli") or [])
    names = [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": "serve"})]
    return "".join(f"{name}=={version(name).split('+')[0]}\n" for name in sorted(names))
