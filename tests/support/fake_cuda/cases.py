"""Run training, evaluation and prediction on fake CUDA tensors: `python -m tests.support.fake_cuda.cases RESULTS.json`.

It needs its own process, because the fake device must be loaded before PyTorch is imported. RESULTS.json maps
the name of each case to null, or to the traceback of what failed.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.support import fake_cuda

HEADS, ATTENTIONS, PRECISIONS = ("pooler", "mlp", "matching"), ("eager", "sdpa"), ("no", "bf16", "fp16")
UPDATES = 2  # in each case
LABELS = ("entailment", "contradiction", "neutral")


def make_inputs(folder: Path) -> None:
    """A corpus of 300 generated pairs, a 16-wide pretrained model and classifiers of each head, in `folder`."""
    from bert_snli.data.sample import write_sample
    from bert_snli.data.snli import load_snli
    from bert_snli.modeling import D2LBertConfig, D2LBertForPreTraining, D2LBertForSequenceClassification
    from bert_snli.modeling.labels import ID2LABEL, LABEL2ID
    from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer

    write_sample(folder / "corpus", num_pairs={"train": 300, "dev": 60, "test": 60})
    pairs = load_snli(str(folder / "corpus"), splits=["train"], text_source="parse").splits["train"]
    words = {word for name in ("premise", "hypothesis") for text in pairs[name] for word in text.lower().split()}
    special = list(SPECIAL_TOKENS.values())
    tokenizer = build_tokenizer([*special, *sorted(words - set(special))], model_max_length=64)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 64, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    D2LBertForPreTraining(D2LBertConfig(**sizes)).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    for head in HEADS:
        config = D2LBertConfig(**sizes, classifier_head=head, id2label=dict(ID2LABEL), label2id=dict(LABEL2ID))
        D2LBertForSequenceClassification(config).save_pretrained(folder / head)
        tokenizer.save_pretrained(folder / head)


def accelerator_on_cuda(precision: str):
    """Return an `Accelerator` on the fake CUDA device."""
    import torch
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState()
    PartialState._shared_state["device"] = torch.device("cuda", 0)
    return Accelerator(mixed_precision=precision)


@cache
def encoded_pairs(folder: Path):
    """Return the tokenizer and the encoded training and validation pairs."""
    from bert_snli.data.pair_encoding import PairEncoder, encode_pairs
    from bert_snli.data.snli import load_snli
    from bert_snli.inference import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "start"))
    splits = load_snli(str(folder / "corpus"), splits=["train", "validation"]).splits
    return tokenizer, *(encode_pairs(rows, PairEncoder(tokenizer, 48)) for rows in splits.values())


def finetuning_loop(folder: Path, precision: str, **options):
    """Return the training loop of `finetune` before it runs."""
    from bert_snli import finetune
    from bert_snli.training.run import make_loop

    arguments = finetune.FinetuneArguments(
        model_name_or_path=str(folder / "start"),
        dataset_name_or_path=str(folder / "corpus"),
        output_dir=str(folder / "run"),
        train_batch_size=32,
        max_length=48,
        **options,
    )
    accelerator, (tokenizer, train, evaluation) = accelerator_on_cuda(precision), encoded_pairs(folder)
    with fake_tensors():
        model = finetune.load_base_model(arguments, finetune.classifier_config(arguments), None)
        task = finetune.make_task(arguments, accelerator, model, tokenizer, train, evaluation)
        return make_loop(arguments, accelerator, task)


@cache
def sentence_splits(folder: Path):
    """Return the tokenizer that splits text into tokens, and the sentences of the corpus."""
    from bert_snli.data.text import open_text, split_sentences
    from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer

    rules = build_tokenizer(list(SPECIAL_TOKENS.values()), model_max_length=64)
    return rules, split_sentences(open_text(str(folder / "corpus"), None, "raw"), rules)


def pretraining_loop(folder: Path, precision: str, attention: str, **options):
    """Return the training loop of `pretrain` before it runs."""
    from bert_snli import pretrain
    from bert_snli.training.run import make_loop

    arguments = pretrain.PretrainArguments(
        dataset_name_or_path=str(folder / "corpus"),
        output_dir=str(folder / "run"),
        train_batch_size=32,
        max_length=48,
        min_freq=1,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        **options,
    )
    accelerator, (rules, paragraphs) = accelerator_on_cuda(precision), sentence_splits(folder)
    tokenizer = pretrain.make_tokenizer(arguments, rules, paragraphs.train)
    with fake_tensors():
        train, evaluation = pretrain.load_pairs(arguments, paragraphs, tokenizer, accelerator.device)
        model = pretrain.make_model(arguments, tokenizer)
        task = pretrain.make_task(arguments, accelerator, model, tokenizer, train, evaluation, "validation")
        model.set_attn_implementation(attention)
        return make_loop(arguments, accelerator, task)


def take_updates(loop) -> None:
    """Train for `UPDATES` updates. The host must not read a value from the device."""
    with fake_tensors(), host_reads(allowed=False):
        loop.module.train()
        loop.sampler.set_epoch(0)
        loop._start_interval([])
        micro_batches = (loop.task.pairs[micro_batch] for micro_batch in loop.sampler)
        for rows in loop.sampler.global_batches()[:UPDATES]:
            loop._update(micro_batches, rows)
            loop.progress.step += 1


def check_finetuning(folder: Path, precision: str, **options) -> None:
    """Run updates of `finetune`."""
    take_updates(finetuning_loop(folder, precision, **options))


def check_pretraining(folder: Path, precision: str, attention: str, **options) -> None:
    """Run updates of `pretrain`."""
    take_updates(pretraining_loop(folder, precision, attention, **options))


def check_log_line(folder: Path) -> None:
    """Write a line of metrics after some updates. This is the only place where the host reads values."""
    (folder / "run").mkdir()
    loop = finetuning_loop(folder, "fp16")
    take_updates(loop)
    with fake_tensors(), host_reads(allowed=True):
        loop.clock = 0.0
        loop._log_interval()
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def check_evaluation(folder: Path, head: str, attention: str) -> None:
    """Evaluate several batches as `finetune` and `evaluate` do. The host reads values after the last batch."""
    from bert_snli.data.batching import PaddedPairs
    from bert_snli.inference import (
        as_logits_function,
        batches_by_length,
        compute_logits,
        load_classifier,
        predict_logits,
    )

    accelerator, (tokenizer, _, encoded) = accelerator_on_cuda("no"), encoded_pairs(folder)
    with fake_tensors():
        model = load_classifier(str(folder / head))
        model.set_attn_implementation(attention)
    with fake_tensors(), host_reads(allowed=False):
        compute = as_logits_function(model, accelerator)
        padded = PaddedPairs(encoded, tokenizer.pad_token_id, device=compute.device)
        logits_RC = compute_logits(compute, padded, batches_by_length(padded.lengths, 16))
        assert logits_RC.device == accelerator.device and logits_RC.shape == (len(encoded), 3)
    with fake_tensors(), host_reads(allowed=True):
        options: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "accelerator": accelerator}
        assert predict_logits(model, encoded, batch_size=16, **options).shape == (len(encoded), 3)


def check_prediction(folder: Path) -> None:
    """Predict a list and a stream of pairs, each of several batches."""
    from bert_snli.inference import load_classifier, load_tokenizer
    from bert_snli.prediction import Predictor

    accelerator, pairs = accelerator_on_cuda("no"), [("a man is running", "a dog " * (1 + n)) for n in range(20)]
    with fake_tensors(), host_reads(allowed=True):
        model, tokenizer = load_classifier(str(folder / "matching")), load_tokenizer(str(folder / "matching"))
        predictor = Predictor(model, tokenizer, batch_size=8, accelerator=accelerator)
        assert len(predictor(pairs)) == 20
        assert sum(len(answers) for _, answers in predictor.stream(pairs)) == 20


def check_pretraining_evaluation(folder: Path) -> None:
    """Run the evaluation of `pretrain`."""
    loop = pretraining_loop(folder, "bf16", "sdpa", per_device_eval_batch_size=16)
    with fake_tensors(), host_reads(allowed=True):
        assert "mlm_loss" in loop.task.evaluate()[0]


def check_resume(folder: Path, precision: str) -> None:
    """Load a checkpoint on the CPU, copy it to the device and continue training."""
    import torch

    loop = finetuning_loop(folder, precision)
    take_updates(loop)
    states = (loop.module.state_dict(), loop.optimizer.state_dict())
    with fake_tensors(), host_reads(allowed=True):
        on_cpu = torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("cpu"), states)
        resumed = finetuning_loop(folder, precision)
        resumed.module.load_state_dict(on_cpu[0])
        resumed.optimizer.load_state_dict(on_cpu[1])
        tensors = [*resumed.module.parameters(), *resumed.module.buffers()]
        tensors += [value for state in resumed.optimizer.state.values() for value in state.values()]
        assert {tensor.device for tensor in tensors} == {loop.accelerator.device}
    take_updates(resumed)


def check_that_reads_are_detected(folder: Path) -> None:
    """Check that the functions above fail if the host reads a value of the device."""
    import torch

    with fake_tensors(), host_reads(allowed=False):
        ones = torch.ones(3, device="cuda")
        for read in (torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.unique, lambda t: t[t > 0], lambda t: bool(t)):
            try:
                read(ones.sum() if read is torch.Tensor.item else ones)
            except Exception:
                continue
            raise AssertionError(f"{read} did not raise")


def check_that_mixed_devices_are_detected(folder: Path) -> None:
    """Check that the functions above fail if pairs are on the CPU and weights on the device."""
    import torch

    with fake_tensors():
        try:
            torch.nn.functional.embedding(torch.ones(3, dtype=torch.long), torch.ones(3, 4, device="cuda"))
        except Exception:
            return
        raise AssertionError("an embedding on cuda took ids on the CPU")


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make all new tensors fake until the block ends."""
    with _mode():
        yield


