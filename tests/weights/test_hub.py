"""How a model on the hub may be named, and its folder in the hub's cache."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors
from weight_files import write_folder

from jax_massact.errors import WeightsError
from jax_massact.loading import open_checkpoint
from jax_massact.weights.hub import HubModel, hub_model, in_cache_folder

REVISION = "c1de3be9"


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("acme/model", "acme/model", None),
        ("acme/model/", "acme/model", None),
        ("acme/model@main", "acme/model", "main"),
        ("acme/model@refs/pr/7", "acme/model", "refs/pr/7"),
        ("https://huggingface.co/acme/model", "acme/model", None),
        ("https://huggingface.co/acme/model/", "acme/model", None),
        ("huggingface.co/acme/model?library=x#top", "acme/model", None),
        ("https://hf.co/acme/model/tree/v1.0", "acme/model", "v1.0"),
        ("https://huggingface.co/acme/model/blob/main/config.json", "acme/model", "main"),
        ("models--acme--model--2", "acme/model--2", None),
        ("gpt2", "gpt2", None),
        ("gpt2@main", "gpt2", "main"),
        ("distilgpt2", "distilgpt2", None),
    ],
)
def test_ways_to_name_a_model(text: str, name: str, revision: str | None) -> None:
    assert hub_model(text) == HubModel(name, revision)


@pytest.mark.parametrize("text", ["", "model", "a/b/c", "acme/model@", "/acme/model", "@x"])
def test_what_names_none(text: str) -> None:
    assert hub_model(text) is None


def test_a_revision_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, *, revision: str | None, **patterns: object) -> str:
        asked.append((name, revision))
        return str(write_folder(tmp_path / "there"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for text in ("acme/model@v2", "gpt2", "https://huggingface.co/acme/model"):
        assert open_checkpoint(text).config.depth == 2
    assert asked == [("acme/model", "v2"), ("gpt2", None), ("acme/model", None)]


def test_a_revision_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **options: object) -> str:
        response: object = SimpleNamespace(headers={}, request=None)
        raise errors.RevisionNotFoundError("no", response=response)  # pyright: ignore

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match="acme/model@v3: the model has no such revision; exp"):
        open_checkpoint("acme/model@v3")


def test_a_full_disk_is_no_fault_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, **options: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match="no room is left on the disk .* Set HF_HOME") as caught:
        open_checkpoint("acme/model")
    assert "network" not in str(caught.value)


def test_a_folder_of_the_hubs_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--acme--model"
    only = write_folder(folder / "snapshots" / REVISION)
    assert open_checkpoint(str(folder)).path == only == in_cache_folder(folder)
    write_folder(folder / "snapshots" / "older")
    with pytest.raises(WeightsError, match="holds the revisions c1de3be9, older; expected"):
        open_checkpoint(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    assert open_checkpoint(folder).path == only
    assert in_cache_folder(only) == only
    shutil.rmtree(folder / "snapshots" / REVISION)
    with pytest.raises(WeightsError, match="expected: the path of one"):
        (folder / "snapshots" / "third").mkdir()
        open_checkpoint(folder)
