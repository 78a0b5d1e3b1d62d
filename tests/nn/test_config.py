"""Every setting is checked, and every refusal names the setting, the value and what is allowed."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import LLAMA, varied

from jax_massact.cli.settings import describe, resolve
from jax_massact.errors import ConfigError, UserError
from jax_massact.measure.definition import Definition, Threshold
from jax_massact.nn.block_config import RopeConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.settings import from_mapping
from jax_massact.studies.probe.settings import ProbeConfig


def refusal(make) -> str:
    with pytest.raises(ConfigError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


SIZES = {
    "depth": "depth", "width": "width", "context_length": "context_length",
    "vocab_size": "embed.vocab_size", "heads": "attention.heads", "kv_heads": "attention.kv_heads",
    "head_dim": "attention.head_dim", "extra_keys": "attention.extra_keys", "hidden": "mlp.hidden",
}
AT_LEAST_1 = "expected: a whole number of at least 1"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -3, 2.0, "8", None, True])
def test_sizes(name, value):
    assert refusal(lambda: varied(LLAMA, **{name: value})) == (
        f"{SIZES[name]} is {value!r}; {AT_LEAST_1}"
    )


@pytest.mark.parametrize(("name", "setting", "value", "allowed"), [
    ("first_position", "first_position", -1, "a whole number of at least 0"),
    ("bias_position", "bias_position", -1, "a whole number of at least 0"),
    ("window", "attention.window", 0, "a whole number of at least 1"),
    ("scale", "attention.scale", 0.0, "a number above 0"),
    ("softcap", "attention.softcap", -1.0, "a number above 0"),
    ("norm_eps", "norm.eps", 0.0, "a number above 0"),
    ("norm_eps", "norm.eps", math.nan, "a number above 0"),
    ("norm_eps", "norm.eps", math.inf, "a number above 0"),
    ("norm_eps", "norm.eps", "1e-5", "a number above 0"),
    ("norm_kind", "norm.kind", "batch", "'rms', 'layer', 'dyt'"),
    ("norm_bias", "norm.bias", True, "False"),
    ("position", "attention.position", "sine",
     "'rope', 'rope_2d', 'alibi', 'alibi_rounded', 'none'"),
    ("positions", "embed.positions", "sine", "'none', 'learned'"),
    ("implementation", "attention.implementation", "triton", "'xla', 'cudnn', 'splash'"),
    ("activation", "mlp.activation", "tanh",
     "'silu', 'gelu_tanh', 'gelu', 'quick_gelu', 'relu', 'clamped_swiglu'"),
    ("dtype", "dtype", "float16", "'float32', 'bfloat16'"),
    ("kv_heads", "attention.kv_heads", 3, "a divisor of attention.heads, which is 4"),
])
def test_model_settings(name, setting, value, allowed):
    message = refusal(lambda: varied(LLAMA, **{name: value}))
    assert message.startswith(f"{setting} is {value!r}; expected")
    assert message.endswith(f": {allowed}")


def test_rotary_positions_need_pairs():
    message = refusal(lambda: varied(LLAMA, head_dim=7))
    assert message == "attention.head_dim is 7; expected with rotary positions: an even number"
    varied(LLAMA, head_dim=7, position="none")
    message = refusal(lambda: varied(LLAMA, rope=RopeConfig(factors=(1.0, 2.0))))
    assert message.startswith("rope.factors has 2 entries; expected: one for each pair")
    assert message.endswith(", 4")
    assert refusal(lambda: RopeConfig(base=0.0)) == "rope.base is 0.0; expected: a number above 0"
    assert refusal(lambda: RopeConfig(scale=0.0)) == "rope.scale is 0.0; expected: a number above 0"


def test_how_many_queries_see_the_extra_keys():
    """A query at position p sees a key at position b where p - b < window."""
    config = varied(LLAMA, window=5, first_position=3, bias_position=1)
    assert config.reach(config.block) == 3
    assert varied(config, first_position=9).reach(config.block) == 0
    assert varied(config, bias_position=None).reach(config.block) is None
    assert varied(config, window=None).reach(varied(config, window=None).block) is None


@pytest.mark.parametrize(("setting", "value", "allowed"), [
    ("sequences", 0, "a whole number of at least 1 and at most 1000000"),
    ("sequences", 1_000_001, "a whole number of at least 1 and at most 1000000"),
    ("sequence_length", 0, "a whole number of at least 1 and at most 1048576"),
    ("batch_size", 65_537, "a whole number of at least 1 and at most 65536"),
    ("batch_size", 1.5, "a whole number of at least 1 and at most 65536"),
    ("top_k", 101, "a whole number of at least 1 and at most 100"),
    ("dtype", "float64", "'float32', 'bfloat16'"),
    ("bos", "yes", "'auto', 'true', 'false'"),
    ("text", 5, "a text, a file, a named source"),
])
def test_probe_settings(setting, value, allowed):
    message = refusal(lambda: ProbeConfig(**{setting: value}))
    assert message == f"{setting} is {value!r}; expected: {allowed}"


@pytest.mark.parametrize("limits", [
    {"sequences": 1_000_000, "sequence_length": 1 << 20, "batch_size": 65_536, "top_k": 100},
    {"sequences": 1, "sequence_length": 1, "batch_size": 1, "top_k": 1},
])
def test_limits_are_themselves_allowed(limits):
    ProbeConfig(**limits)


@pytest.mark.parametrize(("bos", "kept"), [
    (True, "true"), (False, "false"), ("True", "true"), ("AUTO", "auto"),
])
def test_bos_is_written_in_any_way(bos, kept):
    assert ProbeConfig(bos=bos).bos == kept


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Threshold(magnitude=-1.0, ratio=1.0),
     "magnitude is -1.0; expected: a number of at least 0"),
    (lambda: Threshold(magnitude=1.0, ratio=math.nan),
     "ratio is nan; expected: a number of at least 0"),
    (lambda: Definition(outlier_share=1.5),
     "definition.outlier_share is 1.5; expected: a number of at least 0 and at most 1"),
    (lambda: Definition(min_share=-0.1),
     "definition.min_share is -0.1; expected: a number of at least 0 and at most 1"),
    (lambda: Definition(min_layers=0),
     "definition.min_layers is 0; expected: a whole number of at least 1"),
    (lambda: Definition(relaxed=Threshold(magnitude=101.0, ratio=1.0)),
     "definition.relaxed.magnitude is 101; expected: at most that of definition.strict, 100"),
    (lambda: Definition(relaxed=Threshold(magnitude=1.0, ratio=2000.0)),
     "definition.relaxed.ratio is 2000; expected: at most that of definition.strict, 1000"),
])
def test_definitions(make, message):
    assert message in refusal(make)


def test_the_default_definition_is_the_papers():
    strict = Definition().strict
    assert (strict.magnitude, strict.ratio) == (100.0, 1000.0)


def test_settings_are_frozen_and_compare_by_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LLAMA.depth = 5  # pyright: ignore
    assert dataclasses.replace(LLAMA) == LLAMA and hash(dataclasses.replace(LLAMA)) == hash(LLAMA)


def test_from_mapping_fills_in_nested_settings():
    config = from_mapping(
        ProbeConfig, {"top_k": 3, "definition": {"strict": {"magnitude": 300, "ratio": 1500.0}}}
    )
    assert config == ProbeConfig(
        top_k=3, definition=Definition(strict=Threshold(magnitude=300.0, ratio=1500.0))
    )
    assert isinstance(config.definition.strict.magnitude, float)
    assert from_mapping(ProbeConfig, {}) == ProbeConfig()


def test_from_mapping_undoes_asdict():
    config = ProbeConfig(sequences=3, bos="true", definition=Definition(min_layers=1))
    assert from_mapping(ProbeConfig, dataclasses.asdict(config)) == config
    rope = RopeConfig(factors=(1.0, 2.0, 3.0, 4.0))
    model = varied(LLAMA, rope=rope, others=(varied(LLAMA, window=4).block,))
    assert from_mapping(ModelConfig, dataclasses.asdict(model)) == model


@pytest.mark.parametrize(("values", "parts"), [
    ({"batchsize": 2}, ["no setting config.batchsize.", "Did you mean batch_size", "Settings here:",
                        "top_k"]),
    ({"definition": {"strikt": {}}}, ["config.definition.strikt.", "Did you mean strict?",
                                      "min_layers"]),
    ({"definition": {"strict": {"magnitude": 1.0, "ratoi": 2.0}}},
     ["config.definition.strict.ratoi.", "Did you mean ratio?", "Settings here: magnitude, ratio"]),
    ({"zzz": 1}, ["no setting config.zzz. Settings here: batch_size, bos"]),
    ({"top_k": 0}, ["config: top_k is 0; expected: a whole number of at least 1"]),
    ({"definition": {"outlier": {"magnitude": -6.0, "ratio": 10.0}}},
     ["config.definition.outlier: magnitude is -6.0; expected: a number of at least 0"]),
])
def test_from_mapping_refuses(values, parts):
    message = refusal(lambda: from_mapping(ProbeConfig, values))
    for part in parts:
        assert part in message
    assert "Did you mean" in message or "zzz" in message or "expected" in message


@pytest.mark.parametrize("value", [5, None, "strict", [1]])
def test_a_group_given_as_one_value(value):
    message = refusal(lambda: from_mapping(ProbeConfig, {"definition": {"strict": value}}))
    assert message == (
        f"config.definition.strict is {value!r}; expected a group of settings: "
        "config.definition.strict.magnitude, config.definition.strict.ratio"
    )


def test_what_a_group_leaves_out_keeps_its_default():
    config = from_mapping(ProbeConfig, {"definition": {"strict": {"magnitude": 300.0}}})
    assert config.definition == Definition(strict=Threshold(magnitude=300.0, ratio=1000.0))
    base = ProbeConfig(top_k=9, definition=Definition(outlier=Threshold(magnitude=1, ratio=2.0)))
    values = {"definition": {"outlier": {"ratio": 3}}}
    config = from_mapping(ProbeConfig, values, defaults=base)
    assert config.top_k == 9
    assert config.definition.outlier == Threshold(magnitude=1, ratio=3.0)


def test_a_setting_without_a_default_left_out():
    message = refusal(lambda: from_mapping(Threshold, {"magnitude": 3.0}, "cut"))
    assert message == "cut.ratio is missing; it has no default"


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(ProbeConfig)]) | st.text(
    max_size=5), st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2) | st.just({}), max_size=3))
def test_no_mapping_breaks_through(values):
    try:
        config = from_mapping(ProbeConfig, values)
    except UserError as error:
        assert str(error)
    else:
        assert from_mapping(ProbeConfig, dataclasses.asdict(config)) == config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A leaf.

    Attributes:
      size: its size.
    """

    size: int = 1
    weights: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch.

    Attributes:
      leaf: the first.
      more: the others.
      bud: one that may be missing.
    """

    leaf: Leaf = Leaf(size=2)
    more: tuple[Leaf, ...] = ()
    bud: Leaf | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree.

    Attributes:
      branch: its branch.
    """

    branch: Branch = Branch()


