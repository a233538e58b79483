"""`bert-snli quickstart`: run all steps on generated data, from a checkpoint in d2l format to three predictions."""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bert_snli.cli.options import add_overwrite, folder
from bert_snli.console import quiet_libraries
from bert_snli.files import check_output_dir

SUMMARY = "Try all steps on generated data, in two minutes."
HELP = """\
Generate a small data set in the format of SNLI and a small checkpoint in d2l format. Convert the checkpoint, fine-tune
and evaluate the model, and predict three pairs. It takes about two minutes on two CPU cores and needs no network.
"""
MODEL_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # no LayerNorm scales the embeddings, so with the usual 0.02 learning takes many epochs
}
TRAINING_OPTIONS: dict[str, Any] = {
    "classifier_head": "pooler",  # d2l's
    "num_train_epochs": 15,
    "train_batch_size": 64,
    "learning_rate": 3e-3,
    "warmup_steps": 0.1,
    "dropout": 0.0,
    "seed": 0,
}
PREMISE = "A tall woman in a coat is eating in a kitchen."
HYPOTHESES = ("The woman is in a kitchen.", "A woman is in a T-shirt.", "The woman is with a friend.")
FINAL_MESSAGE = """\

Next (after `source .venv/bin/activate` if you ran `make demo`); the second line downloads d2l's own model:
  bert-snli predict {output_dir}/finetuned --premise "A man is sleeping in a park." --hypothesis "A person is outside."
  bert-snli convert bert.small --output_dir models/small
  bert-snli finetune models/small --output_dir runs/snli"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--output_dir", type=folder, default=Path("quickstart"), help="Folder for all files.")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    quiet_libraries()
    from bert_snli.data.sample import write_sample
    from bert_snli.evaluation.report import evaluate_model, format_results, save_results
    from bert_snli.finetune import finetune_model
    from bert_snli.inference import load_classifier, load_tokenizer
    from bert_snli.prediction import Predictor
    from bert_snli.training.arguments import FinetuneArguments
    from conversion.convert import convert_checkpoint

    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir)
    overwrite: dict[str, Any] = {"overwrite_output_dir": args.overwrite_output_dir}
    names = ("mini_snli", "d2l_checkpoint", "converted", "finetuned")
    data, checkpoint, converted, finetuned = (args.output_dir / name for name in names)

    print(f"[1/5] Generating a mini-SNLI in {data}", flush=True)
    write_sample(data)

    print(f"[2/5] Writing an untrained checkpoint in d2l format to {checkpoint}", flush=True)
    write_d2l_checkpoint(checkpoint, data)

    print(f"[3/5] Converting it to {converted}", flush=True)
    convert_checkpoint(checkpoint, converted, num_attention_heads=MODEL_SIZES["num_attention_heads"], **overwrite)

    print(f"[4/5] Fine-tuning it, with d2l's classifier head, into {finetuned}", flush=True)
    finetune_model(FinetuneArguments(str(converted), str(data), str(finetuned), **TRAINING_OPTIONS, **overwrite))

    print("[5/5] Evaluating and predicting", flush=True)
    results = evaluate_model(str(finetuned), str(data), split="test")
    save_results(results, finetuned)
    print(f"\n{format_results(results)}\n")
    predictor = Predictor(load_classifier(str(finetuned)), load_tokenizer(str(finetuned)))
    predictions = predictor([(PREMISE, hypothesis) for hypothesis in HYPOTHESES])
    print(PREMISE)
    for hypothesis, scores in zip(HYPOTHESES, predictions, strict=True):
        label = next(iter(scores))
        print(f"  {hypothesis:30}{label:15}{scores[label]:.3f}")
    print(FINAL_MESSAGE.format(output_dir=args.output_dir))


def write_d2l_checkpoint(output_dir: Path, data: Path) -> None:
    """Write a checkpoint in d2l format: random weights, and the vocabulary of the training sentences."""
    import torch

    from bert_snli.data.snli import load_snli
    from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
    from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
    from conversion.export import export_checkpoint

    train = load_snli(str(data), splits=["train"], text_source="parse").splits["train"]
    counts = Counter(token for text in (*train["premise"], *train["hypothesis"]) for token in text.lower().split())
    vocabulary = [*SPECIAL_TOKENS.values(), *sorted(counts, key=lambda token: (-counts[token], token))]
    torch.manual_seed(0)
    model = D2LBertForPreTraining(D2LBertConfig(vocab_size=len(vocabulary), **MODEL_SIZES))
    tokenizer = build_tokenizer(vocabulary, model_max_length=model.config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as model_folder:
        model.save_pretrained(model_folder)
        tokenizer.save_pretrained(model_folder)
        export_checkpoint(Path(model_folder), output_dir, format="d2l-torch", overwrite_output_dir=True)
