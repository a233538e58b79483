"""Fine-tune a converted model with `transformers.Trainer`, with the recipe of `bert-snli finetune`.

python examples/trainer.py --model_name_or_path models/small --dataset_name_or_path snli_1.0.zip \\
    --output_dir runs/trainer

All options of `TrainingArguments` are options of this script.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from bert_snli import PairEncoder, load_snli  # also registers the model with the Auto classes
from bert_snli.data.batching import GlobalBatchSampler

# bert_snli/recipes/default.yaml with the names of `TrainingArguments`. The defaults of `Trainer` give the rest: fused
# AdamW, a linear schedule, gradients clipped at norm 1, and no weight decay of biases and LayerNorm weights.
RECIPE = {
    "num_train_epochs": 4,
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "warmup_steps": 0.06,  # below 1: a fraction of all updates
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,  # the best checkpoint is kept in addition
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "logging_steps": 50,
}


@dataclass
class ModelAndDataArguments:
    """The base model and the pairs."""

    model_name_or_path: str = field(metadata={"help": "Converted or pretrained model: a folder or a Hub id."})
    dataset_name_or_path: str = field(
        default="stanfordnlp/snli",
        metadata={"help": "A Hub id, a folder of parquet files, or another source that load_snli accepts."},
    )
    classifier_head: str = field(default="matching", metadata={"help": "matching, pooler or mlp."})
    max_length: int = field(default=128, metadata={"help": "Maximum length of a pair in tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N pairs only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first N pairs only."})


class LengthSampler(Sampler[int]):
    """The batches of `bert-snli finetune`: pairs of similar length, and the batches in random order."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.batches = GlobalBatchSampler(lengths, batch_size, seed=seed)

    def __len__(self) -> int:
        return len(self.batches.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. `Trainer` calls this before each epoch."""
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        # `DataLoader` splits the rows into batches again, so the smallest batch must be the last one.
        batches = sorted(self.batches.global_batches(), key=len, reverse=True)
        return iter(np.concatenate(batches).tolist())


class PairTrainer(Trainer):
    """`Trainer` with `LengthSampler`. Its own `group_by_length` sorts 50 batches at a time, which costs accuracy."""

    def _get_train_sampler(self, train_dataset=None) -> LengthSampler:
        args = self.args
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthSampler(self.train_dataset["length"], batch_size, args.seed)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the accuracy."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main() -> None:
    parser = HfArgumentParser((ModelAndDataArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(**RECIPE)
    arguments, training_arguments = parser.parse_args_into_dataclasses()
    set_seed(training_arguments.seed)  # for the weights of the new classifier

    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    encoder = PairEncoder(tokenizer, arguments.max_length)
    with training_arguments.main_process_first():
        splits = load_snli(arguments.dataset_name_or_path, splits=["train", "validation"]).splits
        for split, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
            if limit is not None:
                splits[split] = splits[split].select(range(min(limit, len(splits[split]))))
        encoded = splits.map(encoder, batched=True, remove_columns=["premise", "hypothesis", "label"])

    labels = splits["train"].features["label"].names
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.model_name_or_path,
        classifier_head=arguments.classifier_head,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        max_pair_length=arguments.max_length,  # the pipeline and `bert-snli predict` truncate in the same way
    )
    trainer = PairTrainer(
        model,
        training_arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    trainer.save_model()  # the best epoch, with tokenizer and code
    trainer.save_state()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
