"""What `--oov_fallback` does for a fine-tuned model: unknown tokens and accuracy, without it and with it.

python benchmarks/oov_fallback.py MODEL SNLI        # a fine-tuned folder; any source of finetune
"""

from __future__ import annotations

import argparse

import numpy as np

from bert_snli.console import quiet_libraries
from bert_snli.data.pair_encoding import NUM_SPECIAL_TOKENS, encode_pairs, encoder_of
from bert_snli.data.snli import load_snli
from bert_snli.inference import label_names, load_classifier, load_tokenizer, predict_logits
from bert_snli.tokenization import build_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    args = parser.parse_args()
    quiet_libraries()
    model, book = load_classifier(args.model), load_tokenizer(args.model)
    ids = book.get_vocab()
    lower = book.backend_tokenizer.normalizer.normalize_str("A") == "a"
    fallback = build_tokenizer(
        sorted(ids, key=ids.__getitem__),
        model_max_length=book.model_max_length,
        do_lower_case=lower,
        oov_fallback=True,
    )
    for split in ("validation", "test"):
        pairs = load_snli(args.data, splits=[split], labels=label_names(model.config, args.model)).splits[split]
        gold = np.array(pairs["label"])
        encoded = [encode_pairs(pairs, encoder_of(model.config, tokenizer)) for tokenizer in (book, fallback)]
        changed = np.array([ours != theirs for ours, theirs in zip(*(e["input_ids"] for e in encoded), strict=True)])
        print(f"{split}: {len(gold):,} pairs, {changed.sum()} change")
        for name, rows in zip(("book", "fallback"), encoded, strict=True):
            unknown = sum(tokens.count(book.unk_token_id) for tokens in rows["input_ids"])
            share = unknown / (sum(rows["length"]) - NUM_SPECIAL_TOKENS * len(gold))
            right = predict_logits(model, rows, pad_token_id=book.pad_token_id).argmax(-1) == gold
            print(
                f"  {name:9} unknown {unknown:,} ({share:.2%}), accuracy {right.mean():.4f}, "
                f"on pairs that change {right[changed].mean():.4f}"
            )


if __name__ == "__main__":
    main()