@contextmanager
def host_reads(*, allowed: bool) -> Iterator[None]:
    """Set whether the host may read values of the device (all are 1) until the block ends."""
    mode = _mode()
    before, mode.reads_allowed = mode.reads_allowed, allowed
    try:
        yield
    finally:
        mode.reads_allowed = before


def _mode():
    if not _modes:
        import numpy as np
        import torch
        from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

        aten = torch.ops.aten

        class FakeCuda(FakeTensorMode):
            reads_allowed = False

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                if function is aten._local_scalar_dense.default and self.reads_allowed:
                    return 1.0
                if function is aten._to_copy.default and not self.reads_allowed:
                    to, source = (kwargs or {}).get("device"), args[0].device
                    if to is not None and to.type == "cpu" and source.type == "cuda":
                        raise RuntimeError("a tensor was copied from cuda to the CPU")
                return super().__torch_dispatch__(function, types, args, kwargs)

        FakeTensor.numpy = lambda tensor: np.ones(tuple(tensor.shape))  # type: ignore[method-assign]
        _modes.append(FakeCuda(allow_non_fake_inputs=True))
    return _modes[0]


_modes: list = []


def pretend() -> None:
    """Patch the checks of PyTorch for a CUDA device, and `Module.to` for modules of fake tensors."""
    import torch

    def to(module: torch.nn.Module, device, *_, **__) -> torch.nn.Module:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and parameter.device != torch.device(device):
                    part._parameters[name] = torch.nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = buffer.to(device)
        return module

    torch.nn.Module.to = to  # type: ignore[method-assign,assignment]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_: True


