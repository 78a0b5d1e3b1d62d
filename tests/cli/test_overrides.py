"""Every type of setting is read, or refused in words; what is misspelt has the near name beside."""

import dataclasses

import pytest

from jax_massact.bench.attention import AttentionShape
from jax_massact.cli import main, make_parser
from jax_massact.cli.overrides import meant, override
from jax_massact.cli.settings import names, resolve
from jax_massact.cli.table import COMMANDS, load
from jax_massact.errors import ConfigError
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.studies.registers.settings import RegistersConfig
from jax_massact.studies.settings import InterveneConfig
from jax_massact.train.config import TrainConfig


def read(cls, *overrides):
    values = dataclasses.asdict(cls())
    override(cls, values, overrides)
    return values


@pytest.mark.parametrize(("name", "text", "value"), [
    ("steps", "1_000", 1000), ("steps", "0x10", 16), ("steps", "-0o7", -7), ("steps", "007", 7),
    ("steps", "-1", -1), ("optimizer.lr", "1e-3", 0.001),
    ("remat", "True", True), ("remat", "0", False), ("unroll", "false", False),
    ("data.source", "None", "None"), ("data.source", "a=b c", "a=b c"), ("data.source", "", ""),
    ("model.block.attention.window", "12", 12), ("model.block.attention.window", "None", None),
    ("model.block.attention.scale", "0.5", 0.5), ("model.head.pool", "cls", "cls"),
    ("model.block.attention.slopes", "(0.5,1)", (0.5, 1.0)),
    ("model.block.attention.slopes", "none", None), ("model.embed.patches", "none", None),
    ("mesh", "data=4", {"dcn": 1, "data": 4, "fsdp": 1, "model": 1}),
])
def test_a_value_of_every_type(name, text, value):
    for given in ([f"--config.{name}={text}"], [f"--config.{name}", text]):
        found = read(TrainConfig, *given)
        for part in name.split("."):
            found = found[part]
        assert found == value and type(found) is type(value)


def test_several_numbers():
    for text, value in (("0.5", (0.5,)), ("0.5, 1", (0.5, 1.0)), ("[0.5,1,]", (0.5, 1.0)),
                        ("()", ()), ("", ())):
        assert read(InterveneConfig, f"--config.fractions={text}")["fractions"] == value


def test_what_has_no_value():
    assert read(TrainConfig, "--config.remat", "--config.steps=3")["remat"] is True
    with pytest.raises(ConfigError, match="steps has no value; expected: a whole number, as --"):
        read(TrainConfig, "--config.steps", "--config.remat")


def test_a_group_that_may_be_left_out_is_made_by_its_settings():
    grid = read(TrainConfig, "--config.model.embed.patches.size=8",
                "--config.model.embed.patches.grid=2,3")["model"]["embed"]["patches"]
    assert grid == {"size": 8, "grid": (2, 3)}


@pytest.mark.parametrize(("cls", "override", "said"), [
    (ProbeConfig, "sequences=abc", "config.sequences is 'abc'; expected: a whole number"),
    (ProbeConfig, "sequences=3.5", "config.sequences is '3.5'; expected: a whole number"),
    (ProbeConfig, "definition.min_share=x", "config.definition.min_share is 'x'; expected: a num"),
    (TrainConfig, "remat=maybe", "config.remat is 'maybe'; expected: true or false"),
    (TrainConfig, "mesh.fsdp=x", "config.mesh.fsdp is 'x'; expected: a whole number"),
    (TrainConfig, "model.block.attention.window=x",
     "attention.window is 'x'; expected: a whole number, or none"),
    (TrainConfig, "model.block.attention.slopes=1,x",
     "attention.slopes is '1,x'; expected: numbers with commas between, or none"),
    (TrainConfig, "model.others=3", "config.model.others holds groups of settings; expected"),
    (TrainConfig, "=3", "config. has no name; expected: --config.NAME=VALUE, of accumulate"),
    (TrainConfig, "model.=3", "config.model. has no name; expected: --config.model.NAME=VALUE"),
    (TrainConfig, "model.embed.patches=3", "config.model.embed.patches is a group of settings: "),
    (TrainConfig, "model.embed", "config.model.embed is a group of settings: "),
    (TrainConfig, "mesh", "config.mesh has no value; expected: a text"),
    (TrainConfig, "mesh=", "config.mesh has no value; expected: a text"),
    (RegistersConfig, "neurons=1,x",
     "config.neurons is '1,x'; expected: whole numbers with commas between"),
    (AttentionShape, "length=abc", "config.length is 'abc'; expected: a whole number"),
])
def test_a_wrong_value_is_said_with_its_setting_and_what_is_expected(cls, override, said):
    with pytest.raises(ConfigError) as error:
        resolve(cls, None, [f"--config.{override}"])
    assert said in str(error.value)


