"""Compute d2l's BERT in numpy and float64 from the arrays of a d2l checkpoint, to check a conversion.

This module follows d2l's names and equations (d2l 11.3, 11.5, 11.7, 15.8, 15.7). It shares no code with the model and
the name map, because it checks them.

Shape suffixes: B rows, L positions, D hidden size, F feed-forward size, N attention heads, H size of a head.
"""

import itertools

import numpy as np

from conversion.checkpoint import Checkpoint
from conversion.d2l_layout import MXNET

MASKED_SCORE = -1e6
LAYER_NORM_EPS = 1e-5


class ReferenceModel:
    """The forward pass of `checkpoint`, whose tensors have the names of d2l's PyTorch or MXNet code."""

    def __init__(self, checkpoint: Checkpoint, num_attention_heads: int):
        self.path, self.arrays = checkpoint.path, checkpoint.arrays
        self.num_attention_heads = num_attention_heads
        self.encoder = "bert.encoder" if "bert.encoder.pos_embedding" in self.arrays else "encoder"
        self.is_mxnet = checkpoint.framework == MXNET

    def compute_layers(
        self, input_ids: np.ndarray, token_type_ids: np.ndarray, attention_mask: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute embeddings and the output (B, L, D) of each block, and the outputs, named as those of the model."""
        x_BLD = self._array(f"{self.encoder}.token_embedding.weight")[input_ids]
        x_BLD = x_BLD + self._array(f"{self.encoder}.segment_embedding.weight")[token_type_ids]
        x_BLD = x_BLD + self._array(f"{self.encoder}.pos_embedding")[:, : input_ids.shape[1]]
        layers = {"embeddings": x_BLD}
        names = (f"{self.encoder}.blks.{number}" for number in itertools.count())
        for block in itertools.takewhile(lambda name: f"{name}.ffn.dense1.weight" in self.arrays, names):
            attention_BLD = self._attention(f"{block}.attention", x_BLD, attention_mask)
            y_BLD = self._layer_norm(f"{block}.addnorm1.ln", x_BLD + attention_BLD)
            inner_BLF = np.maximum(self._linear(f"{block}.ffn.dense1", y_BLD), 0)
            x_BLD = self._layer_norm(f"{block}.addnorm2.ln", y_BLD + self._linear(f"{block}.ffn.dense2", inner_BLF))
            layers[f"block {len(layers)}"] = x_BLD
        return layers | self._compute_outputs(x_BLD)

    def _compute_outputs(self, encoded_BLD: np.ndarray) -> dict[str, np.ndarray]:
        cls_BD = encoded_BLD[:, 0]
        if "classifier.0.weight" in self.arrays:  # d2l's first edition has no pooler
            inner = np.maximum(self._linear("classifier.0", cls_BD), 0)
            return {"logits": self._linear("classifier.1" if self.is_mxnet else "classifier.2", inner)}
        pooled_BD = np.tanh(self._linear("hidden" if self.is_mxnet else "hidden.0", cls_BD))
        if "output.weight" in self.arrays:
            return {"pooler": pooled_BD, "logits": self._linear("output", pooled_BD)}
        norm, decoder = ("mlm.mlp.1", "mlm.mlp.2") if self.is_mxnet else ("mlm.mlp.2", "mlm.mlp.3")
        mlm_BLD = self._layer_norm(norm, np.maximum(self._linear("mlm.mlp.0", encoded_BLD), 0))
        return {
            "pooler": pooled_BD,
            "prediction_logits": self._linear(decoder, mlm_BLD),
            "seq_relationship_logits": self._linear("nsp.output", pooled_BD),
        }

    def _array(self, name: str) -> np.ndarray:
        return self.arrays[name].astype(np.float64)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._array(f"{name}.weight").T + self._array(f"{name}.bias")

    def _layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        gamma, beta = ("gamma", "beta") if self.is_mxnet else ("weight", "bias")
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + LAYER_NORM_EPS)
        return scaled * self._array(f"{name}.{gamma}") + self._array(f"{name}.{beta}")

    def _attention(self, name: str, x_BLD: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
        def project(layer: str) -> np.ndarray:
            y_BLD = self._linear(f"{name}.{layer}", x_BLD)
            return y_BLD.reshape(*y_BLD.shape[:2], self.num_attention_heads, -1).swapaxes(1, 2)

        query_BNLH, key_BNLH, value_BNLH = project("W_q"), project("W_k"), project("W_v")
        scores_BNLL = query_BNLH @ key_BNLH.swapaxes(2, 3) / np.sqrt(query_BNLH.shape[-1])
        scores_BNLL = np.where(mask_BL[:, None, None], scores_BNLL, MASKED_SCORE)
        weights_BNLL = np.exp(scores_BNLL - scores_BNLL.max(-1, keepdims=True))
        weights_BNLL = weights_BNLL / weights_BNLL.sum(-1, keepdims=True)
        values_BLNH = (weights_BNLL @ value_BNLH).swapaxes(1, 2)
        return self._linear(f"{name}.W_o", values_BLNH.reshape(x_BLD.shape))
