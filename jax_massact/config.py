"""What a model and a run look like: frozen dataclasses, checked once when they are made."""

import dataclasses
import difflib
import math
import sys
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from jax_massact.errors import ConfigError

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rope", "learned"]
RopePairs = Literal["interleaved", "halves"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu"]
AttentionKind = Literal[
    "standard", "sink", "kv_bias", "k_bias", "v_bias", "sink_logit", "softmax1", "gated"
]
DType = Literal["float32", "bfloat16"]
ImplementationKind = Literal["xla", "cudnn", "splash"]

# Standard deviation of new weights, GPT-2's and LLaMA's.
INIT_STD = 0.02


def check_in(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        choices = ", ".join(repr(a) for a in allowed)
        raise ConfigError(f"{name} is {value!r}; allowed: {choices}")


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ConfigError unless `value` is a whole number in [low, high]."""
    limit = f"a whole number of at least {low}" + ("" if high is None else f" and at most {high}")
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        raise ConfigError(f"{name} is {value!r}; allowed: {limit}")


def check_float(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raises ConfigError unless `value` is a finite number in [low, high], or (low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparing, unlike converting, takes an int of any size.
    inside = is_number and (low < value if open_low else low <= value)
    if not inside or value > min(high, sys.float_info.max):
        above = f"above {low:g}" if open_low else f"of at least {low:g}"
        limit = f"a number {above}" + ("" if high == math.inf else f" and at most {high:g}")
        raise ConfigError(f"{name} is {value!r}; allowed: {limit}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021).

    `pairs` says which two coordinates of a head turn together: `interleaved` (2i, 2i+1), as in
    the paper and in LLaMA's GGUF files, or `halves` (i, i+H/2), as in Hugging Face's files.
    `factors`, one for each pair, divide the frequencies: how Llama 3 stretches its context
    (`nn.layers.llama3_factors`).
    """

    base: float = 10_000.0
    pairs: RopePairs = "halves"
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_float("rope.base", self.base, 0.0, open_low=True)
        check_in("rope.pairs", self.pairs, ("interleaved", "halves"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder-only transformer: everything that is not a weight.

    Letters used for sizes all over the package: V vocabulary, L layers (`depth`), D residual
    stream (`width`), N query heads, K key/value heads, H head dimension, F hidden units of the MLP,
    P learned positions, B sequences, T tokens.

    Attributes:
      first_position: position of the first token that is given to the model.
      attention: which variant of attention, a row of `nn.variants.VARIANTS`.
      bias_position: where k' of `kv_bias` stands: with a sliding window, queries further behind it
        do not see it. None: every query sees it.
      implementation: of attention, as for `nn.attention.attend`; None: the best that can compute
        it on the device at hand.

    Raises:
      ConfigError: a size is out of range, or two settings contradict each other.
    """

    family: str
    vocab_size: int
    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    context_length: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    position: PositionKind = "rope"
    rope: RopeConfig = RopeConfig()
    first_position: int = 0
    activation: ActivationKind = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    attention: AttentionKind = "standard"
    bias_position: int | None = None
    tied_head: bool = False
    dtype: DType = "float32"
    implementation: ImplementationKind | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "depth", "width", "num_heads", "num_kv_heads", "head_dim",
                     "mlp_dim", "context_length"):
            check_int(name, getattr(self, name), 1)
        check_int("first_position", self.first_position, 0)
        check_float("norm_eps", self.norm_eps, 0.0, open_low=True)
        check_in("norm", self.norm, ("rms", "layer"))
        check_in("position", self.position, ("rope", "learned"))
        check_in("activation", self.activation, ("silu", "gelu_tanh", "gelu"))
        check_in("attention", self.attention, get_args(AttentionKind))
        check_in("dtype", self.dtype, ("float32", "bfloat16"))
        if self.implementation is not None:
            check_in("implementation", self.implementation, get_args(ImplementationKind))
        if self.bias_position is not None:
            check_int("bias_position", self.bias_position, 0)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads is {self.num_kv_heads}; allowed: a divisor of num_heads, "
                f"which is {self.num_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"head_dim is {self.head_dim}; allowed with rotary positions: an even number"
            )
        if self.rope.factors is not None and len(self.rope.factors) != self.head_dim // 2:
            raise ConfigError(
                f"rope.factors has {len(self.rope.factors)} entries; expected one for each pair of "
                f"coordinates of a head, {self.head_dim // 2}"
            )
        if self.sliding_window is not None:
            check_int("sliding_window", self.sliding_window, 1)
        if self.norm_bias and self.norm == "rms":
            raise ConfigError("norm_bias is True; allowed with norm='rms': False")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """|a| > magnitude and |a| >= ratio x the median of its sequence at that layer."""

    magnitude: float
    ratio: float

    def __post_init__(self) -> None:
        check_float("magnitude", self.magnitude, 0.0)
        check_float("ratio", self.ratio, 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What counts as massive, and what as an outlier feature. One definition serves everything.

    Attributes:
      strict: the paper's definition (Sun et al. 2024, section 2).
      relaxed: for models in which nothing reaches the strict thresholds. A relaxed hit is never
        called massive without that word.
      outlier: a dimension over this threshold at more than `outlier_share` of the tokens of a
        sequence is an outlier feature there. The magnitude is that of LLM.int8() (Dettmers et al.
        2022).
      outlier_share: also, nothing is massive in a dimension that is over the relaxed threshold at
        more than this share of the tokens.
      min_share, min_layers: a dimension is massive (strict) if it is over the strict threshold in
        more than this share of the sequences at this many layers or more: massive activations stay
        in the residual stream, while chance crossings of the threshold do not.
    """

    strict: Threshold = Threshold(magnitude=100.0, ratio=1000.0)
    relaxed: Threshold = Threshold(magnitude=20.0, ratio=100.0)
    outlier: Threshold = Threshold(magnitude=6.0, ratio=10.0)
    outlier_share: float = 0.5
    min_share: float = 0.5
    min_layers: int = 2

    def __post_init__(self) -> None:
        check_float("definition.outlier_share", self.outlier_share, 0.0, 1.0)
        check_float("definition.min_share", self.min_share, 0.0, 1.0)
        check_int("definition.min_layers", self.min_layers, 1)
        for name in ("magnitude", "ratio"):
            strict, relaxed = getattr(self.strict, name), getattr(self.relaxed, name)
            if relaxed > strict:
                raise ConfigError(
                    f"definition.relaxed.{name} is {relaxed:g}; allowed: at most that of "
                    f"definition.strict, {strict:g}"
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The settings of every command that runs a model on a text.

    Attributes:
      text: `pydoc` (English that every CPython carries), a text or JSONL file, `tfds:NAME[:SPLIT]`,
        or the text itself.
      bos: `true` or `false`, whether every sequence begins with the BOS token; `auto`: as the
        model's own tokenizer does.
      sequences: how many to run.
      sequence_length: tokens in each, BOS included.
      batch_size: sequences in one forward pass.
      dtype: of the weights and the computation.
      definition: what counts as massive.
    """

    text: str = "pydoc"
    bos: str = "auto"
    sequences: int = 10
    sequence_length: int = 512
    batch_size: int = 1
    dtype: DType = "float32"
    definition: Definition = Definition()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"text is {self.text!r}; allowed: a text, a file, a named source")
        object.__setattr__(self, "bos", str(self.bos).lower())
        check_in("bos", self.bos, ("auto", "true", "false"))
        check_int("sequences", self.sequences, 1, 1_000_000)
        check_int("sequence_length", self.sequence_length, 1, 1 << 20)
        check_int("batch_size", self.batch_size, 1, 65_536)
        check_in("dtype", self.dtype, ("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig(RunConfig):
    """The settings of `massact probe`.

    Attributes:
      top_k: how many of the largest magnitudes of each layer to report.
    """

    top_k: int = 5

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("top_k", self.top_k, 1, 100)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterveneConfig(RunConfig):
    """The settings of `massact intervene`.

    Attributes:
      sequences: how many to measure the perplexity on, held out of the calibration.
      calibration_sequences: how many to find massive activations and their means on.
      layers: after which blocks to intervene: `first`, where each massive dimension first appears;
        `all` in which it is massive; or numbers with commas between.
      fractions: of the mean, to set to as well.
      seed: of the choice of ordinary activations for the control.
    """

    sequences: int = 8
    calibration_sequences: int = 8
    layers: str = "first"
    fractions: tuple[float, ...] = (0.5,)
    seed: int = 0

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 2)
        check_int("calibration_sequences", self.calibration_sequences, 1, 1_000_000)
        check_int("seed", self.seed, 0)
        layers = str(self.layers).replace(" ", "")
        if layers not in ("first", "all") and not all(p.isdecimal() for p in layers.split(",")):
            raise ConfigError(
                f"layers is {self.layers!r}; allowed: first, all, or numbers such as 11 or 11,12"
            )
        object.__setattr__(self, "layers", layers)
        fractions = self.fractions if isinstance(self.fractions, tuple) else (self.fractions,)
        for fraction in fractions:
            check_float("fractions", fraction, -1e6, 1e6)
        object.__setattr__(self, "fractions", fractions)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExplainConfig(RunConfig):
    """The settings of `massact explain`.

    Attributes:
      sink_epsilon: a head is a sink head if its mean attention to the first token exceeds this.
      sink_length: over how many first queries that mean is taken.
      location_sequences: in how many sequences to look for massive activations without and with
        BOS; 0 leaves this out.
      location_length: tokens in each of these.
    """

    sequences: int = 20
    sink_epsilon: float = 0.3
    sink_length: int = 64
    location_sequences: int = 100
    location_length: int = 256

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 2)
        check_float("sink_epsilon", self.sink_epsilon, 0.0, 1.0)
        check_int("sink_length", self.sink_length, 1)
        check_int("location_sequences", self.location_sequences, 0, 1_000_000)
        check_int("location_length", self.location_length, 2, 1 << 20)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoldConfig(RunConfig):
    """The settings of `massact fold`.

    Attributes:
      first_token: which token always stands first: `bos`, the id of a token, or a text that is one
        token.
      save: whether to write the folded model.
    """

    sequences: int = 4
    first_token: str = "bos"
    save: bool = True

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 3)
        check_in("save", self.save, (True, False))
        object.__setattr__(self, "first_token", str(self.first_token))



T = TypeVar("T")


def from_mapping(
    cls: type[T], values: Mapping[str, Any], name: str = "config", defaults: T | None = None
) -> T:
    """The settings dataclass `cls` with these values; what is not given keeps its default.

    Args:
      name: what the settings are called in errors.
      defaults: where what is not given comes from; None: the defaults of `cls`.

    Raises:
      ConfigError: a key that `cls` does not have (with the nearest ones), a group of settings given
        as one value, a setting without a default left out, or a value out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    types = get_type_hints(cls)
    given: dict[str, Any] = {}
    if defaults is not None:
        given = {key: getattr(defaults, key) for key in fields}
    for key, value in values.items():
        path = f"{name}.{key}"
        if key not in fields:
            raise ConfigError(unknown_key(path, key, fields))
        kind = types[key]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            value = _group(kind, value, path, given.get(key, fields[key].default))
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        given[key] = value
    for key, field in fields.items():
        if key not in given and field.default is dataclasses.MISSING:
            raise ConfigError(f"{name}.{key} is missing; it has no default")
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _group(kind: type[T], value: Any, path: str, default: Any) -> T:
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and (from_text := getattr(kind, "from_text", None)) is not None:
        return from_text(value)
    if not isinstance(value, Mapping):
        settings = ", ".join(f"{path}.{key}" for key in get_type_hints(kind))
        raise ConfigError(f"{path} is {value!r}; expected a group of settings: {settings}")
    return from_mapping(kind, value, path, default if isinstance(default, kind) else None)


def unknown_key(path: str, key: str, known: Collection[str]) -> str:
    """What to say of a setting that does not exist."""
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"there is no setting {path}.{hint} Settings here: {', '.join(sorted(known))}"
