"""Compare pipelines and `bert-snli predict`: pairs per second of a file, and the time that one pair takes.

    python benchmarks/prediction.py MODEL SNLI [--pairs 10000] [--rounds 3]     # a fine-tuned folder; data of finetune

`pipeline("text-classification", batch_size=32)` and the model's own `natural-language-inference` pipeline get a list of
SNLI's test pairs, in its order; `bert-snli predict` reads them from a .jsonl file and writes its predictions to
another. Opening the model is not counted. Each method runs in a fresh process, the methods take turns, and the results
are medians. Scores are compared with those of the first method.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import in_turns, machine, markdown, median, publish

Pairs = list[tuple[str, str]]
PIPELINE, OWN_PIPELINE, OURS = "pipeline, batch_size=32", "own pipeline, batch_size=32", "bert-snli predict"
NUM_LATENCIES = 500


def text_classification(model: str) -> tuple[Callable, Callable]:
    """Return a function that predicts the pairs of a file, and one that predicts a pair: a list of {label: score}."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=model, top_k=None, trust_remote_code=True)

    def predict(pairs: Pairs) -> list[dict[str, float]]:
        inputs = [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in pairs]
        return [{entry["label"]: entry["score"] for entry in row} for row in classify(inputs, batch_size=32)]

    return predict, predict


def own_pipeline(model: str) -> tuple[Callable, Callable]:
    """Return the same two functions as `text_classification`."""
    from transformers import pipeline

    nli = pipeline("natural-language-inference", model=model, top_k=None, trust_remote_code=True)

    def predict(pairs: Pairs) -> list[dict[str, float]]:
        return [{entry["label"]: entry["score"] for entry in row} for row in nli(pairs, batch_size=32)]

    return predict, predict


def command(model: str) -> tuple[Callable, Callable]:
    """Return the same two functions as `text_classification`. The first one runs the command without loading."""
    from bert_snli.data.pair_files import count_pairs, iterate_pairs, open_output, write_predictions
    from bert_snli.fast.machine import keep_freed_memory
    from bert_snli.inference import load_classifier, load_tokenizer
    from bert_snli.prediction import Predictor

    keep_freed_memory()
    predictor = Predictor(load_classifier(model), load_tokenizer(model))

    def predict_file(source: Path) -> Path:
        target = source.with_name("predictions.jsonl")
        count_pairs(source)
        with open_output(target) as file:
            write_predictions(file, predictor.stream(iterate_pairs(source)), "jsonl")
        return target

    return predict_file, predictor


METHODS = {PIPELINE: text_classification, OWN_PIPELINE: own_pipeline, OURS: command}


def work(name: str, model: str, source: Path) -> dict:
    """Measure a method on the file (the second run) and on single pairs."""
    import numpy as np

    from bert_snli.console import quiet_libraries
    from bert_snli.data.pair_files import iterate_pairs

    quiet_libraries()
    predict_all, predict_one = METHODS[name](model)
    pairs = list(iterate_pairs(source))
    inputs = source if name == OURS else pairs
    predict_all(inputs)
    begun = time.perf_counter()
    predictions = predict_all(inputs)
    seconds = time.perf_counter() - begun
    if name == OURS:
        predictions = [json.loads(line)["scores"] for line in predictions.read_text(encoding="utf-8").splitlines()]
    latencies = []
    for pair in pairs[:NUM_LATENCIES]:
        begun = time.perf_counter()
        predict_one([pair])
        latencies.append(time.perf_counter() - begun)
    p50, p99 = np.percentile(latencies[20:], [50, 99]) * 1000
    return {"pairs_per_second": len(pairs) / seconds, "p50_ms": p50, "p99_ms": p99, "predictions": predictions}


def agreement(predictions: list[dict[str, float]], others: list[dict[str, float]]) -> tuple[float, float]:
    """Return the share of equal labels, and the largest difference of a score."""
    same = [max(a, key=a.get) == max(b, key=b.get) for a, b in zip(predictions, others, strict=True)]
    difference = max(abs(a[label] - b[label]) for a, b in zip(predictions, others, strict=True) for label in a)
    return sum(same) / len(same), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output_file", type=Path, default=Path("prediction_benchmark"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, source = args.worker
        print(json.dumps(work(name, args.model, Path(source))))
        return
    from bert_snli.data.snli import load_snli

    test = load_snli(args.data, splits=["test"]).splits["test"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pairs.jsonl"
        rows = islice(cycle(zip(test["premise"], test["hypothesis"], strict=True)), args.pairs)
        source.write_text("".join(json.dumps({"premise": p, "hypothesis": h}) + "\n" for p, h in rows))
        results = in_turns(
            list(METHODS),
            args.rounds,
            lambda name: [__file__, args.model, args.data, "--worker", name, str(source)],
        )
    first = results[PIPELINE][0]["predictions"]
    table = []
    for name, rounds in results.items():
        same, difference = agreement(rounds[0]["predictions"], first)
        for entry in rounds:
            del entry["predictions"]
        rounds[0].update(same_label=same, largest_difference=difference)
        speed = median(rounds, "pairs_per_second")
        times = speed / median(results[PIPELINE], "pairs_per_second")
        latencies = [f"{median(rounds, percentile):.2f}" for percentile in ("p50_ms", "p99_ms")]
        table.append([name, f"{speed:,.0f}", f"{times:.2f}", *latencies, f"{same:.2%}", f"{difference:.1e}"])
    header = ["", "pairs/s", "times", "one pair, p50 ms", "p99 ms", "same label", "largest difference of a score"]
    title = f"{args.pairs:,} SNLI test pairs; medians of {args.rounds}"
    publish(args.output_file, title, markdown(header, table), {"machine": machine(), "results": results})


if __name__ == "__main__":
    main()
