"""Check the results of the code on a GPU and measure its speed, in one process and at most eight minutes.

    python benchmarks/gpu.py [SNLI] [--output_file gpu_benchmark] [--deadline 480] [--stages NAME ...]
    python benchmarks/gpu.py --smoke          # all stages with tiny sizes on a CPU

SNLI is Stanford's zip or a folder of its jsonl files. The first 67,000, 2,000 and 10,000 lines are read. Without SNLI,
the pairs are generated. The first stages check results (gpu_checks.py), the others measure speed. Results are written
as JSON and Markdown before and after each stage. If a stage fails, the end of its traceback is recorded. If too little
time is left for a stage, it is skipped. "ok" in a table says whether a result is within its tolerance.

The script needs no network. Where PyTorch, transformers, accelerate, pandas, matplotlib, scikit-learn and psutil are
installed and there is no package index, download the other packages on another machine and copy the folder `wheels`:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux2014_x86_64 --dest wheels \\
        datasets==5.2.0 evaluate==0.4.6 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0 d2l==1.0.3
    pip install --no-index --no-deps --find-links wheels datasets evaluate dill multiprocess xxhash d2l
    pip install --no-index --no-deps --no-build-isolation .
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from accelerate import Accelerator
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import pretraining as pretraining_benchmark
from benchmarks import training
from benchmarks.common import machine
from benchmarks.flops import training_flops
from benchmarks.gpu_checks import Run, bits, evaluation_logits, gradients, logits, loss_curves, release
from benchmarks.stages import Row, Skipped, Stage, describe, run_stages, write_atomically
from bert_snli import finetune
from bert_snli.cli import evaluate, predict
from bert_snli.console import OneLineErrorParser, quiet_libraries
from bert_snli.inference import load_config
from bert_snli.prediction import Predictor

BATCH_SIZES = (512, 2048, 8192)


def rates(run: Run) -> Iterator[Row]:
    """Measure the throughput of matrix products and of memory copies."""
    for precision in ("bf16", "fp16", "tf32", "no"):
        yield {"what": f"matrix product, {precision.replace('no', 'fp32')}", "T/s": run.peak(precision) / 1e12}
    number = run.pick(2**28, 2**16)
    source, target = (torch.rand(number, device=run.device) for _ in range(2))
    copies = run.calls_per_second(lambda: target.copy_(source))
    yield {"what": "copy, bytes read and written", "T/s": 2 * source.nbytes * copies / 1e12}


def commands(run: Run) -> Iterator[Row]:
    """Run `bert-snli finetune` for one epoch, then `evaluate` and `predict` with the model."""
    model, source, target = (run.folder / name for name in ("command", "pairs.jsonl", "answers.jsonl"))
    lines = [json.dumps({"premise": premise, "hypothesis": hypothesis}) for premise, hypothesis in run.test_pairs()]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = ["--dataset_name_or_path", run.data]

    def command(module, *argv: object) -> None:
        parser = OneLineErrorParser()
        module.add_arguments(parser)
        module.run(parser.parse_args([*map(str, argv)]))

    train = ["--model_name_or_path", run.start(), "--output_dir", str(model), "--num_train_epochs", "1"]
    calls = {
        "finetune": partial(finetune.main, [*data, *train]),
        "evaluate": partial(command, evaluate, model, *data),
        "predict": partial(command, predict, model, "--input_file", source, "--output_file", target),
    }
    for name, call in calls.items():
        release()
        said, begun = StringIO(), time.perf_counter()
        with redirect_stdout(said), redirect_stderr(said):
            code = call()
        if code:
            raise RuntimeError(f"{name}: exit code {code}: {said.getvalue()[-1000:]}")
        yield {"command": name, "seconds": time.perf_counter() - begun}
    results = json.loads((model / "train_results.json").read_text())
    yield {"examples/s of finetune": results["train_samples_per_second"]}
    yield {"accuracy on test": json.loads((model / "eval_results_test.json").read_text())["accuracy"]}
    answers = target.read_text(encoding="utf-8").splitlines()
    yield {"predictions": len(answers), "ok": len(answers) == len(lines)}


def updates(run: Run, **options) -> Iterator[Row]:
    """Profile an update: kernel launches, copies, waits, and whether the host or the device is the bottleneck."""
    number, on_gpu = run.pick(20, 2), run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for head in ("pooler", "matching"):
        release()
        loop = run.loop(classifier_head=head, mixed_precision="bf16", **options)
        step = partial(next, (training.update(loop, piece) for piece in training.spread(loop, run.pick(512, 16))))
        seconds = run.pick(512, 16) / run.measure(step, warm_up=40)["examples_per_second"]
        with profile(activities=activities) as recorded:
            for _ in range(number):
                step()
            if on_gpu:
                torch.cuda.synchronize()
        events = recorded.key_averages()
        counts = {
            name: sum(event.count for event in events if event.key.startswith(prefixes)) / number
            for name, prefixes in {
                "operators": ("aten::",),
                "launches": ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch"),
                "copies": ("cudaMemcpy",),
                # In all, one is that of the line above and one the profiler's.
                "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
            }.items()
        }
        kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        busy = sum(event.self_device_time_total for event in kernels) / 1e6 / number
        row = {"head": head, "ms": seconds * 1e3, "device busy, ms": busy * 1e3, **counts}
        limit = "device" if busy > 0.8 * seconds else "host"
        yield {**row, "limit": limit, "waiting lines": ", ".join(waiting_lines(step)) if on_gpu else ""}


def waiting_lines(step: Callable[[], int]) -> list[str]:
    """Return the Python lines in `step` at which the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits})


