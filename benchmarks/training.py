"""Compare the training loop of d2l, a plain `transformers` loop, and `bert-snli finetune`.

    pip install --no-deps d2l==1.0.3
    python benchmarks/training.py SNLI [--size small|base] [--batch_size 512] [--rounds 3] [--ablation]

All train a model with d2l's sizes and 60,005 tokens on SNLI's training pairs, on a GPU if there is one. Each contender
runs in a new process, the contenders take turns, and the results are medians. Each trains for at least `--seconds`
after a warm-up of two batches (60 on a GPU). `bert-snli` gets batches spread evenly over all lengths, the others random
batches.

- `d2l`: d2l's `BERTModel`, `train_batch_ch13` and Adam, on pairs padded to 128 as by the dataset class of the book
  (which, like `BERTClassifier`, is in the text of the book but not in the package). Batches are assembled
  on the GPU, as in `bert-snli`.
- `transformers`: `BertForSequenceClassification` without LayerNorm and dropout on the embeddings, which makes it
  equal to d2l's model (with the same weights; the logits are compared), `DataCollatorWithPadding` and AdamW. On a
  GPU worker processes assemble the batches.
- `--ablation` adds variants of `bert-snli` that differ from the default in one setting.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import (
    SIZES,
    VOCABULARY,
    endless,
    import_d2l,
    in_turns,
    machine,
    make_start,
    markdown,
    measure,
    median,
    publish,
)

MAX_LENGTH = 128
GOLDEN_RATIO = (5**0.5 - 1) / 2
LOADER_WORKERS = 8
PEERS = ("d2l 1.0.3", "transformers, fp32", "transformers, bf16")
OURS = ("bert-snli, fp32", "bert-snli, bf16")
# Variants of the default in fp32, as arguments of `ours`.
VARIANTS: dict[str, dict] = {
    "freed memory is given back": {"variant": "give_back"},
    "whole word embedding trained": {"variant": "all_words"},
    "words projected each time": {"variant": "project_all"},
    "PyTorch's dropout": {"variant": "slow_dropout"},
    "last block's keys and values projected": {"variant": "project_last"},
    "model's own forward": {"fast_forward": False},
    "model's own forward, sdpa": {"fast_forward": False, "attn_implementation": "sdpa"},
    "random batches": {"train_sampling_strategy": "random"},
    "padded to 128": {"pad_to_max_length": True},
    "AdamW, not fused": {"optim": "adamw_torch"},
    "attention by sdpa": {"attn_implementation": "sdpa"},
    "torch.compile": {"torch_compile": True},
    "torch.compile, bf16": {"torch_compile": True, "precision": "bf16"},
}


def book(model: str, data: str, batch_size: int) -> tuple[Callable, Iterator]:
    """Return d2l's step, which returns the batch size, and its batches."""
    import torch
    from torch import nn

    from bert_snli.data.batching import GlobalBatchSampler, PaddedPairs
    from bert_snli.inference import load_config

    d2l = import_d2l()

    class BERTClassifier(nn.Module):  # d2l 15.7.3
        def __init__(self, bert):
            super().__init__()
            self.encoder, self.hidden, self.output = bert.encoder, bert.hidden, nn.LazyLinear(3)

        def forward(self, inputs):
            tokens, segments, lengths = inputs
            return self.output(self.hidden(self.encoder(tokens, segments, lengths)[:, 0, :]))

    config = load_config(model)
    bert = d2l.BERTModel(
        config.vocab_size,
        num_hiddens=config.hidden_size,
        ffn_num_hiddens=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_blks=config.num_hidden_layers,
        dropout=0.1,
        max_len=512,
    )
    encoded, tokenizer = encode(model, data)
    net, devices = BERTClassifier(bert), d2l.try_all_gpus() or [d2l.cpu()]
    pairs = PaddedPairs(encoded, tokenizer.pad_token_id, pad_to_length=MAX_LENGTH, device=devices[0])
    loss = nn.CrossEntropyLoss(reduction="none")

    def inputs(batch: dict) -> tuple:
        return [batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].sum(1).float()], batch["labels"]

    sampler = GlobalBatchSampler(np.array(encoded["length"]), batch_size, seed=0, strategy="random")
    with torch.no_grad():  # the lazy layer takes its shape
        net(tuple(part[:2].cpu() for part in inputs(pairs[next(iter(sampler))])[0]))
    net.to(devices[0])
    trainer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step(batch: tuple) -> int:
        d2l.train_batch_ch13(net, *batch, loss, trainer, devices)
        return len(batch[1])

    return step, (inputs(pairs[piece]) for piece in endless(sampler))


