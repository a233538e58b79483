"""Compare the pretraining step of d2l with `bert-snli pretrain`.

    pip install --no-deps d2l==1.0.3
    python benchmarks/pretraining.py TEXT [--size first|small] [--batch_size 512] [--rounds 3]

TEXT is what `bert-snli pretrain --dataset_name_or_path` takes. Both get the same tokenized sentences. Each
contender runs in a new process, the contenders take turns, and the results are medians. Each trains for at least
`--seconds`, after a warm-up of half this time, because the first use of memory is slow.

- `d2l`: d2l's `_WikiTextDataset`, `BERTModel`, `_get_batch_loss_bert` and Adam at 0.01, combined as in `train_bert`,
  which is in the text of the book (15.10.1) but not in the package.
- `bert-snli`: the step of `bert-snli pretrain` on batches of all lengths in random order, in fp32; and in bf16 if
  `--mixed_precision auto` chooses bf16 on this machine. d2l always uses fp32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import SIZES, endless, import_d2l, in_turns, machine, markdown, measure, median, publish

FIRST = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES = {"first": FIRST, "small": SIZES["small"], "tiny": SIZES["tiny"]}  # "first": of the chapter's first form
MAX_LENGTH, MIN_FREQ = 128, 5
THEIRS, FP32, BF16 = "d2l 1.0.3", "bert-snli, fp32", "bert-snli, bf16"
PRECISIONS = {FP32: "no", BF16: "bf16"}


def recipe_for(data: str, size: str, batch_size: int, precision: str = "no"):
    """Return the settings of both contenders: sizes, vocabulary and lengths."""
    from bert_snli.training.arguments import PretrainArguments

    return PretrainArguments(
        dataset_name_or_path=data,
        output_dir="unused",
        max_length=MAX_LENGTH,
        min_freq=MIN_FREQ,
        train_batch_size=batch_size,
        mixed_precision=precision,
        **SHAPES[size],
    )


def sentences(recipe):
    """Split the text into tokens and sentences."""
    from bert_snli.data.text import open_text, split_sentences
    from bert_snli.pretrain import make_empty_tokenizer

    text = open_text(recipe.dataset_name_or_path, None, recipe.text_source)
    return split_sentences(text, make_empty_tokenizer(recipe))


def book(data: str, size: str, batch_size: int) -> tuple[Callable, Iterator, float]:
    """Return d2l's step, its batches, and the seconds of the preparation."""
    from torch import nn

    d2l = import_d2l()
    paragraphs = list(sentences(recipe_for(data, size, batch_size)).train["sentences"])
    begun = time.perf_counter()
    train_set = d2l._WikiTextDataset(paragraphs, MAX_LENGTH)
    took = time.perf_counter() - begun
    shape = SHAPES[size]
    net = d2l.BERTModel(
        len(train_set.vocab),
        num_hiddens=shape["hidden_size"],
        ffn_num_hiddens=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        num_blks=shape["num_hidden_layers"],
        dropout=0.1,
        max_len=512,
    )
    devices = d2l.try_all_gpus() or [d2l.cpu()]
    net, loss = net.to(devices[0]), nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(train_set, batch_size, shuffle=True)
    with torch.no_grad():  # the lazy layers take their shapes
        net(*(part[:2].to(devices[0]) for part in next(iter(loader))[:4]))
    trainer = torch.optim.Adam(net.parameters(), lr=0.01)

    def step(batch: list) -> int:
        trainer.zero_grad()
        parts = (part.to(devices[0]) for part in batch)
        *_, total = d2l._get_batch_loss_bert(net, loss, len(train_set.vocab), *parts)
        total.backward()
        trainer.step()
        return len(batch[0])

    return step, endless(loader), took


def ours(data: str, size: str, batch_size: int, precision: str) -> tuple[Callable, Iterator, float]:
    """Return the step of `bert-snli pretrain`, batches of all lengths, and the seconds of the preparation."""
    from accelerate import Accelerator

    from bert_snli import pretrain
    from bert_snli.fast.machine import keep_freed_memory
    from bert_snli.training.run import make_loop

    keep_freed_memory()
    recipe = recipe_for(data, size, batch_size, precision)
    paragraphs = sentences(recipe)
    accelerator = Accelerator(mixed_precision=precision)
    begun = time.perf_counter()
    tokenizer = pretrain.make_tokenizer(recipe, pretrain.make_empty_tokenizer(recipe), paragraphs.train)
    train, evaluation = pretrain.load_pairs(recipe, paragraphs, tokenizer, accelerator.device)
    took = time.perf_counter() - begun
    model = pretrain.make_model(recipe, tokenizer)
    task = pretrain.make_task(recipe, accelerator, model, tokenizer, train, evaluation, paragraphs.eval_split)
    loop = make_loop(recipe, accelerator, task)
    loop.module.train()
    loop._start_interval([])
    pieces = sorted(loop.sampler, key=lambda piece: int(train.lengths[piece.rows].sum()))
    order = np.random.default_rng(0).permutation(len(pieces))

    def step(piece) -> int:
        loop._update(iter([train[piece]]), np.asarray(piece.rows))
        return len(piece.rows)

    return step, (pieces[place] for place in cycle(order)), took


def work(name: str, data: str, size: str, batch_size: int, seconds: float) -> dict:
    """Train the contender `name`. Return the pairs, the seconds, and the peak memory in bytes."""
    import resource

    import datasets

    from bert_snli.console import quiet_libraries

    quiet_libraries()
    datasets.disable_caching()  # the book's preparation has no cache either
    prepare = book if name == THEIRS else partial(ours, precision=PRECISIONS[name])
    step, batches, prepared_in = prepare(data, size, batch_size)

    measure(lambda: step(next(batches)), seconds / 2, warm_up=1)
    speed = measure(lambda: step(next(batches)), seconds, warm_up=0)["examples_per_second"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"pairs_per_second": speed, "preparation_seconds": prepared_in, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="text, as `bert-snli pretrain --dataset_name_or_path` takes it")
    parser.add_argument("--size", choices=sorted(SHAPES), default="first")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of training in each round")
    parser.add_argument("--output_file", type=Path, default=Path("pretraining_benchmark"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.data, args.size, args.batch_size, args.seconds)))
        return
    options = [args.data, "--size", args.size, "--batch_size", str(args.batch_size), "--seconds", str(args.seconds)]
    from bert_snli.fast.machine import choose_precision

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    contenders = [THEIRS, FP32, *([BF16] if choose_precision("auto", device).name == "bf16" else [])]
    results = in_turns(contenders, args.rounds, lambda name: [__file__, *options, "--worker", name])
    rows = [
        [name, f"{median(rounds, 'pairs_per_second'):,.0f}"]
        + [f"{median(rounds, 'pairs_per_second') / median(results[THEIRS], 'pairs_per_second'):.1f}"]
        + [f"{median(rounds, 'preparation_seconds'):.1f}", f"{median(rounds, 'peak_bytes') / 1e9:.1f}"]
        for name, rounds in results.items()
    ]
    table = markdown(["", "pairs/s", "times d2l", "preparation, s", "GB"], rows)
    title = f"The shape {args.size}, batches of {args.batch_size}; medians of {args.rounds}"
    publish(args.output_file, title, table, {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
