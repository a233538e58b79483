"""Initialise the token embeddings of a model with vectors of a larger encoder.

The vector of a word is the mean of the encoder's hidden states over all layers, all subword tokens of the word and all
its occurrences in the training split (Bommasani et al., 2020). Each sentence counts once. The vectors are projected
onto `hidden_size` principal components.

    bert-snli pretrain --dataset_name_or_path snli_1.0.zip --min_freq 1 --max_steps 1 --output_dir models/random
    python examples/teacher/embed_words.py MODEL models/random snli_1.0.zip models/words
    bert-snli pretrain --dataset_name_or_path snli_1.0.zip --model_name_or_path models/words --output_dir models/start
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from bert_snli.console import run
from bert_snli.data.snli import load_snli
from bert_snli.errors import BertSnliError
from bert_snli.fast.machine import choose_precision
from bert_snli.files import check_output_dir, read_history, write_history
from bert_snli.inference import load_config, load_tokenizer, load_weights
from bert_snli.modeling import D2LBertForPreTraining
from encoders import open_encoder

BATCH = 128  # sentences
STD = 0.1  # standard deviation of the new embeddings


@torch.inference_mode()
def mean_states(
    encoder: PreTrainedModel, pieces: PreTrainedTokenizerBase, sentences: list[list[str]], numbers: dict[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean hidden state of each word in `sentences`, (V, E), and its number of subword tokens, (V,).

    A sentence is a list of words. `numbers` maps a word to its row. Shape suffixes: V words, E hidden size of the
    encoder, B sentences, L positions, P subword tokens.
    """
    sums_VE = torch.zeros(len(numbers), encoder.config.hidden_size, dtype=torch.float64)
    counts_V = torch.zeros(len(numbers), dtype=torch.float64)
    sentences = sorted(sentences, key=len)
    for begin in tqdm(range(0, len(sentences), BATCH), desc="Reading", unit="batch"):
        words = sentences[begin : begin + BATCH]
        batch = pieces(words, is_split_into_words=True, truncation=True, padding=True, return_tensors="pt")
        states = encoder(**batch.to(encoder.device), output_hidden_states=True).hidden_states
        mean_BLE = torch.stack(states).float().mean(dim=0).cpu()
        of_pieces_BL = [
            [-1 if place is None else numbers[words[row][place]] for place in batch.word_ids(row)]
            for row in range(len(words))
        ]
        rows_P = torch.tensor(of_pieces_BL).flatten()
        known_P = rows_P >= 0
        sums_VE.index_add_(0, rows_P[known_P], mean_BLE.flatten(0, 1)[known_P].double())
        counts_V += torch.bincount(rows_P[known_P], minlength=len(counts_V))
    return sums_VE / counts_V.clamp(min=1)[:, None], counts_V


def principal_components(vectors_VE: torch.Tensor, width: int) -> tuple[torch.Tensor, float]:
    """Project the vectors onto `width` principal components, (V, width); also return the explained variance."""
    centred_VE = vectors_VE - vectors_VE.mean(dim=0)
    _, spread, directions = torch.linalg.svd(centred_VE, full_matrices=False)
    share = spread[:width].square().sum() / spread.square().sum()
    return centred_VE @ directions[:width].T, float(share)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="a transformers encoder")
    parser.add_argument("model_name_or_path", help="pretrained folder, hidden size at most that of encoder")
    parser.add_argument("dataset_name_or_path", help="a source of SNLI")
    parser.add_argument("output_dir")
    parser.add_argument("--credit", help="name and licence of the encoder, for the model card (default: its name)")
    options = parser.parse_args(argv)
    check_output_dir(Path(options.output_dir))
    encoder, pieces = open_encoder(options.encoder, AutoModel)
    tokenizer = load_tokenizer(options.model_name_or_path)
    config = load_config(options.model_name_or_path)
    model, _ = load_weights(options.model_name_or_path, config, D2LBertForPreTraining)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    encoder.eval().to(device)
    width = encoder.config.hidden_size
    if width < config.hidden_size:
        raise BertSnliError(
            f"{options.encoder}: hidden size {width} is below the model's {config.hidden_size}; use a larger encoder"
        )
    if choose_precision("auto", device).name == "bf16":
        encoder.bfloat16()

    train = load_snli(options.dataset_name_or_path, splits=["train"]).splits["train"]
    texts = dict.fromkeys([*train["premise"], *train["hypothesis"]])
    unknown = tokenizer.unk_token
    sentences = [[word for word in tokenizer.tokenize(text) if word != unknown] for text in texts]
    vectors_VE, counts_V = mean_states(encoder, pieces, [s for s in sentences if s], tokenizer.get_vocab())
    seen_V = counts_V > 0
    vectors_VD, share = principal_components(vectors_VE[seen_V], config.hidden_size)
    with torch.no_grad():
        weight_VD = model.get_input_embeddings().weight
        torch.manual_seed(0)
        weight_VD.normal_(std=STD)  # for words that do not occur
        weight_VD[seen_V] = (vectors_VD * (STD / vectors_VD.std())).float()
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    called = options.credit or Path(options.encoder).name
    step = (
        f"Its {int(seen_V.sum()):,} words started from vectors of {called}, {config.hidden_size} principal components."
    )
    write_history(Path(options.output_dir), [*read_history(Path(options.model_name_or_path)), step])
    print(f"{int(seen_V.sum()):,} of {len(seen_V):,} words have a vector; explained variance {share:.0%}")


if __name__ == "__main__":
    sys.exit(run(Path(__file__).name, main))
