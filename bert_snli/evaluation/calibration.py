"""Whether a model is as often right as it says: expected calibration error, and the temperature that would mend it.

Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from bert_snli.evaluation.predictions import Predictions

NUM_BINS = 15
TEMPERATURES = (0.05, 20.0)


def calibration(predictions: Predictions) -> dict:
    """Error, reliability bins, and what is left of error and loss at the temperature with the least loss.

    The temperature is found on the same pairs, so that its error is the best that one number can do there.
    """
    temperature = best_temperature(predictions)
    scaled = np.take_along_axis(predictions.probabilities(temperature), predictions.predictions_R[:, None], axis=1)[
        :, 0
    ]
    bins = reliability_bins(predictions.right_R, predictions.confidence_R)
    return {
        "expected_calibration_error": expected_calibration_error(bins),
        "mean_confidence": float(predictions.confidence_R.mean()),
        "bins": bins,
        "temperature": temperature,
        "error_at_temperature": expected_calibration_error(reliability_bins(predictions.right_R, scaled)),
        "loss_at_temperature": loss_of(predictions, temperature),
    }


def loss_of(predictions: Predictions, temperature: float = 1.0) -> float:
    """Mean cross-entropy, in nats."""
    labels = range(len(predictions.labels))
    return float(log_loss(predictions.references_R, predictions.probabilities(temperature), labels=labels))


def best_temperature(predictions: Predictions) -> float:
    """The temperature with the smallest loss."""
    found = minimize_scalar(
        lambda log_temperature: loss_of(predictions, np.exp(log_temperature)),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
    )
    return float(np.exp(found.x))


def reliability_bins(right_R: np.ndarray, confidence_R: np.ndarray) -> list[dict]:
    """Mean confidence, accuracy and number of pairs of each of `NUM_BINS` equal bins that holds any."""
    accuracies, confidences = calibration_curve(right_R, confidence_R, n_bins=NUM_BINS)
    inner_edges = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner_edges, confidence_R))
    return [
        {"confidence": float(c), "accuracy": float(a), "pairs": int(n)}
        for c, a, n in zip(confidences, accuracies, counts[counts > 0], strict=True)
    ]


def expected_calibration_error(bins: list[dict]) -> float:
    """Mean distance of confidence from accuracy over the pairs."""
    gaps = [abs(entry["confidence"] - entry["accuracy"]) for entry in bins]
    return float(np.average(gaps, weights=[entry["pairs"] for entry in bins]))
