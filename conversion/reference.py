"""The book's BERT once more, in numpy and float64, straight from the arrays of its checkpoint: what a proof needs.

It shares no line with the model or with the name map that it is there to check; only the book's own names and
equations (d2l 11.3, 11.5, 11.7, 15.8, 15.7) are in it. Speed is no aim; memory is: one block's arrays are open at a
time, and no more than a chunk of one is in float64.

Shape suffixes: B rows, L positions, D hidden size, F feed-forward size, N heads, H size of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conversion.checkpoint import Checkpoint

ROWS_AT_ONCE = 2048
MASKED = -1e6
LAYER_NORM_EPS = 1e-5

Arrays = Mapping[str, np.ndarray]


class ReferenceModel:
    """Forward passes over the arrays of `checkpoint`, by their names in the book's PyTorch or MXNet code."""

    def __init__(self, checkpoint: Checkpoint, num_heads: int):
        self.checkpoint, self.num_heads = checkpoint, num_heads
        inner = "bert." if any(name.startswith("bert.") for name in checkpoint.tensors) else ""
        self.encoder = f"{inner}encoder."
        self.mxnet = any(name.endswith(".gamma") for name in checkpoint.tensors)

    def layers(self, tokens_BL: np.ndarray, segments_BL: np.ndarray, lengths_B: np.ndarray) -> list[np.ndarray]:
        """The summed embeddings and the output of each block, (B, L, D)."""
        arrays = self._open(self.encoder, "token_embedding.", "segment_embedding.", "pos_embedding")
        x_BLD = arrays["token_embedding.weight"][tokens_BL].astype(np.float64)
        x_BLD = x_BLD + arrays["segment_embedding.weight"][segments_BL]
        x_BLD = x_BLD + arrays["pos_embedding"][:, : tokens_BL.shape[1]]
        layers = [x_BLD]
        while arrays := self._open(f"{self.encoder}blks.{len(layers) - 1}."):
            y_BLD = self._layer_norm(arrays, "addnorm1.ln", x_BLD + self._attention(arrays, x_BLD, lengths_B))
            inner_BLF = np.maximum(_linear(arrays, "ffn.dense1", y_BLD), 0)
            x_BLD = self._layer_norm(arrays, "addnorm2.ln", y_BLD + _linear(arrays, "ffn.dense2", inner_BLF))
            layers.append(x_BLD)
        return layers

    def heads(self, encoded_BLD: np.ndarray) -> dict[str, np.ndarray]:
        """Whatever the checkpoint puts on top of the encoder, by name."""
        arrays = self._open("", "hidden.", "output.", "classifier.", "mlm.", "nsp.")
        cls_BD = encoded_BLD[:, 0]
        if "classifier.0.weight" in arrays:  # the chapter's first form reads <cls> itself
            inner = np.maximum(_linear(arrays, "classifier.0", cls_BD), 0)
            return {"logits": _linear(arrays, "classifier.1" if self.mxnet else "classifier.2", inner)}
        pooled_BD = np.tanh(_linear(arrays, "hidden" if self.mxnet else "hidden.0", cls_BD))
        if "output.weight" in arrays:
            return {"pooler": pooled_BD, "logits": _linear(arrays, "output", pooled_BD)}
        norm, decoder = ("mlm.mlp.1", "mlm.mlp.2") if self.mxnet else ("mlm.mlp.2", "mlm.mlp.3")
        mlm_BLD = self._layer_norm(arrays, norm, np.maximum(_linear(arrays, "mlm.mlp.0", encoded_BLD), 0))
        return {
            "pooler": pooled_BD,
            "masked language model": _linear(arrays, decoder, mlm_BLD),
            "next sentence": _linear(arrays, "nsp.output", pooled_BD),
        }

    def _open(self, prefix: str, *starts: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix` and one of `starts`, under what follows `prefix`."""
        names = [
            name
            for name in self.checkpoint.tensors
            if name.startswith(prefix) and name[len(prefix) :].startswith(starts or "")
        ]
        return {name[len(prefix) :]: array for name, array in self.checkpoint.read(names).items()}

    def _attention(self, arrays: Arrays, x_BLD: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        def heads(name: str) -> np.ndarray:
            y_BLD = _linear(arrays, f"attention.{name}", x_BLD)
            return y_BLD.reshape(*y_BLD.shape[:2], self.num_heads, -1).swapaxes(1, 2)

        query_BNLH, key_BNLH, value_BNLH = heads("W_q"), heads("W_k"), heads("W_v")
        scores_BNLL = query_BNLH @ key_BNLH.swapaxes(2, 3) / np.sqrt(query_BNLH.shape[-1])
        beyond_BL = np.arange(x_BLD.shape[1]) >= lengths_B[:, None]
        scores_BNLL = np.where(beyond_BL[:, None, None], MASKED, scores_BNLL)
        weights_BNLL = np.exp(scores_BNLL - scores_BNLL.max(-1, keepdims=True))
        weights_BNLL = weights_BNLL / weights_BNLL.sum(-1, keepdims=True)
        values_BLNH = (weights_BNLL @ value_BNLH).swapaxes(1, 2)
        return _linear(arrays, "attention.W_o", values_BLNH.reshape(x_BLD.shape))

    def _layer_norm(self, arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
        gamma, beta = ("gamma", "beta") if self.mxnet else ("weight", "bias")
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + LAYER_NORM_EPS)
        return scaled * arrays[f"{name}.{gamma}"] + arrays[f"{name}.{beta}"]


def _linear(arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
    y = np.empty((*x.shape[:-1], len(weight)))
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        y[..., rows] = x @ weight[rows].astype(np.float64).T + bias[rows]
    return y
