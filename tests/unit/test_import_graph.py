"""The imports of the packages, as `docs/import_graph.py` reads and draws them."""

from __future__ import annotations

import runpy
from graphlib import CycleError
from pathlib import Path

import pytest

from tests.support.processes import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "docs" / "import_graph.py"))


def test_imports_of_the_packages_have_no_cycle():
    rows = SCRIPT["find_rows"](SCRIPT["read_imports"]())
    assert rows["cli"] == max(rows.values()) and rows["modeling"] == 0


def test_imports_within_functions_are_read_and_those_for_type_checkers_are_not(tmp_path: Path):
    for folder, name, text in (
        ("bert_snli", "__init__.py", ""),
        ("bert_snli", "hub.py", "def push():\n    from bert_snli import files"),
        ("bert_snli", "files.py", "import conversion.export\nimport bert_snli.data.snli, os"),
        ("bert_snli/data", "snli.py", "if TYPE_CHECKING:\n    from bert_snli.hub import push\nfrom . import layouts"),
        ("conversion", "export.py", "from bert_snli.data.snli import load_snli"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    graph = SCRIPT["read_imports"](tmp_path)
    assert graph == {"hub": {"files"}, "files": {"conversion", "data"}, "conversion": {"data"}, "data": set()}
    assert SCRIPT["find_rows"](graph) == {"data": 0, "conversion": 1, "files": 2, "hub": 3}
    assert SCRIPT["without_implied"](graph) == graph | {"files": {"conversion"}}


def test_cycle_is_found():
    with pytest.raises(CycleError):
        SCRIPT["find_rows"]({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_picture_is_drawn(tmp_path: Path):
    SCRIPT["draw"](SCRIPT["read_imports"](), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
