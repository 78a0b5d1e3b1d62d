"""Scores of an encoder's output: how far it has moved, neighbours, classifiers, zero-shot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.errors import DataError, WeightsError
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import Transformer
from jax_massact.weights.safetensors import open_safetensors

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of DINO (Caron et al. 2021)
_RIDGE = 1e-2


class Similarity(TypedDict):
    """Cosine to the unedited output, over pictures."""

    mean: float
    min: float


class ImageScore(TypedDict):
    """What a change does.

    Attributes are null where the model or the pictures do not have what they need.
    """

    features: Similarity  # of what the model pools
    cls: Similarity | None  # of CLS after the final norm
    top1_same: float | None  # pictures with the head's first choice unchanged
    knn: float | None  # accuracy of 20 nearest neighbours among the other pictures
    # Accuracy of a linear classifier of the unedited features of every second picture, on the rest.
    linear: float | None
    # Accuracy of the nearest text embedding, where a file of them is given.
    zero_shot: NotRequired[float | None]


class Output(NamedTuple):
    """What a forward pass ends with; on the device, then of all pictures on the host.

    Attributes:
      features: what the model pools.
      cls: CLS after the final norm.
      choice: the head's first choice.
      embedding: the head's output, such as CLIP's projection; the features without a head.
    """

    features: Any
    cls: Any
    choice: Any
    embedding: Any


def output_of(model: Transformer, x: Float[Array, "B S D"]) -> Output:
    """The output from the residual streams after the last block. Pure."""
    features = model.features(x).astype(jnp.float32)
    cls = model.final_norm(x[:, 0]).astype(jnp.float32)
    logits = model.logits(x).astype(jnp.float32) if model.config.head.present else features
    return Output(features, cls, logits.argmax(-1), logits)


def embedding_width(config: ModelConfig) -> int:
    """Numbers in `Output.embedding` of one image."""
    if config.head.present:
        return config.embed.vocab_size
    return config.width * (2 if config.head.pool == "cls_mean" else 1)


def joined(parts: Sequence[Output]) -> Output:
    """The outputs of several batches as one."""
    return Output(*map(np.concatenate, zip(*parts, strict=True)))


class Judge(NamedTuple):
    """What outputs are scored by.

    Attributes:
      original: the output of the unedited model.
      labels: classes of the pictures; None: they have none, or one alone.
      has_cls, has_head: of the model.
      texts: an embedding for each class, if there are any.
    """

    original: Output
    labels: Int[np.ndarray, " S"] | None
    has_cls: bool
    has_head: bool
    texts: Float[np.ndarray, "classes E"] | None = None

    def score(self, out: Output) -> ImageScore:
        """The scores of an output of the same pictures."""
        labels, original = self.labels, self.original
        score = ImageScore(
            features=similarity(out.features, original.features),
            cls=similarity(out.cls, original.cls) if self.has_cls else None,
            top1_same=float((out.choice == original.choice).mean()) if self.has_head else None,
            knn=None if labels is None else knn_accuracy(np.asarray(out.features), labels),
            linear=None if labels is None else linear_accuracy(
                np.asarray(original.features), np.asarray(out.features), labels
            ),
        )
        if self.texts is not None:
            score["zero_shot"] = zero_shot_accuracy(out.embedding, self.texts, labels)
        return score


def labels_of(labels: Sequence[int]) -> Int[np.ndarray, " S"] | None:
    """Labels as an array; None where they tell nothing apart."""
    found = np.asarray(list(labels), int)
    return found if len(np.unique(found)) > 1 else None


def mean_score(scores: Sequence[ImageScore]) -> ImageScore:
    """The mean over draws; of the smallest cosines the smallest."""

    def part(name: str) -> Any:
        values: list[Any] = [score[name] for score in scores]
        if values[0] is None:
            return None
        if isinstance(values[0], dict):
            return Similarity(mean=float(np.mean([v["mean"] for v in values])),
                              min=min(v["min"] for v in values))
        return float(np.mean(values))

    found: Any = {name: part(name) for name in scores[0]}
    return found


def similarity(a: Any, b: Any) -> Similarity:
    """Cosines of the rows of two arrays."""
    found = cosines(a, b)
    return Similarity(mean=float(found.mean()), min=float(found.min()))


def read_texts(path: str, classes: Sequence[str], width: int) -> Float[np.ndarray, "classes E"]:
    """Text embeddings of a safetensors file, which has a vector for each class by its name.

    Args:
      classes: in the order of their labels.
      width: of the model's own embedding.

    Raises:
      DataError: there are no classes, the file cannot be read or lacks one of them, or a vector has
        another size.
    """
    if not classes:
        raise DataError(
            f"text_embeddings is {path}; expected with it: pictures in a folder for each class"
        )
    try:
        tensors = open_safetensors(Path(path).expanduser())
        vectors = {name: tensors[name].read() for name in classes if name in tensors}
    except WeightsError as error:
        raise DataError(f"text_embeddings: {error}") from None
    if missing := [name for name in classes if name not in vectors]:
        raise DataError(
            f"text_embeddings: {path} has no vector for {', '.join(missing[:3])}; expected: one "
            "under the name of each class"
        )
    for name, vector in vectors.items():
        if vector.shape != (width,):
            raise DataError(
                f"text_embeddings: {name} of {path} has the shape {vector.shape}; expected: "
                f"({width},), as many numbers as the model gives an image"
            )
    return np.stack([np.float32(vectors[name]) for name in classes])


def zero_shot_accuracy(
    embedding: Float[np.ndarray, "S E"], texts: Float[np.ndarray, "classes E"],
    labels: Int[np.ndarray, " S"] | None,
) -> float | None:
    """Share of pictures to which the text of their own class is the nearest, by cosine."""
    if labels is None:
        return None
    return float(((unit(embedding) @ unit(texts).T).argmax(1) == labels).mean())


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
