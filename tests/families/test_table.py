"""The contract of the table of families: what every row must say, so that no place is forgotten."""

import json
from pathlib import Path

import pytest
from tiny_models import CONFIGS, varied

from jax_massact.families.config_files import describe, read_config, read_gguf_config
from jax_massact.families.places import places_of
from jax_massact.families.table import FAMILIES
from jax_massact.nn.parameters import PARAMETERS
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.nn.variants import VARIANTS
from jax_massact.weights.gguf import open_gguf

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
STATED = {path: json.loads(path.read_text()) for path in FIXTURES.glob("*/config.json")}
GGUFS = {path: open_gguf(path) for path in FIXTURES.glob("gguf/*.gguf")}
ROWS = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)


def configs_of(family):
    """Every configuration of the family that has reference numbers."""
    return [
        read_config(path)[1]
        for path, stated in STATED.items()
        if stated["model_type"] == family.model_type
    ]


def gguf_configs_of(family):
    found = [read_gguf_config(path, file) for path, file in GGUFS.items()]
    return [config for of, config in found if of is family]


@ROWS
def test_reference_numbers_are_there_in_every_format(family):
    assert configs_of(family)
    assert bool(gguf_configs_of(family)) == (family.gguf is not None)


@ROWS
def test_what_is_written_is_read_again(tmp_path, family):
    configs = [*configs_of(family), *gguf_configs_of(family)]
    tiny, heads = CONFIGS[family.model_type], CONFIGS[family.model_type].block.attention.heads
    configs.append(varied(tiny, head_dim=tiny.width // heads, first_position=0))
    for config in configs:
        written, settings = describe(config)
        assert written is family
        assert settings["model_type"] == family.model_type
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings))
        assert read_config(path) == (family, config)


@ROWS
def test_names_cover_the_parameters_and_no_more(family):
    tables = [(family.names, configs_of(family))]
    if family.gguf is not None:
        tables.append((family.gguf.names, gguf_configs_of(family)))
    for names, configs in tables:
        configs = [*configs, varied(configs[0], tied=False)]
        used = {name for config in configs for name in places_of(names, config, "a file")}
        assert set(names) <= used


@ROWS
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_models_of_this_package_alone_have_a_place_for_every_parameter(family, variant):
    everything = varied(
        CONFIGS[family.model_type], variant=variant, norm_kind="layer", norm_bias=True,
        qkv_bias=True, out_bias=True, mlp_bias=True, gated=True, tied=False, positions="learned",
    )
    places = places_of({**family.names, **family.own_names(everything)}, everything, "a file")
    assert places.keys() == parameters(abstract(everything)).keys()
    layouts = {(place.template, place.layout) for place in places.values()}
    assert len({template for template, _ in layouts}) == len(layouts)
    assert set(places) <= set(PARAMETERS)
