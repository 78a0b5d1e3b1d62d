"""The data settings of a run reach its stream, and belong to the run."""

import json
from pathlib import Path

import numpy as np
import pytest

from jax_massact.errors import ConfigError
from jax_massact.train.config import DataConfig, TrainConfig, to_json
from jax_massact.train.data import open_batches
from jax_massact.train.resume import check_settings


def config(**data: object) -> TrainConfig:
    settings = DataConfig(**data)  # type: ignore
    return TrainConfig(data=settings, batch_size=8, sequence_length=16)


@pytest.mark.parametrize("field", ["text", "body"])
@pytest.mark.parametrize("plain", [False, True])
def test_the_settings_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, plain: bool
) -> None:
    monkeypatch.setenv("MASSACT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a<|endoftext|>" * 99, "body": "b<|endoftext|>" * 99}))
    made = open_batches(config(source=str(path), text_field=field, special_tokens_as_text=plain))
    ids = {*np.unique(made.batch(0)).tolist()} - {256}
    letter = ord("a" if field == "text" else "b")
    assert ids == {letter, *(b"<|endoftext|>" if plain else b"")}


def test_a_setting_that_an_earlier_version_did_not_have() -> None:
    before = json.loads(to_json(config()))
    del before["data"]["text_field"], before["data"]["special_tokens_as_text"]
    check_settings(config(), before, 3, "runs/x")
    with pytest.raises(ConfigError, match="data.text_field was 'text' and is 'body'"):
        check_settings(config(text_field="body"), before, 3, "runs/x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"text_field": 3}, "text_field is 3"),
     ({"special_tokens_as_text": "no"}, "special_tokens_as_text is 'no'")],
)
def test_settings_of_another_kind(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)
