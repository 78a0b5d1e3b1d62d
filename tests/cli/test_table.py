"""The table of commands: every study is a folder and a row, and every row says all of it."""

import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import jax_massact.studies
from jax_massact.cli import main
from jax_massact.cli.settings import attributes
from jax_massact.cli.table import COMMANDS, STUDIES, load
from jax_massact.settings import group_of

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
    assert [*undocumented(load(row.settings))] == []
    assert callable(load(row.run))
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "settings, each as --config.NAME=VALUE" in out
    for field in dataclasses.fields(load(row.settings)):
        assert f"\n  {field.name} " in out or f"\n  {field.name}." in out
    with pytest.raises(SystemExit):
        main(["--help"] if " " not in name else [name.split()[0], "--help"])
    assert row.about[:30] in " ".join(capsys.readouterr().out.split())