def test_groups_within_groups_and_tuples_of_groups():
    branch = {"leaf": {"weights": [1, 2.5]}, "more": [{"size": 3}, {}]}
    tree = from_mapping(Tree, {"branch": branch})
    assert tree == Tree(branch=Branch(
        leaf=Leaf(size=2, weights=(1.0, 2.5)), more=(Leaf(size=3), Leaf())
    ))
    assert isinstance(tree.branch.leaf.weights[0], float)
    assert from_mapping(Tree, {"branch": {"bud": {"size": 4}}}).branch.bud == Leaf(size=4)
    assert from_mapping(Tree, {"branch": {"bud": None}}).branch.bud is None
    assert from_mapping(Tree, json.loads(json.dumps(dataclasses.asdict(tree)))) == tree
    message = refusal(lambda: from_mapping(Tree, {"branch": {"more": [{}, {"sise": 3}]}}))
    assert message.startswith("there is no setting config.branch.more[1].sise. Did you mean size?")
    assert "config.branch.more[0] is 7; expected" in refusal(
        lambda: from_mapping(Tree, {"branch": {"more": [7]}})
    )


def test_overrides_reach_groups_within_groups():
    tree = resolve(Tree, None, ["--config.branch.leaf.size=7"])
    assert tree == Tree(branch=Branch(leaf=Leaf(size=7)))
    text = describe(Tree)
    assert "\n  branch.leaf.size " in text
    assert "\n\nbranch.leaf: A leaf.\n  size: its size." in text
