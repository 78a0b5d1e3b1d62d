"""Registers at test time on an encoder of images, with scores and controls before and after."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jax_massact.measure.image_tokens import MADS, MEDIANS, outlier_patches, token_tap
from jax_massact.measure.register_neurons import (
    move_to_register,
    register_keys,
    with_empty_register,
    with_keys,
    without_units,
)
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION, Remarks
from jax_massact.studies.frame import (
    PreparedImages,
    Progress,
    Stopwatch,
    data_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.image_scores import (
    Judge,
    Output,
    cosines,
    joined,
    labels_of,
    mean_score,
    output_of,
)
from jax_massact.studies.inputs import ImageInputs
from jax_massact.studies.output import Outcome
from jax_massact.studies.registers.names import ARMS
from jax_massact.studies.registers.outliers import (
    Outliers,
    find_outliers,
    norms_of,
    others,
    rank_neurons,
    ratio_of,
)
from jax_massact.studies.registers.result import (
    Arm,
    Neuron,
    RegistersResult,
    Trial,
)
from jax_massact.studies.registers.settings import RegistersConfig

PICTURED = 2
FEW = 100  # pictures; the paper takes 100 to 1,000
_NONE = -1  # the block of a place in the list of units that holds no unit


class Look(NamedTuple):
    """One forward pass.

    Attributes:
      norm: of each token after each block.
      attention: that patches give to the last token in front, or to an extra key.
      output: what it ends with.
      patches: after the final norm.
    """

    norm: Float[Array, "L B S"]
    attention: Float[Array, "L B"]
    output: Output
    patches: Float[Array, "B N D"]


class NormMaps(NamedTuple):
    """A picture's norms of patches after the block of the outliers, for the page.

    Attributes:
      pixels: as the model got it.
      outlier: patches that are outliers before anything is changed.
      maps: the norms under "original", "register" and "kv_bias".
    """

    name: str
    pixels: UInt8[np.ndarray, "Y X 3"]
    outlier: Bool[np.ndarray, "rows columns"]
    maps: dict[str, Float[np.ndarray, "rows columns"]]


def run(
    prepared: PreparedImages, config: RegistersConfig, progress: Progress = silent
) -> Outcome:
    """Finds outlier patches and their neurons, moves these to a register, and says what it does.

    Returns:
      A `RegistersResult`, and `NormMaps` of some pictures.

    Raises:
      WeightsError: a weight cannot be read.
      DataError: there are fewer than two pictures, or one cannot be read.
    """
    watch, seconds = Stopwatch(), {}
    first, rest = prepared.inputs.split(config.sequences)
    model = prepared.checkpoint.load_model(config.dtype)
    size = min(config.batch_size, len(first))
    seconds["load"] = watch.lap()
    edited = _Edited(model, first.length, config.neurons[-1])
    plain = lambda pixels: edited.look("original", pixels, []).norm
    outliers = find_outliers(norms_of(plain, first, size), config)
    ranked = rank_neurons(model, first, outliers, size, config.neurons[-1])
    seconds["find"] = watch.lap()
    trials, number = _try(edited, first, outliers, ranked, config.neurons, size)
    neurons = ranked[:number]
    seconds["try"] = watch.lap()
    edited.add_keys(first, _places(neurons), size)
    arms, maps = _arms(edited, rest, outliers, neurons, config, progress)
    seconds["compare"] = watch.lap()
    result = RegistersResult(
        schema=SCHEMA_VERSION,
        **_remarks(arms, outliers, len(first)),
        model=model_info(prepared, config.dtype, model),
        data=data_info(prepared._replace(inputs=rest), config),
        calibration=len(first),
        rule={"mads": MADS, "medians": MEDIANS},
        kind=outliers.kind,
        layer=outliers.layer,
        begins=outliers.begins,
        last_block=outliers.last,
        outliers=outliers.share,
        chosen=int(outliers.at.sum()),
        neurons=neurons,
        trials=trials,
        arms=arms,
        draws=config.draws,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    )
    return Outcome(result, (maps,))


run_images = run


def _places(neurons: Sequence[Neuron]) -> list[tuple[int, int]]:
    return [(n["block"], n["unit"]) for n in neurons]


class _Edited:
    """The model, the model with an empty register, and with k', v': one compilation each."""

    def __init__(self, model: Transformer, length: int, most: int) -> None:
        self.model, self.length, self.most = model, length, most
        self.with_register = with_empty_register(model)
        self.with_keys: Transformer | None = None
        self._look = jax.jit(_look)

    def add_keys(self, inputs: ImageInputs, units: Sequence[tuple[int, int]], size: int) -> None:
        """Takes the mean key and value of the register, under these units, for `with_keys`."""
        read, sums = jax.jit(register_keys), None
        for rows, pixels, _ in inputs.batches(size):
            found: Any = jax.device_get(read(self.with_register, pixels, self._moved(units)))
            part = [np.float64(x[:, : rows.stop - rows.start]).sum(1) for x in found]
            sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
        assert sums is not None
        k, v = (jnp.asarray(x / len(inputs), jnp.float32) for x in sums)
        self.with_keys = with_keys(self.model, k, v)

    def look(self, name: str, pixels: np.ndarray, units: Sequence[tuple[int, int]]) -> Look:
        """The forward pass of an arm of `names.ARMS`, of these units."""
        if name in ("register", "random", "appended"):
            found = self._look(self.with_register, pixels, self._moved(units))
        else:
            model = self.with_keys if name == "kv_bias" else self.model
            found = self._look(model, pixels, (without_units(*self._padded(units)),))
        return jax.device_get(found)

    def _moved(self, units: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
        config = self.with_register.config
        return move_to_register(config, *self._padded(units), self.length + 1)

    def _padded(self, units: Sequence[tuple[int, int]]) -> tuple[jax.Array, jax.Array]:
        filled = [*units, *[(_NONE, 0)] * (self.most - len(units))]
        layer, unit = zip(*filled, strict=True)
        return jnp.asarray(layer, jnp.int32), jnp.asarray(unit, jnp.int32)


def _look(model: Transformer, images: Any, edits: Sequence[Any]) -> Look:
    x, tokens = model.residual(images, tap=token_tap, edits=edits)
    front = tokens.front.shape[2]
    extra = tokens.extra[..., -1]
    if model.config.block.attention.variant == "standard" and front:
        extra = tokens.patches[..., front - 1]
    patches = model.final_norm(x[:, front:]).astype(jnp.float32)
    return Look(tokens.norm, extra, output_of(model, x), patches)


def _try(
    edited: _Edited, inputs: ImageInputs, outliers: Outliers, ranked: Sequence[Neuron],
    numbers: Sequence[int], size: int,
) -> tuple[list[Trial], int]:
    """What is left of the outliers with so many neurons moved, and the number that is chosen.

    It is the first that leaves none, else the one that leaves the fewest; where there were none,
    the one that brings the largest patch nearest to the median.
    """
    trials = [Trial(neurons=0, outliers=outliers.share, ratio=outliers.ratio)]
    for number in numbers:
        units = _places(ranked[:number])
        norms = norms_of(
            lambda pixels, units=units: edited.look("register", pixels, units).norm, inputs, size
        )[outliers.layer]
        share = float(outlier_patches(norms, np).mean())
        trials.append(
            Trial(neurons=number, outliers=share, ratio=float(ratio_of(norms).mean()))
        )
        if outliers.kind == "outliers" and not share:
            break
    best = min(trials[1:], key=lambda t: (t["outliers"], t["ratio"]))
    return trials, best["neurons"]


class _Totals:
    """What one arm has shown of the pictures so far."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.cosines: list[np.ndarray] = []
        self.sums: dict[str, np.ndarray] = {}
        self.count = 0

    def add(self, look: Look, original: Look, n: int, has_register: bool, has_extra: bool) -> None:
        """Adds a batch of `n` pictures."""
        self.outputs.append(jax.tree.map(lambda x: x[:n], look.output))
        N = look.patches.shape[1]
        norm = np.asarray(look.norm, np.float64)[:, :n]
        patches = norm[..., -N:]
        parts = {
            "median": np.median(patches, -1), "max": patches.max(-1),
            "outliers": outlier_patches(patches, np).mean(-1),
        }
        if has_register:
            parts["register"] = norm[..., -N - 1]
        if has_register or has_extra:
            parts["attention"] = np.asarray(look.attention, np.float64)[:, :n]
        for name, x in parts.items():
            self.sums[name] = self.sums.get(name, 0) + x.sum(1)
        self.count += n
        for b in range(n):
            cosine = cosines(np.asarray(look.patches[b]), np.asarray(original.patches[b]))
            self.cosines.append(cosine.mean(keepdims=True))

    def arm(self, judge: Judge) -> Arm:
        """The means over pictures."""
        mean = {name: x / self.count for name, x in self.sums.items()}
        at = lambda name, l: float(mean[name][l]) if name in mean else None
        cosine = np.concatenate(self.cosines)
        names = ("median", "max", "outliers", "register", "attention")
        rows: list[Any] = [
            {"layer": l, **{name: at(name, l) for name in names}}
            for l in range(len(mean["median"]))
        ]
        return Arm(
            score=judge.score(joined(self.outputs)),
            patches={"mean": float(cosine.mean()), "min": float(cosine.min())},
            norms=rows,
        )