def plain(model: str, data: str, batch_size: int, *, bf16: bool) -> tuple[Callable, Iterator]:
    """Return the step and the batches of transformers' examples without Trainer, as `book` does."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding

    from bert_snli.inference import load_config, load_weights
    from bert_snli.modeling import D2LBertForSequenceClassification

    encoded, tokenizer = encode(model, data)
    config = load_config(model)
    config.num_labels = 3
    torch.manual_seed(0)
    ours, _ = load_weights(model, config, D2LBertForSequenceClassification)
    theirs = BertForSequenceClassification(
        BertConfig(
            vocab_size=config.vocab_size,
            **{name: getattr(config, name) for name in SIZES["small"]},
            hidden_act="relu",
            layer_norm_eps=1e-5,
            num_labels=3,
            classifier_dropout=0.0,
        )
    )
    theirs.load_state_dict({hugging_name(name): value for name, value in ours.state_dict().items()}, strict=False)
    theirs.bert.embeddings.LayerNorm = theirs.bert.embeddings.dropout = torch.nn.Identity()
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not torch.accelerator.is_available())
    rows, collate = encoded.remove_columns("length"), DataCollatorWithPadding(tokenizer)
    options = loader_options(accelerator.device)
    loader = DataLoader(rows, batch_size=batch_size, shuffle=True, collate_fn=collate, **options)
    few = collate([rows[number] for number in range(8)])
    few.pop("labels")
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(**few).logits, ours.eval()(**few).logits, rtol=0, atol=1e-4)
    net, optimizer, loader = accelerator.prepare(
        theirs.train(), torch.optim.AdamW(theirs.parameters(), lr=5e-5), loader
    )

    def step(batch: dict) -> int:
        accelerator.backward(net(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        return len(batch["input_ids"])

    return step, endless(loader)


def loader_options(device) -> dict:
    """Return the options of the plain loop's DataLoader, which uses worker processes on a GPU.

    On a CPU that is 1 % of the time of an update of bert.small, and workers would take the cores from training.
    """
    if device.type != "cuda":
        return {}
    workers = min(LOADER_WORKERS, os.cpu_count() or 1)
    return {"num_workers": workers, "pin_memory": True, "persistent_workers": True}


def hugging_name(name: str) -> str:
    """Return the name of a parameter in transformers' BERT."""
    for old, new in (
        ("attention.query", "attention.self.query"),
        ("attention.key", "attention.self.key"),
        ("attention.value", "attention.self.value"),
        ("attention.output", "attention.output.dense"),
        ("attention_norm", "attention.output.LayerNorm"),
        ("intermediate", "intermediate.dense"),
        ("output_norm", "output.LayerNorm"),
    ):
        name = name.replace(old, new)
    parts = name.split(".")
    return name.replace(".output.", ".output.dense.") if parts[-2] == "output" else name


def ours(
    model: str, data: str, batch_size: int, *, variant: str | None = None, precision: str = "no", **options
) -> tuple[Callable, Iterator]:
    """Return the step of `bert-snli finetune`, as `book` does, and batches of all lengths.

    Args:
        variant: the part that is left out.
        options: of the recipe.
    """
    import torch

    from bert_snli.fast import attention, forward, machine

    if variant != "give_back":
        machine.keep_freed_memory()
    if variant == "project_all":
        forward.MIN_ROWS_TO_SHARE = sys.maxsize
    if variant == "slow_dropout":
        attention.dropout = forward.dropout = torch.nn.functional.dropout
    if variant == "project_last":
        forward.attend_from = lambda layer, selected, hidden, mask: forward.attend(
            layer, forward.project(layer, hidden), mask
        )[:, :1]
    if variant == "all_words":
        forward.FastClassifier.train_rows = lambda self, used: None
    loop = prepare_loop(model, data, train_batch_size=batch_size, mixed_precision=precision, **options)
    return partial(update, loop), spread(loop, batch_size)


