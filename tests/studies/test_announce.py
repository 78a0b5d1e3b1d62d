"""What is said before a study runs: which sequences, which BOS and why, and what is doubtful."""

import io
import json
from pathlib import Path

import pytest
import rich.console
from cli_folders import make_folder

from jax_massact.errors import DataError
from jax_massact.loading import load
from jax_massact.studies.frame import announce, prepare
from jax_massact.studies.settings import RunConfig

TEXT = "A text of more than twelve characters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


def announced(folder: Path, **settings: object) -> list[str]:
    settings = {"text": f"text:{TEXT}", "sequences": 3, "sequence_length": 12, **settings}
    config = RunConfig(**settings)  # type: ignore
    console = rich.console.Console(file=io.StringIO(), width=1000)
    announce(prepare(str(folder), config), config, console)
    return console.file.getvalue().splitlines()  # type: ignore


def test_bos_and_where_it_is_stated(folder: Path) -> None:
    (line,) = announced(folder, bos="true")
    assert line == (
        f"{folder}: 3 x 12 tokens of the text that was given, with BOS <s> (bos=true; "
        "tokenizer_config.json states the token)"
    )
    (line,) = announced(folder)
    assert line.endswith(
        "without BOS (bos=auto: the post-processor of tokenizer.json puts none in front)")


def test_a_second_bos_is_said(folder: Path) -> None:
    (_, note) = announced(folder, bos="true", text=f"text:<s>{TEXT}")
    assert note.startswith("note: 1 of 3 sequences begin with <s> twice")
    assert len(announced(folder, bos="false", text=f"text:<s><s>{TEXT}")) == 1


def test_bos_that_a_family_was_trained_with_is_missed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    stated = json.loads((folder / "config.json").read_text())
    stated |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(stated))
    (_, note) = announced(folder)
    assert note.startswith("note: Mistral 7B was trained with BOS in front") and "bos=true" in note
    assert len(announced(folder, bos="true")) == len(announced(folder, bos="false")) == 1


def test_what_contradicts_in_a_tokenizer_is_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    config = {"bos_token": "<s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (_, note) = announced(folder)
    assert note.startswith(f"note: {folder}: tokenizer_config.json has add_bos_token true")


def test_the_field_of_json_lines_can_be_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"body": TEXT}))
    config = RunConfig(text=str(path), text_field="body", sequences=1, sequence_length=12)
    prepared = prepare(str(folder), config)
    assert prepared.tokenizer.token_strings(prepared.inputs.tokens[0]) == [*TEXT[:12]]
    with pytest.raises(DataError, match="text_field can name 'body'"):
        announced(folder, text=str(path))


def test_a_missing_tokenizer_is_said_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").touch()
    monkeypatch.setattr("jax_massact.families.checkpoint.Checkpoint.load_model", None)
    for read in (lambda: load(folder), lambda: announced(folder)):
        with pytest.raises(DataError, match=r"there is vocab.json\).*\n.*AutoTokenizer"):
            read()
