"""The names that `bert_snli` and `conversion` offer to Python programs."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

import bert_snli
import conversion

NAMES = [(package, name) for package in (bert_snli, conversion) for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[f"{package.__name__}.{name}" for package, name in NAMES])
def test_public_name_is_found_and_documented(package, name: str):
    found = getattr(package, name)
    assert name in dir(package)
    assert name == "__version__" or (found.__name__ == name and found.__doc__)


@pytest.mark.parametrize("package", [bert_snli, conversion])
def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_first_use_of_a_name_registers_the_auto_classes(run_python, model_folder: Path):
    code = (
        "import sys; from bert_snli import load_snli; from transformers import AutoModelForSequenceClassification; "
        "print([type(AutoModelForSequenceClassification.from_pretrained(sys.argv[1])).__module__])"
    )
    done: subprocess.CompletedProcess = run_python("-c", code, model_folder)
    assert ast.literal_eval(done.stdout) == ["bert_snli.modeling.modeling_d2l_bert"], done.stderr
