"""Models on the Hugging Face hub, by id: only the files that are needed, and never a pickle."""

import errno
import re
from pathlib import Path
from typing import NamedTuple

from jax_massact.errors import WeightsError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/")
_OF_A_PAGE = re.compile(r"/(?:tree|blob|resolve|commit)/([^/]+).*")
# Ids without an organisation, from the hub's first days.
_BARE = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
_CACHED = "models--"
_FILES = ["model*.safetensors", "model.safetensors.index.json", "*.json"]
# `*` crosses folders in the hub's patterns.
_NOT = ["*/*"]


class HubModel(NamedTuple):
    """A model on the hub; `revision` is a branch, a tag or a commit, None: the main branch."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def hub_model(text: str) -> HubModel | None:
    """The model that a text names, if it reads like one of the hub's.

    That is organisation/model, with `@revision` or a slash at its end or not; the address of the
    model's page or of a file there; the name of its folder in the hub's cache; or one of a few ids
    without an organisation, such as `gpt2`.
    """
    name = _PAGE.sub("", re.sub(r"[?#].*", "", text), count=1).rstrip("/")
    page = _OF_A_PAGE.search(name)
    name, at, revision = (name[: page.start()], "@", page[1]) if page else name.partition("@")
    if name.startswith(_CACHED):
        name = name.removeprefix(_CACHED).replace("--", "/", 1)
    if (at and not revision) or not (_ID.fullmatch(name) or name in _BARE):
        return None
    return HubModel(name, revision or None)


def in_cache_folder(folder: Path) -> Path:
    """The files of a model's folder in the hub's cache (`models--...`); else `folder` itself.

    Raises:
      WeightsError: the folder holds several revisions and none is the main branch.
    """
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    named = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else snapshots
    found = [named] if main.is_file() and named.is_dir() else sorted(snapshots.iterdir())
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise WeightsError(f"{folder} holds the revisions {listed}; expected: the path of one")
    return found[0]


def fetch_from_hub(model: HubModel) -> Path:
    """The folder of a model, downloaded unless the hub's own cache has it.

    Raises:
      WeightsError: there is no such model or no way to reach it, or access must be asked for.
    """
    import huggingface_hub
    from huggingface_hub import errors

    name = model.name
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=model.revision, allow_patterns=_FILES, ignore_patterns=_NOT
            )
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
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{model}: the model has no such revision; expected: a branch, a tag or a commit that "
            f"https://huggingface.co/{name}/commits shows"
        ) from error
    except (errors.HFValidationError, errors.DisabledRepoError) as error:
        raise WeightsError(f"{name}: {_first_line(error)}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"{model}: no room is left on the disk of the Hugging Face cache, "
                f"{huggingface_hub.constants.HF_HUB_CACHE}. Set HF_HOME to choose another folder"
            ) from error
        # Without a network the hub's client raises many types, its HTTP library's among them.
        raise WeightsError(
            f"{model} is not in this machine's Hugging Face cache and could not be downloaded: "
            f"{_first_line(error)}. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or copy the "
            "model's folder here and name its path"
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.removeprefix("Got: ").rstrip(".")
