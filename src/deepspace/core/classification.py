"""Scores of predicted clusters against measured ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, recall_score

FloatArray = NDArray[np.float64]
Labels = NDArray[np.str_]

# a model that is certain and wrong would have an infinite log loss
LEAST_PROBABILITY = 1e-3
CLASS_METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "log_loss")


def label_order(labels: Iterable[str]) -> list[str]:
    """Distinct labels in reading order: the numbers in them count as numbers.

    Examples
    --------
    >>> label_order(["10", "2", "1", "2"])
    ['1', '2', '10']
    >>> label_order(["B", "A 11", "A 9"])
    ['A 9', 'A 11', 'B']
    """

    def pieces(label: str) -> list[tuple[int, float, str]]:
        found = re.findall(r"\d+|\D+", label)
        return [(0, float(p), p) if p.isdecimal() else (1, 0.0, p) for p in found]

    return sorted(set(labels), key=pieces)


def most_probable(probabilities: FloatArray, names: Sequence[str]) -> Labels:
    """Name of the most probable cluster of each row; the first of equals."""
    found: Labels = np.asarray(names, dtype=np.str_)[np.argmax(probabilities, axis=1)]
    return found


def class_scores(
    truth: Labels, probabilities: FloatArray, names: Sequence[str]
) -> dict[str, float]:
    """Scores of predicted probabilities against true labels, higher is better but for log loss.

    Parameters
    ----------
    truth : ndarray of str, shape (spots,)
        True cluster of each spot; may be one that `names` does not have.
    probabilities : ndarray, shape (spots, names)
        Rows sum to one.
    names : sequence of str
        Clusters of the columns.

    Returns
    -------
    dict
        ``accuracy``; ``macro_f1`` and ``balanced_accuracy`` (mean recall), both plain means over
        the clusters that occur in `truth`, whatever their size; ``log_loss`` in nats, with every
        probability at least 0.001.

    Examples
    --------
    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    >>> found = class_scores(np.array(["a", "a", "b", "b"]), p, ["a", "b"])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'accuracy': 0.75, 'macro_f1': 0.733, 'balanced_accuracy': 0.75, 'log_loss': 0.511}
    """
    predicted = most_probable(probabilities, names)
    present = label_order(truth.tolist())
    every = sorted({*names, *present})  # the order that scikit-learn takes columns in
    wide = np.zeros((len(truth), len(every)))
    wide[:, [every.index(name) for name in names]] = probabilities
    wide = np.maximum(wide, LEAST_PROBABILITY)
    wide /= wide.sum(axis=1, keepdims=True)
    mean = {"labels": present, "average": "macro", "zero_division": 0.0}
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, **mean)),
        "balanced_accuracy": float(recall_score(truth, predicted, **mean)),
        "log_loss": float(log_loss(truth, wide, labels=every)),
    }


def recall_matrix(
    truth: Labels, predicted: Labels, names: Sequence[str]
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Share of each true cluster's spots (row) that were called each cluster (column).

    Returns
    -------
    tuple
        Recall, shape (names, names), rows sum to one or are NaN where a cluster has no spot;
        and the number of spots of each true cluster.

    Examples
    --------
    >>> recall, spots = recall_matrix(np.array(["a", "a", "b"]), np.array(["a", "b", "b"]), "ab")
    >>> recall.tolist(), spots.tolist()
    ([[0.5, 0.5], [0.0, 1.0]], [2, 1])
    """
    counts = confusion_matrix(truth, predicted, labels=list(names))
    spots = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return counts / spots[:, None], spots