def throughput(run: Run, size: str, head: str, precision: str, batch_size: int, step: Callable[[], int]) -> Row:
    """Return examples/s, and the model FLOPs utilization for unpadded pairs, relative to the measured peak."""
    on_gpu = run.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rate = run.measure(step)["examples_per_second"]
    config, lengths = load_config(run.start(size)), np.asarray(run.encoded["length"])
    config.classifier_head, config.num_labels = head, 3
    share = rate * training_flops(config, lengths) / len(lengths) / run.peak(precision)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return {"batch": batch_size, "examples/s": rate, "share of the peak": share, "GiB": memory}


def peer(run: Run, name: str, size: str = "small", batch_sizes: Sequence[int] = BATCH_SIZES) -> Iterator[Row]:
    """Measure the throughput of another training loop."""
    if name.startswith("d2l") and importlib.util.find_spec("d2l") is None:
        raise Skipped("d2l is not installed; the head of this script says how to install it")
    for batch_size in run.pick(batch_sizes, (16,)):
        release()
        step, batches = training.CONTENDERS[name](run.start(size), run.data, batch_size)
        updated = map(step, batches)
        yield throughput(run, size, "pooler", "bf16" if "bf16" in name else "no", batch_size, partial(next, updated))
        del step, batches, updated  # the next one needs the memory


def ours(
    run: Run, head: str, precision: str, size: str = "small", batch_sizes: Sequence[int] = BATCH_SIZES, **options
) -> Iterator[Row]:
    """Measure the throughput of `bert-snli finetune`."""
    loop = run.loop(size, classifier_head=head, mixed_precision=precision, **options)
    for batch_size in run.pick(batch_sizes, (16,)):
        updated = map(partial(training.update, loop), training.spread(loop, batch_size))
        yield throughput(run, size, head, precision, batch_size, partial(next, updated))


def prediction(run: Run) -> Iterator[Row]:
    """Measure pairs/s from text to probabilities, and the latency of one pair."""
    pairs = list(islice(cycle(run.test_pairs()), run.pick(10_000, 60)))
    for head in ("pooler", "matching"):
        predictor = Predictor(run.classifier(head), run.tokenizer, accelerator=Accelerator(cpu=run.smoke))
        rate = run.measure(lambda answer=predictor: len(answer(pairs)), warm_up=1)["examples_per_second"]
        seconds = []
        for pair in pairs[:220]:
            begun = time.perf_counter()
            predictor([pair])
            seconds.append(time.perf_counter() - begun)
        p50, p99 = np.percentile(seconds[20:], [50, 99]).tolist()
        yield {"head": head, "pairs/s": rate, "one pair, p50 ms": 1e3 * p50, "p99 ms": 1e3 * p99}


