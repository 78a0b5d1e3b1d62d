"""The settings of studies of a model on a text, and those that several studies share."""

import dataclasses

from jax_massact.errors import ConfigError
from jax_massact.measure.definition import Definition
from jax_massact.nn.config import DType, ModelConfig
from jax_massact.nn.transformer import check_head
from jax_massact.settings import check_float, check_in, check_int

DEFAULT_LENGTH = 512  # of sequences
AUTO = "auto"  # the text of a run, or the help texts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The settings of every command that runs a model on a text.

    Attributes:
      text: `help-3.11` (the help texts of Python 3.11, English), `pydoc` (those of the running
        Python), a text or JSONL file, `tfds:NAME[:SPLIT]`, or `text:` and the text itself. `auto`
        is what a training run held out, and `help-3.11` for all other models.
      text_field: the field of a JSONL file, or the feature of a data set, that holds the text.
      bos: `true` or `false`, whether every sequence begins with the BOS token; `auto`: as the
        model's own tokenizer does.
      images: of an encoder of images, what it runs on in place of a text: a folder of pictures, or
        of a folder for each class; one picture; `tfds:NAME[:SPLIT]`; or an .npz file with `images`.
        The default of a training run is what it held out.
      image_size: side of the square that pictures are cut to, a multiple of a patch's; 0: as the
        model's own rule has it.
      sequences: how many to run; of pictures, too.
      sequence_length: tokens in each, BOS included. The default is shortened to the context of a
        model that takes fewer, and to the rows of a training run.
      batch_size: sequences in one forward pass.
      dtype: of the weights and the computation.
      stream: `true`: blocks are read from the file one at a time, all sequences passing each before
        the next is read, so that memory is two blocks and the sequences' residual streams; `false`:
        the whole model is loaded; `auto`: streamed where it would not fit into memory.
      definition: what counts as massive.
    """

    text: str = AUTO
    text_field: str = "text"
    images: str = ""
    image_size: int = 0
    bos: str = "auto"
    sequences: int = 10
    sequence_length: int = DEFAULT_LENGTH
    batch_size: int = 1
    dtype: DType = "float32"
    stream: str = AUTO
    definition: Definition = Definition()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"text is {self.text!r}; expected: a text, a file, a named source")
        if not isinstance(self.text_field, str):
            raise ConfigError(f"text_field is {self.text_field!r}; expected: the name of a field")
        if not isinstance(self.images, str):
            raise ConfigError(f"images is {self.images!r}; expected: a folder, or tfds:NAME")
        check_int("image_size", self.image_size, 0, 1 << 14)
        object.__setattr__(self, "bos", str(self.bos).lower())
        check_in("bos", self.bos, ("auto", "true", "false"))
        check_int("sequences", self.sequences, 1, 1_000_000)
        check_int("sequence_length", self.sequence_length, 1, 1 << 20)
        check_int("batch_size", self.batch_size, 1, 65_536)
        check_in("dtype", self.dtype, ("float32", "bfloat16"))
        object.__setattr__(self, "stream", str(self.stream).lower())
        check_in("stream", self.stream, (AUTO, "true", "false"))

    @property
    def total(self) -> int:
        """Number of sequences to cut from the text."""
        return self.sequences

    @property
    def spare(self) -> int:
        """Number of positions of the model's context to leave free."""
        return 0

    def check(self, model: ModelConfig) -> None:
        """Checks what depends on the model, before anything is read but its configuration.

        Raises:
          ConfigError: the model cannot be run with these settings.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterveneConfig(RunConfig):
    """The settings of `massact intervene`.

    Attributes:
      sequences: how many to measure the perplexity on, held out of the calibration.
      calibration_sequences: how many to find massive activations and their means on; of pictures,
        as many more, since the mean is over all other pictures.
      layers: after which blocks to intervene: `first`, where each massive dimension first appears;
        `all` in which it is massive; or numbers with commas between.
      fractions: of the mean, to set to as well.
      seed: of the choice of ordinary activations for the control.
      text_embeddings: of an encoder of images, a safetensors file with the embedding of a text for
        each class, under the name of the class: the accuracy of the nearest one is a score.
    """

    sequences: int = 8
    calibration_sequences: int = 8
    layers: str = "first"
    fractions: tuple[float, ...] = (0.5,)
    seed: int = 0
    text_embeddings: str = ""

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if not isinstance(self.text_embeddings, str):
            raise ConfigError(f"text_embeddings is {self.text_embeddings!r}; expected: a file")
        check_int("sequence_length", self.sequence_length, 2)
        check_int("calibration_sequences", self.calibration_sequences, 1, 1_000_000)
        check_int("seed", self.seed, 0)
        layers = str(self.layers).replace(" ", "")
        if layers not in ("first", "all") and not all(p.isdecimal() for p in layers.split(",")):
            raise ConfigError(
                f"layers is {self.layers!r}; expected: first, all, or numbers such as 11 or 11,12"
            )
        object.__setattr__(self, "layers", layers)
        fractions = self.fractions if isinstance(self.fractions, tuple) else (self.fractions,)
        for fraction in fractions:
            check_float("fractions", fraction, -1e6, 1e6)
        object.__setattr__(self, "fractions", fractions)

    @property
    def total(self) -> int:
        """Calibration and held-out sequences."""
        return self.calibration_sequences + self.sequences

    def check(self, model: ModelConfig) -> None:
        """See `RunConfig.check`: there is a loss, and the layers exist."""
        if model.embed.patches is None:
            check_head(model)
        for layer in self.layers.split(",") if self.layers not in ("first", "all") else ():
            check_int("layers", int(layer), 0, model.depth - 1)
