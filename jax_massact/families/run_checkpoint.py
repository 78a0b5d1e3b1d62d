"""The checkpoints of a training run, read as models."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax

from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.tokenizer_files import read_tokenizer
from jax_massact.errors import ConfigError, DataError, WeightsError
from jax_massact.families import own_encoder
from jax_massact.families.checkpoint import Checkpoint
from jax_massact.families.config_files import describe
from jax_massact.mesh import parameter_sharding
from jax_massact.nn.config import DType, ModelConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.transformer import Transformer, abstract, from_parameters, parameters
from jax_massact.settings import check_in, from_mapping
from jax_massact.weights.digests import DIGESTS, damaged_files

# In the folder of a run: its checkpoints, its tokenizer, and the model at its end.
CHECKPOINTS, TOKENIZER, MODEL = "checkpoints", "tokenizer", "model"


@dataclasses.dataclass(frozen=True)
class RunCheckpoint(Checkpoint):
    """The model in one checkpoint of a run; its parameters are arrays under their own names."""

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """The only type that a run trains."""
        return ("float32",)

    def load_model(
        self, dtype: DType = "float32", mesh: jax.sharding.Mesh | None = None
    ) -> Transformer:
        """Reads the parameters straight to where they live.

        Args:
          dtype: of the parameters and of the computation.
          mesh: the devices to lay the parameters out on; None: the default device.

        Raises:
          WeightsError: a file is damaged or missing.
        """
        import orbax.checkpoint as ocp

        check_in("dtype", dtype, ("float32", "bfloat16"))
        if (self.path / DIGESTS).exists() and (wrong := damaged_files(self.path)):
            raise WeightsError(f"{self.path} is damaged: {', '.join(wrong)}")
        config = dataclasses.replace(self.config, dtype=dtype)
        wanted = {
            f"params/{name}": jax.ShapeDtypeStruct(x.shape, dtype, sharding=_place(name, x, mesh))
            for name, x in parameters(abstract(config)).items()
        }
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        try:
            with ocp.PyTreeCheckpointer() as reader:
                found = reader.restore(self.path / "state", args=arguments)
        except (OSError, ValueError, KeyError, TypeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WeightsError(f"{self.path} cannot be read: {line[:300]}") from None
        return from_parameters(
            config, {name.removeprefix("params/"): array for name, array in found.items()}
        )


def _place(name: str, x: Any, mesh: jax.sharding.Mesh | None) -> jax.sharding.Sharding:
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stacked = is_stacked(name)
    return parameter_sharding(mesh, parameter(name).letters, x.shape, stacked=stacked)


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a training run."""
    return (folder / CHECKPOINTS).is_dir()


def open_run(folder: Path, step: int | None = None) -> RunCheckpoint:
    """Opens a checkpoint of a run, without reading its parameters.

    Args:
      folder: the run's `--workdir`.
      step: updates that had been made; None: the newest checkpoint.

    Raises:
      WeightsError: there is no checkpoint of this step, or its settings cannot be read.
    """
    steps = _steps(folder)
    if step is None:
        if not steps:
            raise WeightsError(f"{folder} is a run that has neither ended nor made a checkpoint")
        step = steps[-1]
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise WeightsError(
            f"{folder} has no checkpoint of step {step}; expected: one of {there} "
            "(checkpoint.keep_every keeps them)"
        )
    path = (folder / CHECKPOINTS / str(step)).absolute()
    try:
        settings = json.loads((path / "config" / "metadata").read_text())["model"]
        config = from_mapping(ModelConfig, settings)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WeightsError(
            f"{path} has no settings of a model that this version reads: {error}"
        ) from None
    pictures = own_encoder.rule_of(config)
    family = describe(config)[0].model_type if pictures is None else own_encoder.MODEL_TYPE
    tokenizer = functools.partial(_read_tokenizer, folder)
    return RunCheckpoint(path, family, config, {}, {}, tokenizer, pictures)


def _read_tokenizer(folder: Path) -> Tokenizer:
    for place in (TOKENIZER, MODEL):
        if (path := folder / place / Tokenizer.FILES[0]).exists():
            return read_tokenizer(path)
    raise DataError(f"{folder} has no tokenizer; expected: a run on text, or one that has ended")


def _steps(folder: Path) -> list[int]:
    found = (folder / CHECKPOINTS).glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())
