"""Model folders with all files that the commands write into them, for the tests of pushes and model cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from bert_snli.cli import main
from bert_snli.evaluation.report import evaluate_model, save_results
from bert_snli.files import atomic_folder
from bert_snli.finetune import finetune_model
from bert_snli.onnx_export import export_onnx
from bert_snli.pretrain import pretrain_model
from bert_snli.training.arguments import FinetuneArguments, PretrainArguments
from tests.support.checkpoints import save_d2l_checkpoint, small_vocabulary
from tests.support.d2l_reference import ReferenceBERT

REPORT_FILES = ("report/report.md", "report/report.html", "report/report.json", "report/lengths.png")
OTHER_FILES = (  # in the folder of `finetune_with_all_files`, but not to be pushed
    "checkpoint-2/model.safetensors",
    "runs/events.out.tfevents.1",
    ".partial-abc/config.json",
    ".env",
    "notes.txt",
    "curve.svg",
    "optimizer.pt",
    "report/draft.docx",
    "report/old/report.md",
)


def convert_small_checkpoint(folder: Path) -> Path:
    """Convert a pretrained d2l checkpoint with random weights, in `folder`; return the converted model folder."""
    torch.manual_seed(0)
    d2l_folder = save_d2l_checkpoint(folder / "book", ReferenceBERT().state_dict(), small_vocabulary())
    command = ["convert", d2l_folder, "--num_attention_heads", 2, "--output_dir", folder / "converted"]
    assert main([str(word) for word in command]) == 0
    return folder / "converted"


def finetune_with_all_files(converted: Path, corpus: Path, folder: Path) -> Path:
    """Fine-tune two epochs, evaluate on the test split and export to ONNX. Add `REPORT_FILES` and `OTHER_FILES`."""
    recipe = {"max_length": 33, "max_train_samples": 64, "max_eval_samples": 20, "num_train_epochs": 2}
    finetune_model(
        FinetuneArguments(str(converted), str(corpus), str(folder), learning_rate=1e-2, mixed_precision="no", **recipe)
    )
    results = evaluate_model(str(folder), str(corpus), split="test")
    save_results(results, folder)
    export_onnx(str(folder), folder / "onnx")
    for name in OTHER_FILES + REPORT_FILES:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"content of {name}")
    (folder / "report" / "report.json").write_text(json.dumps(results))
    return folder


def pretrain_small_model(corpus: Path, folder: Path) -> Path:
    """Pretrain a 16-wide model for three steps; return `folder`."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 64}
    options = {"dataset_name_or_path": str(corpus), "output_dir": str(folder), "max_length": 40, "max_steps": 3}
    pretrain_model(PretrainArguments(**options, **sizes))
    return folder


def copy_model_folder(source: Path, target: Path, change: Callable[[Path], object] = lambda folder: None) -> Path:
    """Copy the files of a model folder, without its subfolders, and apply `change` to the copy; return `target`."""
    with atomic_folder(target) as folder:
        for path in source.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        change(folder)
    return target
