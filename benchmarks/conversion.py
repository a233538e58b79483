"""Measure the time and the peak memory of converting a checkpoint of bert.base's shape (random weights, 60,005 tokens).

    python benchmarks/conversion.py [--rounds 3]

Each round is a new process. The import of transformers is measured separately, because all commands need it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPE = {
    "vocab_size": 60_005,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
ROUND = """
import json, resource, sys, time
from pathlib import Path
start = time.perf_counter()
from bert_snli.console import quiet_libraries
quiet_libraries()
from conversion import convert
from conversion.proof import prove
imported = time.perf_counter()
proof_seconds = []
def timed_prove(*arguments):
    start = time.perf_counter()
    result = prove(*arguments)
    proof_seconds.append(time.perf_counter() - start)
    return result
convert.prove = timed_prove
convert.convert_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"import": imported - start, "convert": done - imported, "proof": proof_seconds[0], "peak": peak}))
"""


def make_checkpoint(folder: Path) -> int:
    """Write the checkpoint in another process, whose memory is not measured. Return its size in bytes."""
    script = f"""
import json, tempfile
from pathlib import Path
from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining
from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from conversion.export import export_checkpoint
model = D2LBertForPreTraining(D2LBertConfig(**{SHAPE!r}))
tokens = [*SPECIAL_TOKENS.values(), *(f"word{{n}}" for n in range({SHAPE["vocab_size"]} - 5))]
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    build_tokenizer(tokens, model_max_length=512).save_pretrained(folder)
    export_checkpoint(Path(folder), Path({str(folder)!r}), format="d2l-torch")
"""
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL)
    return (folder / "pretrained.params").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="number of conversions; the results are medians")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        size = make_checkpoint(Path(folder) / "d2l")
        results = []
        for number in range(rounds):
            command = [sys.executable, "-c", ROUND, f"{folder}/d2l", f"{folder}/model{number}"]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    median = {name: statistics.median(result[name] for result in results) for name in results[0]}
    print(f"checkpoint {size / 1e6:.0f} MB; medians of {rounds}")
    print(f"conversion {median['convert']:.1f} s, including {median['proof']:.1f} s for the proof")
    print(f"import of the libraries {median['import']:.1f} s")
    print(f"peak memory {median['peak'] / 1e6:.0f} MB = {median['peak'] / size:.2f} x the checkpoint")


if __name__ == "__main__":
    main()