def main(results: Path) -> None:
    fake_cuda.load()
    pretend()
    from bert_snli.console import quiet_libraries

    quiet_libraries()
    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as inputs:
        make_inputs(Path(inputs))
        for name, check in CASES.items():
            try:
                check(Path(inputs))
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
    results.write_text(json.dumps(found), encoding="utf-8")


def _all_cases() -> dict[str, Callable[[Path], None]]:
    cases: dict[str, Callable[[Path], None]] = {}
    for head, attention in itertools.product(HEADS, ATTENTIONS):
        options: dict[str, Any] = {"classifier_head": head, "attn_implementation": attention}
        for precision, passes in itertools.product(PRECISIONS, (1, 2)):
            cases[f"finetune-{head}-{attention}-{precision}-{passes}"] = partial(
                check_finetuning, precision=precision, num_micro_batches=passes, **options
            )
        cases[f"finetune-{head}-{attention}-own-forward"] = partial(
            check_finetuning, precision="bf16", fast_forward=False, **options
        )
        cases[f"evaluate-{head}-{attention}"] = partial(check_evaluation, head=head, attention=attention)
    for attention, precision, passes in itertools.product(ATTENTIONS, PRECISIONS, (1, 2)):
        cases[f"pretrain-{attention}-{precision}-{passes}"] = partial(
            check_pretraining, precision=precision, attention=attention, num_micro_batches=passes
        )
    for precision in PRECISIONS:
        cases[f"resume-{precision}"] = partial(check_resume, precision=precision)
    return cases | {
        "finetune-adamw_torch": partial(check_finetuning, precision="no", optim="adamw_torch"),
        "finetune-padded": partial(check_finetuning, precision="no", pad_to_max_length=True),
        "log-line": check_log_line,
        "predict": check_prediction,
        "evaluate-pretraining": check_pretraining_evaluation,
        "detects-reads": check_that_reads_are_detected,
        "detects-mixed-devices": check_that_mixed_devices_are_detected,
    }


CASES = _all_cases()

if __name__ == "__main__":
    main(Path(sys.argv[1]))
