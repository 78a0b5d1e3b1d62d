"""What features of images are good for: neighbours of the same class, a linear classifier."""

import numpy as np
from jaxtyping import Float, Int

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of DINO (Caron et al. 2021)
_RIDGE = 1e-2


def unit(x: Float[np.ndarray, "S E"]) -> Float[np.ndarray, "S E"]:
    """Each row over its length."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(float).tiny)


def cosines(a: Float[np.ndarray, "S E"], b: Float[np.ndarray, "S E"]) -> Float[np.ndarray, " S"]:
    """Cosine of each row of one to that of the other."""
    return (unit(a) * unit(b)).sum(-1)


def knn_accuracy(features: Float[np.ndarray, "S E"], labels: Int[np.ndarray, " S"]) -> float:
    """Share of pictures whose class most of their neighbours have, weighed by exp(cosine / T)."""
    x = unit(features)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -np.inf)
    k = min(NEIGHBOURS, len(x) - 1)
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    weight = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / TEMPERATURE)
    votes = np.zeros((len(x), labels.max() + 1))
    np.add.at(votes, (np.arange(len(x))[:, None], labels[nearest]), weight)
    return float((votes.argmax(1) == labels).mean())


def linear_accuracy(
    original: Float[np.ndarray, "S E"], features: Float[np.ndarray, "S E"],
    labels: Int[np.ndarray, " S"],
) -> float:
    """Accuracy on every second picture of a ridge regression to classes, fitted to the others.

    Args:
      original: unedited features, which it is fitted to.
      features: those that it is tried on.
    """
    x, y = unit(original)[::2], np.eye(labels.max() + 1)[labels[::2]]
    mean = x.mean(0)
    x = x - mean
    # As many equations as pictures: the features are often more.
    weights = x.T @ np.linalg.solve(x @ x.T + _RIDGE * np.eye(len(x)), y - y.mean(0))
    found = (unit(features)[1::2] - mean) @ weights + y.mean(0)
    return float((found.argmax(1) == labels[1::2]).mean())
