"""Flags and configuration files to settings; every refusal in words."""

import dataclasses
import json
import textwrap

import pytest

from jax_massact.cli.settings import describe, find_file, load_file, resolve
from jax_massact.errors import ConfigError
from jax_massact.measure.definition import Definition, Threshold
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.studies.settings import InterveneConfig
from jax_massact.train.config import TrainConfig, gpt2, to_json


def refusal(file, *overrides):
    with pytest.raises(ConfigError) as error:
        resolve(ProbeConfig, file, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    def write(body, name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(body))
        return str(path)

    return write


GOOD = """
    import ml_collections

    def get_config():
        config = ml_collections.ConfigDict()
        config.top_k = 7
        config.definition = ml_collections.ConfigDict({"min_layers": 3})
        return config
"""
WITH_ARGUMENT = """
    import ml_collections

    def get_config(size):
        sizes = {"small": 16, "large": 64}
        if size not in sizes:
            raise ValueError(f"no size {size!r}; there are: {', '.join(sizes)}")
        return ml_collections.ConfigDict({"sequence_length": sizes[size]})
"""


def test_nothing_given():
    assert resolve(ProbeConfig, None, []) == ProbeConfig()


def test_overrides():
    config = resolve(ProbeConfig, None, [
        "--config.sequences=3", "--config.definition.strict.magnitude=300", "--config.bos=True",
        "--config.text=Some text of mine = this.", "--config.batch_size", "2",
    ])
    assert config == ProbeConfig(
        sequences=3, bos="true", text="Some text of mine = this.", batch_size=2,
        definition=Definition(strict=Threshold(magnitude=300.0, ratio=1000.0)),
    )


def test_a_file_and_overrides_of_it(write):
    config = resolve(ProbeConfig, write(GOOD), ["--config.definition.min_share=0.25"])
    assert config == ProbeConfig(top_k=7, definition=Definition(min_layers=3, min_share=0.25))
    assert resolve(ProbeConfig, write(GOOD), ["--config.top_k=2"]).top_k == 2


def test_a_file_may_give_a_part_of_a_group(write):
    path = write("""
        import ml_collections

        def get_config():
            config = ml_collections.ConfigDict()
            config.definition = ml_collections.ConfigDict()
            config.definition.strict = ml_collections.ConfigDict({"magnitude": 200})
            return config
    """)
    strict = resolve(ProbeConfig, path, []).definition.strict
    assert strict == Threshold(magnitude=200.0, ratio=1000.0)


def test_the_argument_of_a_file(write):
    path = write(WITH_ARGUMENT)
    assert resolve(ProbeConfig, f"{path}:large", []).sequence_length == 64
    message = refusal(f"{path}:huge")
    assert path in message and "no size 'huge'; there are: small, large" in message
    assert refusal(path) == f"{path}: get_config needs an argument, FILE:ARG; ARG is its size"
    listed = write(WITH_ARGUMENT + "    ARGUMENTS = ('small', 'large')\n", "listed.py")
    assert refusal(listed) == (
        f"{listed}: get_config needs an argument, FILE:ARG; expected: small, large; such as "
        f"--config={listed}:small"
    )
    plain = write(GOOD, "plain.py")
    assert refusal(f"{plain}:large") == f"{plain}: get_config takes no 'large'"


@pytest.mark.parametrize(("override", "parts"), [
    ("--config.batchsize=2", ["no setting config.batchsize.", "Did you mean --config.batch_size?"]),
    ("--config.definition.strict.magnitud=2", ["config.definition.strict.magnitud.",
                                               "mean --config.definition.strict.magnitude or "]),
    ("--config.definitoin.strict=2", ["config.definitoin.",
                                      "Did you mean --config.definition.strict?"]),
    ("--config.definition.strict=2", ["config.definition.strict is a group of settings",
                                      "config.definition.strict.magnitude"]),
    ("--config.top_k.x=2", ["config.top_k is one value; it has no setting x"]),
    ("--config.top_k=0", ["top_k is 0; expected: a whole number of at least 1 and at most 100"]),
    ("--config.top_k=many", ["config.top_k", "many"]),
    ("--config.definition.min_share=2", ["min_share is 2.0; expected: a number of at least 0"]),
    ("--config.dtype=float16", ["dtype is 'float16'; expected: 'float32', 'bfloat16'"]),
    ("--config.bos=maybe", ["bos is 'maybe'; expected: 'auto', 'true', 'false'"]),
    ("--top_k=3", ["unexpected argument '--top_k=3'. Did you mean --config.top_k=3?"]),
    ("stray", ["unexpected argument 'stray'"]),
])
def test_wrong_overrides(override, parts):
    message = refusal(None, override)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(("body", "parts"), [
    ("x = 1", ["has no function get_config"]),
    ("get_config = 3", ["has no function get_config"]),
    ("def get_config(:", ["SyntaxError"]),
    ("import not_a_module", ["No module named 'not_a_module'"]),
    ("def get_config():\n    return {'top_k': 3}", ["get_config returned dict; expected",
                                                    "ml_collections.ConfigDict"]),
    (GOOD.replace("top_k", "topk"), ["no setting config.topk.", "Did you mean top_k?"]),
    (GOOD.replace("min_layers", "min_layer"), ["config.definition.min_layer.",
                                               "Did you mean min_layers"]),
    (GOOD.replace("= 7", "= 700"), ["top_k is 700; expected"]),
    (GOOD.replace("= 7", "= 'x'"), ["top_k is 'x'; expected"]),
    (GOOD.replace("top_k = 7", "definition = 7").replace(
        'config.definition = ml_collections.ConfigDict({"min_layers": 3})', ""),
     ["config.definition is 7; expected a group of settings"]),
])
def test_wrong_files(body, parts, write):
    message = refusal(write(body))
    for part in parts:
        assert part in message


@pytest.mark.parametrize("path", sorted(find_file("configs/gpt2_tiny.py")[0].parent.glob("*.py")))
def test_every_configuration_of_the_package_says_which_arguments_it_takes(path):
    name, needed = f"configs/{path.name}", path.name != "probe_paper.py"
    if needed:
        with pytest.raises(ConfigError) as error:
            load_file(name)
        listed = str(error.value).partition("expected: ")[2].partition("; such")[0].split(", ")
        for argument in listed:
            assert load_file(f"{name}:{argument}").steps
        assert "kv_bias" in listed
        wrong = lambda: resolve(TrainConfig, f"{name}:kvbias", [])
    else:
        wrong = lambda: load_file(f"{name}:boss")
    with pytest.raises(ConfigError, match="expected: .*(kv_bias|no_bos)"):
        wrong()


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "nothing.py"
    assert refusal(str(path)) == f"there is no configuration file {path}; expected: FILE[:ARG]"
    assert "there is no configuration file" in refusal(str(tmp_path))
    for misspelt in ("configs/gpt2_tinny.py", "gpt2_tiny.py"):
        assert "Did you mean configs/gpt2_tiny.py? massact list configs" in refusal(misspelt)


def test_files_are_found_from_anywhere(write, tmp_path, monkeypatch):
    path = write(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_file("mine.py").top_k == 7
    assert load_file(path).top_k == 7


def test_help_lists_every_setting():
    text = describe(ProbeConfig)
    for name in ("text", "bos", "sequence_length", "definition.strict.magnitude",
                 "definition.min_layers"):
        assert f"\n  {name} " in text
    assert "100.0" in text and "whether every sequence begins with the BOS token" in text


def test_help_says_what_the_settings_of_a_group_mean():
    text = describe(TrainConfig)
    assert "\n\nmesh: How many devices along each axis; also as one text, --config.mesh=" in (
        text.replace("`", "")
    )
    assert "\n  fsdp: split the batch and every parameter.\n" in text
    assert "\n  keep: how many of the newest to keep.\n" in text and "Raises" not in text
    assert text.count("\n  steps: ") == 1


def test_settings_of_a_run_or_a_result_are_repeated(tmp_path):
    config = InterveneConfig(layers="3", fractions=(0.5, 2.0), bos="true")
    result = {"schema": 1, "config": dataclasses.asdict(config), "perplexity": {"zero": 2.0}}
    (tmp_path / "intervene.json").write_text(json.dumps(result))
    assert resolve(InterveneConfig, str(tmp_path / "intervene.json"), []) == config
    train = TrainConfig(steps=7, model=gpt2(depth=3))
    (tmp_path / "config.json").write_text(to_json(train))
    assert resolve(TrainConfig, str(tmp_path / "config.json"), ["--config.seed=2"]) == (
        dataclasses.replace(train, seed=2)
    )


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.json", "{", "a.json cannot be read: "),
    ("a.json", "[1]", "a.json holds no settings; expected: those of a run or of a result"),
    ("a.json", '{"schema": 3, "groups": []}', "holds no settings"),
    ("a.json", '{"rows": [], "hardware": 2}', "no settings of this command, but hardware, rows"),
    ("a.yaml", "a: 1", "a.yaml cannot be read as settings; expected: a .py file with get_config"),
    ("a", "", "cannot be read as settings"),
])
def test_files_that_are_no_settings(write, name, content, said):
    assert said in refusal(write(content, name))


def test_a_colon_in_a_path(write):
    write(WITH_ARGUMENT, "run 12:30:05.py")
    path = write(WITH_ARGUMENT, "12:30.py")
    assert resolve(ProbeConfig, f"{path}:small", []).sequence_length == 16
    assert "12:30.py: get_config needs an argument, FILE:ARG" in refusal(path)