def _arms(
    edited: _Edited, inputs: ImageInputs, outliers: Outliers, neurons: Sequence[Neuron],
    config: RegistersConfig, progress: Progress,
) -> tuple[dict[str, Arm], list[NormMaps]]:
    own = _places(neurons)
    hidden = edited.model.config.block.mlp.hidden
    units: dict[str, Sequence[tuple[int, int]]] = {
        "original": [], "register": own, "kv_bias": own, "zeroed": own, "appended": [],
    }
    for draw in range(config.draws):
        rng = np.random.default_rng([config.seed, draw])
        units[f"random {draw}"] = units[f"random_zeroed {draw}"] = others(
            list(neurons), hidden, rng
        )
    totals, maps = {name: _Totals() for name in units}, []
    size = min(config.batch_size, len(inputs))
    for rows, pixels, _ in inputs.batches(size):
        n, looks = rows.stop - rows.start, {}
        for name, chosen in units.items():
            kind = name.partition(" ")[0]
            look = edited.look(kind, pixels, chosen)
            original = looks.setdefault("original", look)
            if kind in ("register", "kv_bias"):
                looks[kind] = look
            totals[name].add(look, original, n, kind in ("register", "random", "appended"),
                             kind == "kv_bias")
        maps += _maps(looks, inputs, rows, pixels, outliers.layer)[: PICTURED - len(maps)]
        progress(rows.stop, len(inputs))
    judge = Judge(joined(totals["original"].outputs), labels_of(inputs.pictures.labels),
                  inputs.cls, edited.model.config.head.present)
    arms = {name: total.arm(judge) for name, total in totals.items()}
    for name in ("random", "random_zeroed"):
        drawn = [arms.pop(key) for key in list(arms) if key.startswith(f"{name} ")]
        arms[name] = _mean_arm(drawn)
    return {name: arms[name] for name in ARMS}, maps


