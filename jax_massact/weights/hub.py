"""Models on the Hugging Face hub, by id: only the files that are needed, and never a pickle."""

import re
from pathlib import Path

from jax_massact.errors import WeightsError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ["model*.safetensors", "model.safetensors.index.json", "*.json"]
# `*` crosses folders in the hub's patterns.
_NOT = ["*/*"]


def is_hub_id(name: str) -> bool:
    """Whether `name` reads like organisation/model."""
    return _ID.fullmatch(name) is not None


def fetch_from_hub(name: str) -> Path:
    """The folder of a model, downloaded unless the hub's own cache has it.

    Raises:
      WeightsError: there is no such model or no way to reach it, or access must be asked for.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=_FILES, ignore_patterns=_NOT)
        )
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{name}: its authors ask for consent first. Accept their terms at "
            f"https://huggingface.co/{name}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name}: the Hugging Face hub has no such model, or it is private (then log in with "
            "`hf auth login`). A folder or a .gguf file is named by its path"
        ) from error
    except (errors.HFValidationError, errors.DisabledRepoError) as error:
        raise WeightsError(f"{name}: {_first_line(error)}") from error
    except Exception as error:
        # Without a network the hub's client raises many types, its HTTP library's among them.
        raise WeightsError(
            f"{name} is not in this machine's Hugging Face cache and could not be downloaded: "
            f"{_first_line(error)}. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or copy the "
            "model's folder here and name its path"
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.removeprefix("Got: ").rstrip(".")
