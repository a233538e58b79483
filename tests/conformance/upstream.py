"""The test classes of the installed `transformers`, imported from the folder that `fetch` made.

The source distribution has only the modules at the top of `tests/`. Placeholders stand in for what they import from
its subfolders. The tests of pipelines, generation and export are in those subfolders, so they do not run here.
"""

from __future__ import annotations

import importlib
import sys
import unittest
from collections.abc import Callable
from types import ModuleType

from tests.conformance.fetch import PACKAGE


def add_placeholder(name: str, **attributes: object) -> None:
    """Register the module `name` of the package, with its parent package, unless it was downloaded."""
    if PACKAGE.joinpath(*name.split(".")).with_suffix(".py").exists():
        return
    parent, _, _ = name.partition(".")
    for part in (parent, name):
        module = sys.modules.setdefault(f"{PACKAGE.name}.{part}", ModuleType(f"{PACKAGE.name}.{part}"))
    vars(module).update(attributes)


def upstream(module: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE.name}.{module}")


def tests_with_prefix(test_class: type, prefix: str) -> list[str]:
    """Return the tests whose name is `prefix`, or begins with it where a test has parameters."""
    names = (name for name in dir(test_class) if name == prefix or name.startswith(f"{prefix}_"))
    return [name for name in names if callable(getattr(test_class, name))]


def skip_tests(reasons: dict[str, str]) -> Callable[[type], type]:
    """Skip inherited tests by name. A name that `transformers` no longer has becomes a failing test."""

    def decorate(test_class: type) -> type:
        for prefix, reason in reasons.items():
            names = tests_with_prefix(test_class, prefix)
            for name in names:
                skip = unittest.skip(f"not applicable, {reason}")
                setattr(test_class, name, skip(getattr(test_class, name)))
            if not names:
                message = f"transformers has no {prefix}; remove the skip"
                setattr(test_class, f"{prefix}_exists", lambda self, message=message: self.fail(message))
        return test_class

    return decorate


sys.path.append(str(PACKAGE.parent))
add_placeholder("exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
add_placeholder("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
# Other values than the defaults, for what every configuration has.
add_placeholder(
    "utils.test_configuration_utils",
    config_common_kwargs={
        "architectures": ["AnyModel"],
        "chunk_size_feed_forward": 5,
        "dtype": "float16",
        "id2label": {0: "one label"},
        "label2id": {"one label": 0},
        "output_attentions": True,
        "output_hidden_states": True,
        "problem_type": "regression",
        "return_dict": False,
    },
)

ConfigTester = upstream("test_configuration_common").ConfigTester
ModelTesterMixin = upstream("test_modeling_common").ModelTesterMixin
TokenizersBackendTesterMixin = upstream("test_tokenizers_backend_mixin").TokenizersBackendTesterMixin
TokenizerTesterMixin = upstream("test_tokenization_common").TokenizerTesterMixin
TrainingTesterMixin = upstream("test_training_mixin").TrainingTesterMixin
