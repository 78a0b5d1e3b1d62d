"""Medium-scale activations of a planted model: kinds, writers down to the unit, interventions."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from json_schema import violations
from planted import BOS, LLAMA_CONFIG, MARK, Plant
from reports import STUDIES, html_of, printed

import jax_massact as ma
from jax_massact.errors import ConfigError
from jax_massact.nn.edits import BandEdits
from jax_massact.report.encode import to_json
from jax_massact.results import MediumResult
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.medium import MediumConfig, measure_medium
from jax_massact.studies.passes import InMemory
from jax_massact.studies.probe.settings import ProbeConfig

L, D, T = LLAMA_CONFIG.depth, LLAMA_CONFIG.width, 60
CONSTANT, RARE, VALUE = 5, 9, 300.0
WRITER, UNIT = 1, 3


@pytest.fixture(scope="module")
def model():
    """Every token but BOS has -VALUE in CONSTANT from the embedding on; BOS gets VALUE in RARE from
    unit UNIT of block WRITER."""
    plant = Plant(LLAMA_CONFIG).mlp(WRITER, UNIT, MARK, RARE, VALUE / 1600)
    plant.p["embed"][:, CONSTANT] = -VALUE
    plant.p["embed"][BOS, CONSTANT] = 0.0
    plant.p["head"] *= 5
    return plant.build()


@pytest.fixture(scope="module")
def inputs():
    tokens = np.random.default_rng(0).integers(2, 60, (6, T)).astype(np.int32)
    tokens[:, 7] = BOS  # of 60 tokens, which is fewer than 2%
    return Inputs(tokens, lambda ids: [f"t{i}" for i in ids])


@pytest.fixture(scope="module")
def result(model, inputs):
    return measure_medium(InMemory(model), inputs, MediumConfig(sequences=2), batch_size=3)


def test_kinds_shares_and_constancy(result, model, inputs):
    assert violations(json.loads(to_json(result)), MediumResult) == []
    by_kind = {(d["dim"], d["kind"]): d for d in result["dims"]}
    feature, rare = by_kind[CONSTANT, "feature"], by_kind[RARE, "token"]
    streams = np.float64(ma.residual_streams(model, inputs.tokens[:4]))[: L - 1]
    size = np.abs(streams)
    hit = (size > 100) & (size < 1000)
    assert result["activations"] == hit.sum()
    assert feature["activations"] == hit[..., CONSTANT].sum()
    assert rare["activations"] == hit[..., RARE].sum()
    assert sum(result["kinds"].values()) == pytest.approx(1)
    assert result["kinds"]["token"] == pytest.approx(hit[..., RARE].sum() / hit.sum())
    column = streams[..., CONSTANT].reshape(L - 1, -1)
    constancy = column.mean(1) ** 2 / (column**2).mean(1)
    np.testing.assert_allclose(feature["constancy"], (constancy.min(), constancy.max()), rtol=1e-4)
    assert feature["mean"] == pytest.approx(column[feature["peak_layer"]].mean(), rel=1e-4)
    assert (rare["first_layer"], rare["constancy"]) == (WRITER, None)
    assert rare["mean"] == pytest.approx(streams[rare["peak_layer"], :, 7, RARE].mean(), rel=1e-4)
    assert rare["tokens"] == [{"token": f"t{BOS}", "kind": "other", "sequences": 4}]


def test_writers_are_named_down_to_the_unit(result):
    rare = next(d for d in result["dims"] if d["dim"] == RARE)
    writer = rare["written_by"][0]
    assert (writer["layer"], writer["sublayer"]) == (WRITER, "mlp")
    assert writer["value"] == pytest.approx(rare["mean"], rel=0.05)
    assert rare["unit"] == UNIT and rare["unit_share"] == pytest.approx(1, abs=0.01)


def test_energy_by_layer(result, model, inputs):
    streams = np.float64(ma.residual_streams(model, inputs.tokens[:4])).reshape(L, -1, D)
    assert [r["layer"] for r in result["layers"]] == list(range(L - 1))
    for r in result["layers"]:
        square = (streams[r["layer"]] ** 2).mean(0)
        hits = np.abs(streams[r["layer"]])
        hit_square = np.where((hits > 100) & (hits < 1000), hits, 0) ** 2
        share = square[CONSTANT] / square.sum()
        assert r["energy"] == pytest.approx(share, rel=1e-4)
        constant = streams[r["layer"], :, CONSTANT].mean() ** 2 / square.sum()
        assert r["constant"] == pytest.approx(constant, rel=1e-4)
        divided = np.sqrt(square.sum() / (square.sum() - hit_square.mean(0).sum()))
        assert r["divided"] == pytest.approx(divided, rel=1e-3)


def test_interventions(result, model, inputs):
    p = result["perplexity"]
    held_out = inputs.tokens[4:]
    assert p["original"] == pytest.approx(float(ma.perplexity(model, held_out)), rel=1e-5)
    # Nearly constants: their mean does what they do.
    assert abs(np.log(p["mean"] / p["original"])) < 0.1 * abs(np.log(p["zero"] / p["original"]))
    assert p["control"] == pytest.approx(p["original"], rel=1e-3)
    assert p["clip"] not in (p["zero"], p["original"])


def test_a_band_is_set_to_a_value_clipped_or_left():
    x = jnp.asarray([[[150.0, -150, 50, 2000, -3, 1]]])
    value = np.arange(12, dtype=np.float32).reshape(2, 6)
    make = lambda **changes: BandEdits(**{
        "layers": jnp.asarray([False, True]), "low": jnp.float32(100), "high": jnp.float32(1000),
        "value": jnp.asarray(value), "limit": jnp.float32(0), "ordinary": jnp.asarray(False),
    } | changes)
    np.testing.assert_array_equal(make().apply(x, 1), [[[6, 7, 50, 2000, -3, 1]]])
    np.testing.assert_array_equal(make().apply(x, 0), x)
    clip = make(limit=jnp.float32(100), value=jnp.zeros((2, 6)))
    np.testing.assert_array_equal(clip.apply(x, 1), [[[100, -100, 50, 2000, -3, 1]]])
    # As many of the same token, from the median of magnitudes on: 3 of 1, 3, 50, 150, 150, 2000.
    control = make(ordinary=jnp.asarray(True), value=jnp.zeros((2, 6)))
    changed = np.asarray(control.apply(x, 1) == 0)[0, 0]
    assert changed.sum() == 2 and not changed[[2, 4, 5]].any()
    with pytest.raises(ValueError, match=r"layers and value have shapes \(2,\) and \(2, 6\)"):
        make().check((1, 1, 6), 3)


def test_some_sequences_must_be_left_for_the_statistics(model, inputs):
    with pytest.raises(ConfigError, match="medium.sequences is 10; expected: fewer than"):
        ProbeConfig(sequences=10, medium=MediumConfig(sequences=10))
    short = measure_medium(InMemory(model), inputs[:2], MediumConfig(sequences=2), batch_size=1)
    assert short is None


@pytest.mark.parametrize("name", ["probe", "fold"])
def test_reports_say_what_was_found(name, result):
    found, *pictures = STUDIES[name].make("strict")
    found |= {"medium": result}
    text = printed(STUDIES[name].report.show, found)
    assert f"{result['activations']:,} activations lie between 100 and 1,000" in text
    assert f"dim {CONSTANT} (" in text and "control, as many ordinary ones to zero" in text
    html = html_of(STUDIES[name].report.sections(found, *pictures))
    assert 'id="medium"' in html and f"<td>{UNIT} (" in html
