"""The table of commands: every study is a folder and a row, and every row says all of it."""

import dataclasses
import importlib
import inspect
import shlex
from pathlib import Path

import pytest

import jax_massact
import jax_massact.studies
from jax_massact.cli import following, main, make_parser
from jax_massact.cli.settings import attributes, resolve
from jax_massact.cli.table import COMMANDS, STUDIES, load
from jax_massact.settings import group_of
from jax_massact.train.config import TrainConfig

FOLDERS = {
    path.parent.name for path in Path(jax_massact.studies.__file__).parent.glob("*/__init__.py")
}


def test_every_folder_has_a_row_and_every_row_of_a_study_a_folder():
    assert FOLDERS - COMMANDS.keys() == set(), "folders without a row in cli/table.py"
    assert STUDIES.keys() - FOLDERS == set(), "rows without a folder in studies/"


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_what_the_frame_calls(name):
    run = importlib.import_module(f"jax_massact.studies.{name}.run").run
    assert [*inspect.signature(run).parameters] == ["prepared", "config", "progress"]
    report = importlib.import_module(f"jax_massact.studies.{name}.report")
    assert [*inspect.signature(report.show).parameters] == ["result", "console"]
    assert STUDIES[name].writes.startswith(f"{name}.json")


def test_what_follows_a_study_is_a_study_that_takes_the_model():
    assert {*following.ORDER, *following.ORDER_OF_IMAGES} == STUDIES.keys()
    for name in following.ORDER_OF_IMAGES:
        assert hasattr(importlib.import_module(f"jax_massact.studies.{name}.run"), "run_images")


def undocumented(cls, prefix=""):
    hints = inspect.get_annotations(cls, eval_str=True)
    text = attributes(cls)
    for field in dataclasses.fields(cls):
        names = [n.strip() for line in text.splitlines() if line.startswith("  ")
                 for n in line.partition(":")[0].split(",")]
        if prefix + field.name == "model":
            continue  # the parts of a model are described where they are
        if (group := group_of(hints.get(field.name))) is not None:
            yield from undocumented(group, f"{prefix}{field.name}.")
        elif field.name not in names:
            yield prefix + field.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_answers_and_what_each_setting_means(name, capsys):
    row = COMMANDS[name]
    assert callable(load(row.run))
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and f"example:\n  {row.example}\n" in out
    if row.settings:
        assert [*undocumented(load(row.settings))] == []
        assert "settings, each as --config.NAME=VALUE" in out
        for field in dataclasses.fields(load(row.settings)):
            assert f"\n  {field.name} " in out or f"\n  {field.name}." in out
    with pytest.raises(SystemExit):
        main(["--help"] if " " not in name else [name.split()[0], "--help"])
    assert row.about[:30] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_one_that_it_takes(name):
    row = COMMANDS[name]
    program, *argv = shlex.split(row.example)
    if program == "eval":  # in a shell, which runs what is in $( )
        _, *argv = shlex.split(argv[0].removeprefix("$(").removesuffix(")"))
    args, overrides = make_parser(argv).parse_known_args(argv)
    assert args.command == name
    if row.settings and name != "compare":  # whose file wants a variant
        assert isinstance(resolve(load(row.settings), args.config, overrides), load(row.settings))


def test_settings_are_printed_as_a_file_that_repeats_them(capsys, tmp_path):
    assert main(["train", "--config=configs/gpt2_tiny.py:sink", "--config.steps=7",
                 "--config.mesh=data=2", "--print-config"]) == 0
    file = tmp_path / "mine.json"
    file.write_text(capsys.readouterr().out)
    config = resolve(TrainConfig, str(file), [])
    assert (config.steps, config.mesh.data) == (7, 2)
    assert config.model.block.attention.variant == "sink"
    # What a run needs is not asked for, and what is wrong is still said.
    assert main(["probe", "--print-config", "--config.top_k=0"]) == 2
    assert "top_k is 0" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"massact {jax_massact.__version__}\n"