@pytest.mark.parametrize("name", [n for n, row in COMMANDS.items() if row.settings])
def test_every_setting_of_every_command_is_named_where_config_is_left_out(name, capsys):
    settings = names(load(COMMANDS[name].settings))
    assert settings
    for setting in settings:
        assert f"--config.{setting}=3" in meant(f"--{setting}=3", load(COMMANDS[name].settings))
    assert main([*name.split(), f"--{settings[-1]}=3"]) == 2
    assert f"--config.{settings[-1]}=3" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "said"), [
    ("probe x --sequences 3", "no option --sequences. Did you mean --config.sequences? mas"),
    ("probe x --batch-size=3", "Did you mean --config.batch_size=3?"),
    ("probe x --min_share=1", "Did you mean --config.definition.min_share=1?"),
    ("probe x --confg.sequences=3", "no option --confg.sequences. Did you mean --config.sequ"),
    ("probe x sequences=3", "argument 'sequences=3'. Did you mean --config.sequences=3?"),
    ("train --workdr=x", "no option --workdr. Did you mean --workdir=x? massact train --help"),
    ("train --heads=3", "Did you mean --config.model.block.attention.heads=3?"),
    ("compare --seed=3", "Did you mean --config.seed=3 or --seeds=3?"),
    ("bench train --step=3", "Did you mean --steps=3 or --config.steps=3?"),
    ("probe x --zzz", "there is no option --zzz. massact probe --help lists all"),
    ("list --varints", "there is no option --varints. massact list --help lists all"),
])
def test_what_is_misspelt_has_the_near_name_beside(line, said, capsys):
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("line", "said"), [
    ("prob x", "Did you mean probe?"), ("bench trian", "Did you mean train?"),
    ("compare --seeds=abc", "argument --seeds: 'abc' given; expected: a whole number"),
])
def test_what_argparse_refuses(line, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_setting_with_a_space_stands_anywhere(capsys):
    assert main(["probe", "--config.text=text:a b", "nowhere", "--print-config"]) == 0
    assert '"text": "text:a b"' in capsys.readouterr().out
    assert main(["probe", "--config.text=text:a b", "nowhere", "--mesh=data=1"]) == 2
    assert capsys.readouterr().err.startswith("massact: --mesh is for --plan")


@pytest.mark.parametrize(("line", "expected"), [
    ("probe x --config.sequences=3 --config.sequences 4", {"sequences": 4}),
    ("probe x --config.sequences 4 --config.sequences=3", {"sequences": 3}),
    ("probe --config.text book.txt x", {"text": "book.txt"}),
    ("compare --config.tensorboard x", {"tensorboard": True}),
    ("compare --config.tensorboard False x", {"tensorboard": False}),
])
def test_settings_stand_before_and_after_the_model_and_the_last_one_counts(line, expected):
    line += " --workdir=w"
    args, overrides = make_parser(line.split()).parse_known_args(line.split())
    found = read(load(args.row.settings), *overrides)
    assert (args.runs == ["x"] if args.command == "compare" else args.model == "x")
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("line", "said"), [
    ("--config.sequences=3 probe x", "--config.sequences=3 has no command before it; expected: "
     "massact COMMAND"),
    ("bench --print-config train", "expected: massact bench WHAT"),
    ("train --config=configs/gpt2_tiny.py: --workdir=x", "--config=configs/gpt2_tiny.py:standard"),
])
def test_what_stands_in_the_wrong_place_or_is_left_out(line, said, capsys):
    assert main(line.split()) == 2
    assert said in capsys.readouterr().err
