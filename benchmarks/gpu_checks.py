"""Stages of gpu.py that compare results on the GPU with the CPU, and code that all stages share."""

from __future__ import annotations

import copy
import gc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from benchmarks import training
from benchmarks.common import SIZES, make_start, measure
from benchmarks.stages import Row
from bert_snli import finetune
from bert_snli.data.batching import MicroBatch, PaddedPairs
from bert_snli.data.sample import write_sample
from bert_snli.data.snli import load_snli
from bert_snli.fast.forward import FastClassifier
from bert_snli.files import sha256_of_file
from bert_snli.inference import batches_by_length, load_tokenizer, predict_logits
from bert_snli.modeling import D2LBertConfig, D2LBertForSequenceClassification
from bert_snli.modeling.configuration_d2l_bert import CLASSIFIER_HEADS
from bert_snli.modeling.labels import ID2LABEL, LABEL2ID

DTYPES = {"no": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Tolerances. Of logits, against float64; of each parameter's gradient, relative; of each loss, against the CPU's.
# Labels are compared for pairs whose two best logits differ clearly: a random classifier has many near ties.
LOGITS_FP32, LABELS_BF16, CLEAR_MARGIN, GRADIENT_FP32 = 1e-4, 0.995, 0.5, 1e-3
LOSSES = {"no": 1e-3, "bf16": 0.05, "fp16": 0.05}
CPU = torch.device("cpu")


def release() -> None:
    """Free memory, Accelerate's state and compiled code of the previous measurement."""
    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Run:
    """Data, models and measurements that the stages share. Each is created on first use."""

    device: torch.device
    smoke: bool
    source: Path | None
    folder: Path
    peaks: dict[str, float] = field(default_factory=dict)
    classifiers: dict[str, D2LBertForSequenceClassification] = field(default_factory=dict)

    def pick(self, real, tiny):
        """Return the size for a real run or for the smoke test."""
        return tiny if self.smoke else real

    @cached_property
    def data(self) -> str:
        """Return a folder with the first rows of SNLI. Reading all rows would take too long."""
        target = self.folder / "data"
        rows = {"train": self.pick(67_000, 600), "dev": self.pick(2_000, 60), "test": self.pick(10_000, 60)}
        if self.source is None:
            sizes = {split: min(number, 30_000) // 3 * 3 for split, number in rows.items()}
            return str(write_sample(target, num_pairs=sizes))
        target.mkdir()
        folder = self.source if self.source.is_dir() else zipfile.Path(self.source, "snli_1.0/")
        for split, number in rows.items():
            name = f"snli_1.0_{split}.jsonl"
            with (folder / name).open("rb") as file:
                (target / name).write_bytes(b"".join(islice(file, number)))
        return str(target)

    def start(self, size: str = "small") -> str:
        """Return the folder of a pretrained model with random weights."""
        path = self.folder / size
        if not path.exists():
            torch.manual_seed(0)
            make_start(path, self.data, **self.pick({"size": size}, {"size": "tiny", "vocabulary": 500}))
        return str(path)

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.start())

    @cached_property
    def encoded(self):
        """Return the encoded training pairs."""
        return training.encode(self.start(), self.data)[0]

    def padded(self, rows: int, device: torch.device) -> PaddedPairs:
        """Return the first training pairs on a device."""
        return PaddedPairs(self.encoded.select(range(rows)), self.tokenizer.pad_token_id, device=device)

    def test_pairs(self) -> list[tuple[str, str]]:
        """Return premises and hypotheses as raw text."""
        test = load_snli(self.data, splits=["test"]).splits["test"]
        return list(zip(test["premise"], test["hypothesis"], strict=True))

    def loop(self, size: str = "small", **options):
        """Prepare a training loop on up to 65,536 pairs."""
        options = {"max_train_samples": 2**16, "train_batch_size": self.pick(512, 16), **options}
        return training.prepare_loop(self.start(size), self.data, **options)

    def classifier(self, head: str) -> D2LBertForSequenceClassification:
        """Return a random classifier on the CPU. The logits of a label have a standard deviation of 2 over pairs.

        With small random weights, as those of `start`, all pairs would have nearly the same logits.
        """
        if head not in self.classifiers:
            shape = SIZES[self.pick("small", "tiny")]
            config = D2LBertConfig(
                vocab_size=len(self.tokenizer),
                **shape,
                initializer_range=shape["hidden_size"] ** -0.5,
                classifier_head=head,
                id2label=dict(ID2LABEL),
                label2id=dict(LABEL2ID),
                max_pair_length=128,
            )
            torch.manual_seed(0)
            model = D2LBertForSequenceClassification(config).eval()
            model.set_attn_implementation("eager")
            logits = compute_logits(self, copy.deepcopy(model).double(), CPU)
            *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
            scale = 2 / logits.std(dim=0).mean()
            with torch.no_grad():
                last.bias.copy_(scale * (last.bias - logits.mean(dim=0)))
                last.weight.mul_(scale)
            self.classifiers[head] = model
        return copy.deepcopy(self.classifiers[head])

    def peak(self, precision: str) -> float:
        """Measure the FLOP/s of a large random matrix product. `precision` is a key of `DTYPES`."""
        if precision not in self.peaks:
            size = self.pick(8192, 128)
            left, right = (torch.randn(size, size, device=self.device).to(DTYPES[precision]) for _ in range(2))
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            self.peaks[precision] = 2 * size**3 * self.calls_per_second(lambda: left @ right)
            torch.set_float32_matmul_precision("highest")
        return self.peaks[precision]

    def calls_per_second(self, call: Callable[[], object]) -> float:
        def step() -> int:
            call()
            return 1

        return self.measure(step, warm_up=5)["examples_per_second"]

    def measure(self, step: Callable[[], int], warm_up: int = 20) -> dict[str, float]:
        """Measure `step` for 2 s, after a warm-up of 2 s and at least `warm_up` calls."""
        seconds = self.pick(2, 0.1)
        measure(step, seconds, self.pick(warm_up, 1))
        return measure(step, seconds, 0)


def forwards(model: D2LBertForSequenceClassification) -> Iterator[tuple[Row, nn.Module]]:
    """Return the model's own forward pass and the fast one, with each attention implementation."""
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        yield {"attention": attention, "forward": "own"}, model
        yield {"attention": attention, "forward": "fast"}, FastClassifier(model).eval()


def compute_logits(run: Run, forward: nn.Module, device: torch.device, bf16: bool = False) -> torch.Tensor:
    """Compute the logits of the first 2,048 pairs. Return them in float64 on the CPU."""
    pairs = run.padded(run.pick(2048, 64), device)
    logits = torch.zeros(len(pairs), 3, dtype=torch.float64)
    for rows in batches_by_length(pairs.lengths, 256):
        batch = pairs[MicroBatch(rows.tolist(), has_labels=True)]
        batch.pop("labels")
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits[rows] = forward(**batch).logits.double().cpu()
    return logits


def logits(run: Run) -> Iterator[Row]:
    """Compare logits with those of the model's own forward pass in float64 on the CPU."""
    for head in CLASSIFIER_HEADS:
        model = run.classifier(head)
        expected = compute_logits(run, copy.deepcopy(model).double(), CPU)
        margins = expected.topk(2).values @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        model.to(run.device)
        for names, forward in forwards(model):
            fp32, bf16 = (compute_logits(run, forward, run.device, bf16) for bf16 in (False, True))
            errors = [float((found - expected).abs().max()) for found in (fp32, bf16)]
            same = (bf16.argmax(dim=1) == expected.argmax(dim=1)).double()
            clear = float(same[margins > CLEAR_MARGIN].mean())
            row = {"head": head, **names, "fp32 error": errors[0], "bf16 error": errors[1]}
            row |= {"bf16 same labels": float(same.mean()), "of clear pairs": clear}
            yield {**row, "ok": errors[0] <= LOGITS_FP32 and clear >= LABELS_BF16}


def evaluation_logits(run: Run) -> Iterator[Row]:
    """Compare the logits of `bert-snli evaluate`, in several batches, with float64 on the CPU."""
    for head in CLASSIFIER_HEADS:
        model = run.classifier(head)
        expected = compute_logits(run, copy.deepcopy(model).double(), CPU)
        found = predict_logits(
            model,
            run.encoded.select(range(len(expected))),
            pad_token_id=run.tokenizer.pad_token_id,
            accelerator=Accelerator(cpu=run.smoke),
            batch_size=32,
        )
        error = float((torch.from_numpy(found) - expected).abs().max())
        yield {"head": head, "fp32 error": error, "ok": error <= LOGITS_FP32}


def compute_gradients(run: Run, forward: nn.Module, model: nn.Module, device: torch.device, bf16: bool = False) -> dict:
    """Compute the gradients of one batch. Return them by name, in float64 on the CPU."""
    pairs = run.padded(run.pick(256, 64), device)
    batch = pairs[MicroBatch(list(range(len(pairs))), has_labels=True)]
    labels = batch.pop("labels")
    model.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = forward(**batch).logits
    nn.functional.cross_entropy(logits.float() if bf16 else logits, labels).backward()
    return {name: parameter.grad.double().cpu() for name, parameter in model.named_parameters()}


def gradients(run: Run) -> Iterator[Row]:
    """Compare each parameter's gradient with that of the model's own forward pass in float64 on the CPU."""
    for head in CLASSIFIER_HEADS:
        model = run.classifier(head)
        reference = copy.deepcopy(model).double()
        expected = compute_gradients(run, reference, reference, CPU)
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        # Without rounding, the gradient of a key's bias is 0.
        expected = {name: gradient for name, gradient in expected.items() if gradient.norm() > 1e-9 * norm}
        model.to(run.device)
        for row, forward in forwards(model):
            for precision in ("fp32", "bf16"):
                found = compute_gradients(run, forward, model, run.device, precision == "bf16")
                errors = torch.stack(
                    [(found[name] - expected[name]).norm() / expected[name].norm() for name in expected]
                )
                worst = int(errors.nan_to_num(nan=torch.inf).argmax())
                row |= {f"{precision} error": float(errors[worst]), f"{precision} worst": [*expected][worst]}
            yield {"head": head, **row, "ok": row["fp32 error"] <= GRADIENT_FP32}


def losses(run: Run, *, cpu: bool = False, **options) -> torch.Tensor:
    """Return the losses of 30 updates of a random classifier, without dropout."""
    release()
    start = run.folder / "classifier"
    if not start.exists():
        model = run.classifier("matching")
        with torch.no_grad():
            for parameter in model.classifier.output.parameters():
                parameter.mul_(0.25)  # with larger logits the losses of 30 updates would be chaotic
        model.save_pretrained(start)
        run.tokenizer.save_pretrained(start)
    options |= {"dropout": 0.0, "max_steps": 30, "warmup_steps": 0, "learning_rate": 2e-5, "classifier_head": None}
    loop = training.prepare_loop(str(start), run.data, cpu=cpu, train_batch_size=run.pick(256, 16), **options)
    if loop.accelerator.scaler is not None:
        # The default scale, 65,536, makes gradients of the first updates overflow. Skipped updates change the curve.
        loop.accelerator.scaler.load_state_dict({**loop.accelerator.scaler.state_dict(), "scale": 1024.0})
    micro_batches = (loop.task.pairs[micro_batch] for micro_batch in loop.sampler)
    sums = []
    for rows in loop.sampler.global_batches()[:30]:
        loop._start_interval([])
        loop._update(micro_batches, rows)
        sums.append(loop.interval_sums)
    loss, _, pairs = torch.stack(sums).cpu().unbind(dim=1)
    return loss / pairs


def loss_curves(run: Run, precisions: Sequence[str], **options) -> Iterator[Row]:
    """Compare the losses of 30 updates with those of the CPU in fp32."""
    expected = losses(run, cpu=True)
    for precision in precisions:
        if precision == "fp16" and run.smoke:  # Accelerate's fp16 needs a GPU
            continue
        found = losses(run, mixed_precision=precision, **options)
        error = float((found - expected).abs().max())
        row = {"precision": precision, "first": float(found[0]), "last": float(found[-1])}
        yield {**row, "error": error, "ok": error <= LOSSES[precision]}


def bits(run: Run) -> Iterator[Row]:
    """Check whether a second run and a resumed run are bit-identical, with dropout.

    They should be with eager attention. PyTorch's backward pass of sdpa, the default on a GPU, is not deterministic.
    """
    steps = run.pick(20, 4)

    def train(name: str, precision: str, attention: str, **options) -> str:
        release()
        recipe = finetune.FinetuneArguments(
            model_name_or_path=run.start(),
            dataset_name_or_path=run.data,
            output_dir=str(run.folder / f"{name}-{precision}-{attention}"),
            attn_implementation=attention,
            mixed_precision=precision,
            train_batch_size=run.pick(256, 16),
            max_eval_samples=run.pick(512, 16),
            max_steps=steps,
            save_steps=steps // 2,
            **options,
        )
        finetune.finetune_model(recipe)
        return sha256_of_file(Path(recipe.output_dir) / "model.safetensors")

    for precision, attention in (("no", "eager"), ("bf16", "eager"), ("bf16", "sdpa")):
        first, second = train("first", precision, attention), train("second", precision, attention)
        checkpoint = run.folder / f"first-{precision}-{attention}" / f"checkpoint-{steps // 2}"
        resumed = train("first", precision, attention, resume_from_checkpoint=str(checkpoint))
        row = {"precision": precision, "attention": attention, "second run": second == first}
        row |= {"resumed run": resumed == first}
        yield {**row, "ok": attention == "sdpa" or (second == first and resumed == first)}
