"""The names that `bert_snli` and `conversion` offer to Python programs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import bert_snli
import conversion
from tests.support.checkpoints import save_d2l_checkpoint
from tests.support.processes import REPOSITORY

NAMES = [(package, name) for package in (bert_snli, conversion) for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[f"{package.__name__}.{name}" for package, name in NAMES])
def test_public_name_is_found_and_documented(package, name: str):
    found = getattr(package, name)
    assert name in dir(package)
    assert name == "__version__" or (found.__name__ == name and found.__doc__)
    if inspect.isfunction(found):
        documentation = inspect.getdoc(found)  # Python 3.13 removes the indentation of `__doc__`, older versions do not
        assert all(f"\n{section}:\n" in documentation for section in ("Args", "Returns", "Raises"))


@pytest.mark.parametrize("package", [bert_snli, conversion])
def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_checkpoint_is_converted_fine_tuned_evaluated_and_exported_in_python(
    classifier_weights, vocabulary: list[str], corpus: Path, tmp_path: Path, without_plots
):
    source = save_d2l_checkpoint(tmp_path / "d2l", classifier_weights, vocabulary)
    conversion.convert_checkpoint(str(source), str(tmp_path / "model"), num_attention_heads=2)
    assert conversion.verify_conversion(str(tmp_path / "model")).source["framework"] == "pytorch"
    conversion.export_checkpoint(str(tmp_path / "model"), str(tmp_path / "back"), format="d2l-torch")
    exported = torch.load(tmp_path / "back" / "pretrained.params", weights_only=True)
    assert all(torch.equal(exported[name], value) for name, value in classifier_weights.items())
    paths = {"model_name_or_path": str(tmp_path / "model"), "output_dir": str(tmp_path / "run")}
    arguments = bert_snli.FinetuneArguments(
        dataset_name_or_path=str(corpus), max_length=40, max_steps=1, mixed_precision="no", **paths
    )
    result = bert_snli.finetune_model(arguments)
    assert result.output_dir == tmp_path / "run"
    results = bert_snli.evaluate_model(str(tmp_path / "run"), str(corpus), split="validation")
    assert results["accuracy"] == pytest.approx(result.metrics["eval_accuracy"])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    predict = bert_snli.Predictor(model, AutoTokenizer.from_pretrained(tmp_path / "run"))
    (scores,) = predict([("A man inspects a uniform.", "The man is sleeping.")])
    assert scores.keys() == {"entailment", "contradiction", "neutral"} and sum(scores.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["bert_snli import load_snli", "conversion import convert_checkpoint"])
def test_first_use_of_a_name_registers_the_auto_classes(name: str, run_python, model_folder: Path):
    code = (
        f"import sys; from {name}; from transformers import AutoModelForSequenceClassification; "
        "print([type(AutoModelForSequenceClassification.from_pretrained(sys.argv[1])).__module__])"
    )
    done: subprocess.CompletedProcess = run_python("-c", code, model_folder)
    assert ast.literal_eval(done.stdout) == ["bert_snli.modeling.modeling_d2l_bert"], done.stderr


def test_public_names_need_no_optional_dependency(run_python):
    optional = ["gradio", "onnx", "onnxruntime", "onnxscript", "tensorboard", "trackio", "wandb"]
    code = f"import sys; sys.modules.update(dict.fromkeys({optional})); from bert_snli import *; print(export_onnx)"
    done: subprocess.CompletedProcess = run_python("-c", code)
    assert done.stdout.startswith("<function export_onnx"), done.stderr


def test_packages_import_only_declared_dependencies():
    project = pytest.importorskip("tomllib").loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [line for name in ("onnx", "serve") for line in project["optional-dependencies"][name]]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"] + extras}
    imported = set()
    for path in [*(REPOSITORY / "bert_snli").rglob("*.py"), *(REPOSITORY / "conversion").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
    imported -= {*sys.stdlib_module_names, "bert_snli", "conversion"}
    distributions = packages_distributions()
    needed = {canonicalize_name(name) for package in imported for name in set(distributions[package])}
    assert needed <= declared
    assert declared - needed <= {"onnxscript"}