def _maps(
    looks: dict[str, Look], inputs: ImageInputs, rows: slice, pixels: np.ndarray, layer: int
) -> list[NormMaps]:
    grid, found = inputs.grid, []
    for b in range(rows.stop - rows.start):
        patches = {name: np.asarray(look.norm, float)[layer, b, -look.patches.shape[1] :]
                   for name, look in looks.items()}
        found.append(NormMaps(
            str(inputs.pictures.names[rows.start + b]), pixels[b],
            outlier_patches(patches["original"], np).reshape(grid),
            {name: x.reshape(grid) for name, x in patches.items()},
        ))
    return found


def _mean_arm(drawn: Sequence[Arm]) -> Arm:
    """The mean over draws; of the smallest cosines the smallest."""
    rows: list[Any] = []
    for same in zip(*(arm["norms"] for arm in drawn), strict=True):
        mean = {name: None if x is None else float(np.mean([row[name] for row in same]))
                for name, x in same[0].items()}
        rows.append(mean | {"layer": same[0]["layer"]})
    patches = [arm["patches"] for arm in drawn]
    return Arm(
        score=mean_score([arm["score"] for arm in drawn]),
        patches={"mean": float(np.mean([p["mean"] for p in patches])),
                 "min": min(p["min"] for p in patches)},
        norms=rows,
    )


def _remarks(arms: dict[str, Arm], outliers: Outliers, count: int) -> Remarks:
    warnings, notices = [], []
    bad = [ARMS[name] for name, arm in arms.items()
           if not np.isfinite([arm["score"]["features"]["mean"], arm["norms"][-1]["max"]]).all()]
    if bad:
        warnings.append(f"Not finite: {', '.join(bad)}; there is no verdict.")
    if outliers.kind == "largest":
        notices.append(
            "no patch of the calibration pictures is an outlier: the largest of each is taken for "
            f"one, after block {outliers.layer} {outliers.ratio:.3g} times the median"
        )
    if count < FEW:
        notices.append(f"neurons were found on {count} pictures; the paper takes 100 to 1,000")
    return Remarks(warnings=warnings, notices=notices)
