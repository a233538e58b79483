"""The whole main job on generated data, from a checkpoint in the book's format to three predictions."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from bert_snli.card_templates import write_converted_card
from bert_snli.data.sample import write_sample
from bert_snli.data.snli import load_snli
from bert_snli.evaluation.report import evaluate_model, format_results, save_results
from bert_snli.files import check_output_dir
from bert_snli.finetune import finetune_model
from bert_snli.inference import load_classifier, load_tokenizer
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.prediction import predict_pairs
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from bert_snli.training.arguments import FinetuneArguments
from conversion.convert import convert_checkpoint
from conversion.export import export_checkpoint

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # without a LayerNorm on the embeddings, the usual 0.02 takes many epochs to grow
}
RECIPE: dict[str, Any] = {
    "classifier_head": "pooler",  # as the book's section has it
    "num_train_epochs": 15,
    "train_batch_size": 64,
    "learning_rate": 3e-3,
    "warmup_steps": 0.1,
    "dropout": 0.0,
    "seed": 0,
}


def quickstart(output_dir: Path, *, overwrite_output_dir: bool = False) -> None:
    """Run every step below `output_dir`, saying what each one does.

    Raises:
        BertSnliError: `output_dir` already holds files.
    """
    check_output_dir(output_dir, overwrite=overwrite_output_dir)
    data, book, start, run = (output_dir / name for name in ("mini_snli", "book_checkpoint", "converted", "finetuned"))

    print(f"[1/5] Generating a mini-SNLI in {data}", flush=True)
    data.mkdir(parents=True, exist_ok=True)
    write_sample(data)

    print(f"[2/5] Writing an untrained checkpoint in the book's own format to {book}", flush=True)
    write_book_checkpoint(book, data)

    print(f"[3/5] Converting it to {start}", flush=True)
    convert_checkpoint(
        book,
        start,
        num_attention_heads=SIZES["num_attention_heads"],
        overwrite_output_dir=overwrite_output_dir,
        finish=write_converted_card,
    )

    print(f"[4/5] Fine-tuning it, with the book's head, into {run}", flush=True)
    finetune_model(
        FinetuneArguments(
            model_name_or_path=str(start),
            dataset_name_or_path=str(data),
            output_dir=str(run),
            overwrite_output_dir=overwrite_output_dir,
            **RECIPE,
        )
    )

    print("[5/5] Evaluating and predicting", flush=True)
    results = evaluate_model(str(run), str(data), split="test")
    save_results(results, run)
    print(f"\n{format_results(results)}\n")
    _print_predictions(run, data)
    _print_summary(output_dir, data, start, run, results["accuracy"])


def write_book_checkpoint(folder: Path, data: Path) -> None:
    """Random weights under the book's names, and the vocabulary of the training sentences: what the book saves."""
    train = load_snli(str(data), splits=["train"], text_source="parse").splits["train"]
    texts = [*train["premise"], *train["hypothesis"]]
    counts = Counter(word for text in texts for word in text.lower().split())
    vocabulary = [*SPECIAL_TOKENS.values(), *sorted(counts, key=lambda word: (-counts[word], word))]
    torch.manual_seed(0)
    model = D2LBertForPreTraining(D2LBertConfig(vocab_size=len(vocabulary), **SIZES))
    tokenizer = build_tokenizer(vocabulary, model_max_length=model.config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as ours:
        model.save_pretrained(ours)
        tokenizer.save_pretrained(ours)
        export_checkpoint(Path(ours), folder, format="d2l-torch", overwrite_output_dir=True)


def _print_predictions(run: Path, data: Path) -> None:
    """One pair of each label from the test split."""
    test = load_snli(str(data), splits=["test"]).splits["test"]
    names = test.features["label"].names
    rows = [test[test["label"].index(number)] for number in range(len(names))]
    predictions = predict_pairs(
        load_classifier(str(run)), load_tokenizer(str(run)), [(row["premise"], row["hypothesis"]) for row in rows]
    )
    for row, prediction in zip(rows, predictions, strict=True):
        label, probability = next(iter(prediction.items()))
        gold = names[row["label"]]
        print(f"  {row['premise']}\n  {row['hypothesis']}\n    -> {label} ({probability:.1%}); gold: {gold}\n")


def _print_summary(output_dir: Path, data: Path, start: Path, run: Path, accuracy: float) -> None:
    print(
        f"""Everything is in {output_dir}:
  {data}        the generated corpus, in SNLI's file layout
  {output_dir / "book_checkpoint"}        the checkpoint in d2l format: {SIZES["num_attention_heads"]} attention heads
  {start}        the converted model, ready for AutoModel.from_pretrained
  {run}        the fine-tuned model, a toy that is right on {accuracy:.0%} of such pairs;
        with it curve.png, metrics.jsonl, eval_results_test.json, confusion_matrix_test.png

Next (after `source .venv/bin/activate`, if `make demo` brought you here):
  bert-snli predict {run} --premise "A man is sleeping in a park." --hypothesis "A person is outside."
  bert-snli finetune --help

and with the book's own model, which the first line fetches:
  bert-snli convert bert.small --output_dir models/small
  bert-snli finetune --model_name_or_path models/small --output_dir runs/snli"""
    )
