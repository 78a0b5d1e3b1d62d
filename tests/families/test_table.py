"""The contract of the table of families: what every row must say, so that no place is forgotten."""

import dataclasses
import functools
import json
import re
import tempfile
from pathlib import Path

import pytest
from parity import gguf_writer
from parity.family_cases import FAMILIES as FAMILY_CASES
from tiny_models import CONFIGS, varied

from jax_massact.families.config_files import (
    describe,
    read_config,
    read_gguf_config,
    readable,
)
from jax_massact.families.own import names_of
from jax_massact.families.places import places_of
from jax_massact.families.table import FAMILIES
from jax_massact.nn.parameters import PARAMETERS
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.nn.variants import VARIANTS
from jax_massact.weights.gguf import open_gguf

CASES = Path(__file__).parents[1] / "parity" / "families"
FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
STATED = {path: json.loads(path.read_text()) for path in FIXTURES.glob("*/config.json")}
GGUFS = {path: open_gguf(path) for path in FIXTURES.glob("gguf/*.gguf")}
ROWS = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)


def configs_of(family):
    """Every configuration of the family that has reference numbers."""
    found = [
        read_config(path)[1]
        for path, stated in STATED.items()
        if stated["model_type"] == family.model_type
    ]
    return found + [config for _, config in read_cases(family.model_type)]


@functools.cache
def read_cases(name):
    """The small models of `parity/family_cases.py` as they are read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"

        def read(case):
            path.write_text(json.dumps(FAMILY_CASES[name].config(case)))
            return read_config(path)

        return [read(case) for case in FAMILY_CASES[name].cases]


def gguf_configs_of(family):
    found = [read_gguf_config(path, file) for path, file in GGUFS.items()]
    return [config for of, config in found if of is family]


@ROWS
def test_reference_numbers_are_there_in_every_format(family):
    assert configs_of(family)
    if family.gguf is not None:
        assert gguf_configs_of(family) or family.model_type in gguf_writer.CONVERSIONS


@ROWS
def test_what_is_written_is_read_again(tmp_path, family):
    configs = [*configs_of(family), *gguf_configs_of(family)]
    if tiny := CONFIGS.get(family.model_type):
        heads = tiny.block.attention.heads
        configs.append(varied(tiny, head_dim=tiny.width // heads, first_position=0))
    found = [describe(config) for config in configs]
    for config, (written, settings) in zip(configs, found, strict=True):
        # A model that an earlier family can state as well is written as one of that.
        assert FAMILIES.index(written) <= FAMILIES.index(family)
        assert settings["model_type"] == written.model_type
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings))
        assert read_config(path) == (written, readable(config))
    assert any(written is family for written, _ in found)


@ROWS
def test_a_folded_model_is_written_and_read_again(tmp_path, family):
    first = configs_of(family)[0]
    folded = dataclasses.replace(
        first.with_attention(variant="kv_bias"), first_position=first.first_position + 1
    )
    if first.block.attention.variant != "standard":
        return
    written, settings = describe(folded)
    assert FAMILIES.index(written) <= FAMILIES.index(family)
    assert settings["model_type"] == f"massact-{written.model_type}"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    assert read_config(path) == (written, readable(folded))


@ROWS
def test_names_cover_the_parameters_and_no_more(family):
    tables = [(family.names, configs_of(family))]
    if family.gguf is not None:
        tables.append((family.gguf.names, gguf_configs_of(family)))
    for names, configs in tables:
        if not configs:
            continue  # their names are covered by the files of `parity`
        configs = [*configs, varied(configs[0], tied=False)]
        used = {name for config in configs for name in places_of(names(config), config, "a file")}
        assert {name for config in configs for name in names(config)} <= used


# Variants' parameters have names of their own, beside those of a family: every family with those
# of two kinds, and every variant with a family of either way of writing names.
WITH_VARIANTS = [
    (family, variant) for family in FAMILIES for variant in sorted(VARIANTS)
    if variant in ("kv_bias", "sink") or family.model_type in ("llama", "gpt2")
]


@pytest.mark.parametrize(
    ("family", "variant"), WITH_VARIANTS,
    ids=[f"{family.model_type}-{variant}" for family, variant in WITH_VARIANTS],
)
def test_models_of_this_package_alone_have_a_place_for_every_parameter(family, variant):
    first = dataclasses.replace(configs_of(family)[0], others=())
    everything = varied(
        first, variant=variant, norm_kind="layer", norm_bias=True, norm_scale=True,
        qkv_bias=True, out_bias=True, mlp_bias=True, gated=True, tied=False, positions="learned",
    )
    names = {**family.names(everything), **family.own_names(everything)}
    places = places_of(names, everything, "a file")
    assert places.keys() == parameters(abstract(everything)).keys()
    # What lies in one tensor has the same axes there, but for its share.
    layouts = {
        (place.template, re.sub(r"\[\w\]", "[]", place.layout.partition("->")[0]))
        for place in places.values()
    }
    assert len({template for template, _ in layouts}) == len(layouts)
    assert set(places) <= set(PARAMETERS)


def test_a_mixture_that_no_family_has_is_written_as_one_with_experts():
    for name in ("olmoe", "qwen2_moe", "mixtral"):
        # As `fold` makes it.
        config = varied(read_cases(name)[0][1], variant="kv_bias", first_position=1)
        family, settings = describe(config)
        assert settings["massact"]["attention"] == "kv_bias"
        names = names_of(family, config)
        assert places_of(names, config, "a file").keys() == parameters(abstract(config)).keys()


def test_groups_that_the_old_falcon_cannot_have_are_not_written_as_one():
    _, config = read_cases("falcon")[0]
    grouped = varied(config, kv_heads=2, parallel=False, shared_norm=False)
    family, settings = describe(grouped)
    # transformers would take as many key heads as query heads.
    assert family.model_type != "falcon" or "massact" in settings
