"""Fine-tune a `transformers` encoder as a teacher. It reads premise and hypothesis together; its embeddings are frozen.

python examples/teacher/train_teacher.py MODEL snli_1.0.zip teacher
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from bert_snli.console import run
from bert_snli.data.snli import load_snli
from bert_snli.fast.machine import choose_precision
from bert_snli.files import check_output_dir, write_history
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
from encoders import open_encoder


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the accuracy."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path", help="a transformers encoder")
    parser.add_argument("dataset_name_or_path", help="a source of SNLI")
    parser.add_argument("output_dir")
    parser.add_argument("--credit", help="name and licence of the encoder, for the model card (default: its name)")
    parser.add_argument("--num_train_epochs", type=float, default=1.5)
    parser.add_argument("--max_train_samples", type=int)
    options = parser.parse_args(argv)
    check_output_dir(Path(options.output_dir))

    labels = {"num_labels": len(ID2LABEL), "id2label": ID2LABEL, "label2id": LABEL2ID}
    model, tokenizer = open_encoder(options.model_name_or_path, AutoModelForSequenceClassification, **labels)
    model.get_input_embeddings().requires_grad_(False)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    snli = load_snli(options.dataset_name_or_path, splits=["train", "validation"]).splits
    if options.max_train_samples:
        snli["train"] = snli["train"].select(range(options.max_train_samples))
    encoded = snli.map(
        lambda rows: tokenizer(rows["premise"], rows["hypothesis"], truncation=True, max_length=128), batched=True
    )
    arguments = TrainingArguments(
        options.output_dir,
        num_train_epochs=options.num_train_epochs,
        learning_rate=1e-4,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        train_sampling_strategy="group_by_length",
        warmup_steps=0.06,
        weight_decay=0.01,
        eval_strategy="steps",
        eval_steps=0.5,
        save_strategy="steps",
        save_steps=0.5,
        save_total_limit=1,
        save_only_model=True,
        logging_steps=50,
        use_cpu=device.type == "cpu",
        bf16=choose_precision("auto", device).name == "bf16",
        report_to="none",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    called = options.credit or Path(options.model_name_or_path).name
    write_history(
        Path(options.output_dir),
        [f"A teacher, {called}, was fine-tuned on {len(snli['train']):,} labelled pairs of SNLI."],
    )


if __name__ == "__main__":
    sys.exit(run(Path(__file__).name, main))
