"""Fine-tuning with wandb and trackio, without a network.

`tests/integration/test_run_folder.py` tests TensorBoard.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import import_or_skip
from tests.support.finetuning import read_metrics, run_finetune

CHANGES = {"max_steps": 7, "logging_steps": 2}
NAMES = {"train_loss": "train/loss", "learning_rate": "train/learning_rate", "eval_accuracy": "eval/accuracy"}
pytestmark = pytest.mark.usefixtures("without_plots")


def expected_history(output_dir: Path) -> dict[int, dict[str, float]]:
    """Return the metrics of `metrics.jsonl` by step, with the names that trackers show."""
    history: dict[int, dict[str, float]] = {}
    for entry in read_metrics(output_dir):
        # The training metrics of an evaluation are means over the epoch, which trackers do not get.
        names = ["eval_accuracy"] if "eval_accuracy" in entry else ["train_loss", "learning_rate"]
        history.setdefault(entry["step"], {}).update({NAMES[name]: entry[name] for name in names})
    return history


def read_wandb_records(path: Path) -> Iterator:
    """Read the records of a `.wandb` file: a log of LevelDB with blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    while position < len(data):
        if (left := 32_768 - position % 32_768) < 7:  # no space for the header of a part
            position += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield Record.FromString(record)
            record = b""


def test_wandb_offline_run_has_the_metrics_and_options(
    base_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import_or_skip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_finetune(base_model, corpus, tmp_path / "run", **CHANGES, report_to="wandb")
    (path,) = tmp_path.rglob("*.wandb")
    records = list(read_wandb_records(path))

    run = next(record.run for record in records if record.HasField("run"))
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    assert (run.project, run.run_id, run.display_name) == ("bert-snli", run_id, "run")
    options = {
        update.key: json.loads(update.value_json)
        for record in records
        for update in (*record.run.config.update, *record.config.update)
    }
    assert options["max_steps"] == 7 and options["model_name_or_path"] == str(base_model)
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    expected = expected_history(tmp_path / "run")
    assert {row["_step"]: {name: row[name] for name in NAMES.values() if name in row} for row in rows} == expected


def test_trackio_run_has_the_metrics_and_options(base_model: Path, corpus: Path, tmp_path: Path):
    trackio = import_or_skip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run_finetune(base_model, corpus, tmp_path / "run", **CHANGES, report_to="trackio")
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    (run,) = [run for run in trackio.Api().runs("bert-snli") if run.name == run_id]
    assert run.config["max_steps"] == 7 and run.config["model_name_or_path"] == str(base_model)
    history: dict[int, dict[str, float]] = {}
    for row in SQLiteStorage.get_logs(run.project, run.name):
        history.setdefault(row["step"], {}).update({name: row[name] for name in NAMES.values() if name in row})
    assert history == expected_history(tmp_path / "run")