def pretraining(run: Run) -> Iterator[Row]:
    """Measure the throughput of `bert-snli pretrain` on the sentences of SNLI."""
    for precision in ("no", "bf16"):
        release()
        size, batch_size = run.pick(("small", 512), ("tiny", 16))
        step, batches, _ = pretraining_benchmark.ours(run.data, size, batch_size, precision)
        rate = run.measure(partial(next, map(step, batches)))["examples_per_second"]
        yield {"precision": precision, "batch": batch_size, "examples/s": rate}


BASE = {"size": "base", "batch_sizes": (512, 2048)}
COMPILED = {"torch_compile": True}
HEADS = ("pooler", "matching")
STAGES = [  # seconds on an H200
    Stage("rates", 12, rates),
    Stage("logits", 25, logits),
    Stage("evaluation logits", 8, evaluation_logits),
    Stage("gradients", 8, gradients),
    Stage("losses", 35, partial(loss_curves, precisions=("no", "bf16", "fp16"))),
    Stage("bits", 40, bits),
    Stage("commands", 15, commands),
    Stage("small, d2l, fp32", 30, partial(peer, name=training.PEERS[0])),
    Stage("small, transformers, bf16", 40, partial(peer, name=training.PEERS[2])),
    *(Stage(f"small, {head}, bf16", 25, partial(ours, head=head, precision="bf16")) for head in HEADS),
    *(Stage(f"small, {head}, fp32", 20, partial(ours, head=head, precision="no")) for head in HEADS),
    Stage("prediction", 8, prediction),
    Stage("pretraining", 20, pretraining),
    Stage("base, transformers, bf16", 35, partial(peer, name=training.PEERS[2], **BASE)),
    *(Stage(f"base, {head}, bf16", 20, partial(ours, head=head, precision="bf16", **BASE)) for head in HEADS),
    Stage("updates", 20, updates),
    # Compilation takes one to two minutes in each stage.
    Stage("losses, compiled", 80, partial(loss_curves, precisions=("no",), **COMPILED)),
    *(
        Stage(f"small, {head}, bf16, compiled", 130, partial(ours, head=head, precision="bf16", **COMPILED))
        for head in HEADS
    ),
    Stage("updates, compiled", 80, partial(updates, **COMPILED)),
    Stage("base, pooler, bf16, compiled", 130, partial(ours, head="pooler", precision="bf16", **BASE, **COMPILED)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="Stanford's zip, or a folder of its jsonl files")
    parser.add_argument("--output_file", type=Path, default=Path("gpu_benchmark"))
    parser.add_argument("--deadline", type=float, default=480, help="seconds for all stages")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], help="run only these stages")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on a CPU")
    args = parser.parse_args()
    deadline = time.monotonic() + args.deadline
    if not any(importlib.metadata.distributions(name="bert-snli")):
        parser.error("bert-snli is not installed: its version is part of what a run writes; pip install --no-deps .")
    if args.smoke:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}
        torch._dynamo.config.disable = True  # compilation would take longer than all other work
    elif not torch.cuda.is_available():
        parser.error("there is no GPU; --smoke tries the script on a CPU")
    faulthandler.dump_traceback_later(args.deadline + 60, exit=True)  # ends a stage that hangs
    quiet_libraries()
    facts = machine()

    def save(records: list[dict]) -> None:
        content = json.dumps({"machine": facts, "stages": records}, indent=2)
        write_atomically(args.output_file.with_suffix(".json"), content + "\n")
        described = ", ".join(f"{name}: {value}" for name, value in facts.items())
        write_atomically(args.output_file.with_suffix(".md"), f"{described}\n\n{describe(records)}")

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        run = Run(torch.device("cpu" if args.smoke else "cuda"), args.smoke, args.data, Path(folder))
        stages = [stage for stage in STAGES if args.stages is None or stage.name in args.stages]
        records = run_stages(stages, run, deadline=deadline, save=save, prepare=release)
    faulthandler.cancel_dump_traceback_later()
    print(describe(records))


if __name__ == "__main__":
    main()