def prepare_loop(model: str, data: str, *, cpu: bool = False, **options):
    """Return the training loop of `bert-snli finetune`; `options` are those of the command."""
    import torch
    from accelerate import Accelerator

    from bert_snli import finetune
    from bert_snli.data.pair_encoding import PairEncoder
    from bert_snli.inference import load_tokenizer
    from bert_snli.modeling.labels import D2L_LABELS
    from bert_snli.training.run import make_loop

    # The default is d2l's head, because the other contenders have it.
    options = {"classifier_head": "pooler", "mixed_precision": "no", **options}
    arguments = finetune.FinetuneArguments(
        model_name_or_path=model, dataset_name_or_path=data, output_dir="unused", **options
    )
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision, cpu=cpu or not torch.accelerator.is_available()
    )
    tokenizer = load_tokenizer(model)
    encoder = PairEncoder(tokenizer, arguments.max_length, arguments.truncation, arguments.text_source)
    train, evaluation, _ = finetune.load_encoded(arguments, None, D2L_LABELS, encoder)
    config = finetune.classifier_config(arguments)
    config.num_labels = len(D2L_LABELS)
    classifier = finetune.load_base_model(arguments, config, None)
    task = finetune.make_task(arguments, accelerator, classifier, tokenizer, train, evaluation)
    loop = make_loop(arguments, accelerator, task)
    loop.module.train()
    loop._start_interval([])
    return loop


def update(loop, piece) -> int:
    """Make one update of a loop without gradient accumulation. Return the batch size."""
    loop._update(iter([loop.task.pairs[piece]]), np.asarray(piece.rows))
    return len(piece.rows)


def spread(loop, batch_size: int) -> Iterator:
    """Yield batches of `loop` without end. Their lengths are spread evenly over those of all batches."""
    from bert_snli.data.batching import GlobalBatchSampler

    lengths = loop.task.pairs.lengths
    sampler = GlobalBatchSampler(lengths, batch_size, seed=0, strategy=loop.arguments.train_sampling_strategy)
    pieces = sorted(sampler, key=lambda piece: int(lengths[piece.rows].sum()))
    return (pieces[int(number * GOLDEN_RATIO % 1 * len(pieces))] for number in count())


def encode(model: str, data: str):
    """Return the encoded training pairs of `data`, and the tokenizer."""
    from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
    from bert_snli.data.snli import load_snli
    from bert_snli.inference import load_tokenizer

    tokenizer = load_tokenizer(model)
    train = load_snli(data, splits=["train"]).splits["train"]
    return encode_pairs(train, PairEncoder(tokenizer, MAX_LENGTH)), tokenizer


CONTENDERS: dict[str, Callable] = {
    PEERS[0]: book,
    PEERS[1]: partial(plain, bf16=False),
    PEERS[2]: partial(plain, bf16=True),
    OURS[0]: ours,
    OURS[1]: partial(ours, precision="bf16"),
    **{name: partial(ours, **options) for name, options in VARIANTS.items()},
}


def work(name: str, model: str, data: str, batch_size: int, seconds: float) -> dict:
    """Train the contender `name`. Return the examples, the seconds, and the peak memory in bytes."""
    import resource

    import torch

    from bert_snli.console import quiet_libraries

    quiet_libraries()
    step, batches = CONTENDERS[name](model, data, batch_size)
    on_gpu = torch.cuda.is_available()
    # A compiled model must first compile for all lengths. Other contenders need two batches.
    results = measure(lambda: step(next(batches)), seconds, 60 if on_gpu else 2)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**results, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="SNLI, as `bert-snli finetune --dataset_name_or_path` takes it")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of training in each round")
    parser.add_argument(
        "--ablation", action="store_true", help="compare variants of bert-snli, and not the other loops"
    )
    parser.add_argument("--no_bf16", action="store_true", help="skip bf16 on a machine that emulates it")
    parser.add_argument("--output_file", type=Path, default=Path("training_benchmark"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(*args.worker, args.data, args.batch_size, args.seconds)))
        return
    names = [OURS[0], *VARIANTS] if args.ablation else [*PEERS, *OURS]
    names = [name for name in names if not (args.no_bf16 and "bf16" in name)]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / args.size
        make_start(model, args.data, args.size)
        options = ["--batch_size", str(args.batch_size), "--seconds", str(args.seconds)]
        results = in_turns(
            names, args.rounds, lambda name: [__file__, args.data, "--worker", name, str(model), *options]
        )
    speeds = {name: median(rounds, "examples_per_second") for name, rounds in results.items()}
    against = [name for name in (OURS[:1] if args.ablation else PEERS) if name in speeds]
    table = markdown(
        ["", "examples/s", *(f"times {name}" for name in against), "GB"],
        [
            [name, f"{speed:,.0f}", *(f"{speed / speeds[other]:.2f}" for other in against)]
            + [f"{median(results[name], 'peak_bytes') / 1e9:.1f}"]
            for name, speed in speeds.items()
        ],
    )
    title = f"bert.{args.size}, {VOCABULARY:,} words, batches of {args.batch_size}; medians of {args.rounds}"
    publish(args.output_file, title, table, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
