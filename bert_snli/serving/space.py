"""A folder that is a Hugging Face Space: the page, the code behind it and the model, ready to upload.

The Space carries a copy of this package instead of asking pip for it: it then runs the code that it was made with,
whether or not that was ever published.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

from bert_snli.files import atomic_folder, check_output_dir
from bert_snli.serving.answering import Answerer

PARAMETER = "space"
MODELS = "models"
# Of a model folder, what opening it takes; what fine-tuning left beside it stays behind.
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "*.py")
# The dependencies of bert-snli that the page needs.
REQUIREMENTS = (
    "accelerate",
    "datasets",
    "filelock",
    "gradio",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
APP = '''\
"""The Space: `python app.py` serves it here as well."""

import os
from pathlib import Path

from bert_snli.serving.server import serve

serve(
    {model},
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
'''
README = """\
---
title: Does it follow?
emoji: 🧾
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
{models}---

Natural language inference with {model}: does a hypothesis follow from a premise, contradict it, or neither?

Made by `bert-snli serve {model} --space ...`. Try it here first, then upload it:

    pip install -r requirements.txt
    GRADIO_SERVER_NAME=127.0.0.1 python app.py

    hf repos create USER/NAME --type space --sdk gradio
    hf upload USER/NAME . --type space
"""


def write_space(model_name_or_path: str, folder: Path) -> None:
    """Write a Space of a fine-tuned model, which is copied if it is a local one.

    Raises:
        BertSnliError: no fine-tuned model; the folder holds files already or cannot be written.
    """
    check_output_dir(folder, name=PARAMETER)
    name = Answerer(model_name_or_path).name  # a Space that cannot start is found out here
    source = Path(model_name_or_path)
    local = source.is_dir()
    model = f"str(Path(__file__).parent / {MODELS!r} / {name!r})" if local else repr(model_name_or_path)
    readme = README.format(
        gradio=version("gradio"),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        models="" if local else f"models: [{model_name_or_path}]\n",
        model=name,
    )
    with atomic_folder(folder, name=PARAMETER) as space:
        (space / "app.py").write_text(APP.format(model=model), encoding="utf-8")
        (space / "requirements.txt").write_text("".join(map(_requirement, REQUIREMENTS)), encoding="utf-8")
        (space / "README.md").write_text(readme, encoding="utf-8")
        with as_file(files("bert_snli")) as package:
            shutil.copytree(package, space / "bert_snli", ignore=shutil.ignore_patterns("__pycache__"))
        if local:
            (space / MODELS / name).mkdir(parents=True)
            for path in {path for pattern in MODEL_FILES for path in source.glob(pattern)}:
                shutil.copyfile(path, space / MODELS / name / path.name)


def _requirement(package: str) -> str:
    """A line of requirements.txt with the version that is here, but for `+cpu` and the like, which PyPI has not."""
    return f"{package}=={version(package).split('+')[0]}\n"
