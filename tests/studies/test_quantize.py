"""`quantize` on a planted model in a folder: rows, ranges, one block at a time, the verdict."""

import json

import in_numpy
import numpy as np
import pytest
from json_schema import violations
from model_folders import folder_of
from planted import BOS, REMOVER, WRITER, Plant, llama_written_and_removed
from planted import LLAMA_CONFIG as CONFIG
from reports import printed

import jax_massact as ma
from jax_massact.errors import ConfigError
from jax_massact.nn.acts import SITES
from jax_massact.nn.edits import Edits
from jax_massact.nn.rounding import INTEGER, Rounding
from jax_massact.report.encode import to_json
from jax_massact.studies.frame import prepare
from jax_massact.studies.quantize.report import show
from jax_massact.studies.quantize.result import QuantizeResult
from jax_massact.studies.quantize.run import run
from jax_massact.studies.quantize.settings import QuantizeConfig
from jax_massact.studies.rounding_rows import Row, parse

T, HELD, STATIC = 10, 4, 2
TEXT = "text:abcdefgh ijklmnop qrstuvwx yz.,;:! " * 20


def settings(**changes) -> QuantizeConfig:
    values = dict(text=TEXT, bos="true", sequence_length=T, calibration_sequences=3,
                  sequences=HELD, static_sequences=STATIC, sensitivity_sequences=2,
                  bits_sequences=2)
    return QuantizeConfig(**values | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    plant = llama_written_and_removed().louder()
    plant.p["head"] *= 10
    return folder_of(plant.build(), tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def prepared(folder):
    return prepare(str(folder), settings())


@pytest.fixture(scope="module")
def result(prepared) -> QuantizeResult:
    rows = ("linear:int8:tensor,linear:int8:static,residual:int8:tensor,linear:int8:token:int4,"
            "linear:float:tensor:int4")
    seen = []
    found = run(prepared, settings(rows=rows), lambda *counts: seen.append(counts)).result
    assert 0 < seen[-1][0] <= seen[-1][1] and seen == sorted(seen)
    return found


def row(result, variant, sites, format, granularity="tensor", weights=None):
    wanted = (variant, sites, format, granularity, weights)
    (one,) = [r for r in result["rows"] if wanted == (
        r["variant"], r["sites"], r["format"], r["granularity"], r["weights"])]
    return one


def held_out(prepared):
    return prepared.inputs.tokens[3 : 3 + HELD]


def test_the_file_holds_what_its_schema_says(result):
    assert violations(json.loads(to_json(result)), QuantizeResult) == []
    assert result["warnings"] == [] and result["data"]["scored_tokens"] == HELD * (T - 1)
    names = [r["variant"] for r in result["rows"]]
    assert list(dict.fromkeys(names)) == ["original", "folded", "kept", "halved"]
    assert len(names) == 4 * 6
    assert any("variant first is the original" in notice for notice in result["notices"])


def test_losses_are_those_of_the_rounded_model(result, prepared, folder):
    """One row by hand: the four inputs of linear layers, one range for each sequence."""
    model, _ = ma.load(folder)
    tokens = held_out(prepared)
    losses = ma.token_losses(model, tokens)
    plain = row(result, "original", "linear", "float")
    np.testing.assert_allclose(plain["loss"]["mean"], losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(plain["perplexity"], np.exp(losses.mean()), rtol=1e-5)
    L, sites = CONFIG.depth, ("attn_in", "z", "mlp_in", "mlp_hidden")
    full = lambda value, dtype: np.full((L, 4), value, dtype)
    rounding = Rounding(full(INTEGER, np.int32), full(127, np.float32), full(False, bool),
                        full(0, np.float32), np.zeros((1, T), bool), {}, sites)
    rounded = lambda m, t, r: ma.measure.loss.losses_of(m(t, rounding=r)[0], t)
    expected = in_numpy.jit(rounded)(model, tokens, rounding)
    found = row(result, "original", "linear", "int8")
    np.testing.assert_allclose(found["loss"]["mean"], expected.mean(), rtol=1e-5)
    change = np.float64(expected - losses).mean(1)
    np.testing.assert_allclose(np.log(found["ratio"]), change.mean(), atol=1e-5)
    np.testing.assert_allclose(found["stderr"], change.std(ddof=1) / 2, rtol=1e-3)


def test_variants_take_the_massive_activation_away(result, prepared, folder):
    """Folded and kept lose less; folded and original in float are the same model."""
    model, _ = ma.load(folder)
    folded = ma.fold(model, BOS)
    tokens = held_out(prepared)
    own = ma.token_losses(folded, tokens[:, 1:])
    np.testing.assert_allclose(
        row(result, "folded", "linear", "float")["loss"]["mean"], own.mean(), rtol=1e-5
    )
    for sites in ("linear", "residual"):
        ratio = {v: row(result, v, sites, "int8")["ratio"] for v in ("original", "folded", "kept")}
        assert abs(np.log(ratio["folded"])) < 0.2 * abs(np.log(ratio["original"])), (sites, ratio)
        assert abs(np.log(ratio["kept"])) < 0.2 * abs(np.log(ratio["original"])), (sites, ratio)
    assert result["kept_tokens"] == 1
    # Nothing but the massive activation of the first token is over half of it.
    (massive,) = result["massive"]
    half = massive["value_mean"] / 2
    set_to_half = Edits.set_to(
        massive["first_layer"], np.arange(tokens.shape[1]) == 0, massive["dim"], half
    )
    own = ma.token_losses(model, tokens, edits=set_to_half)
    halved = row(result, "halved", "linear", "float")["loss"]["mean"]
    np.testing.assert_allclose(halved, own.mean(), rtol=1e-5)
    assert abs(halved - row(result, "original", "linear", "float")["loss"]["mean"]) > 1e-3
    # Ranges of the calibration text are nearly those of the held-out text: BOS is the same.
    static, dynamic = (row(result, "original", "linear", "int8", g) for g in ("static", "tensor"))
    np.testing.assert_allclose(static["ratio"], dynamic["ratio"], rtol=0.1)


def test_weights_are_rounded_where_a_row_says_so(result):
    weights = row(result, "original", "linear", "float", weights=4)
    assert weights["bits"] is None and weights["weights"] == 4 and weights["ratio"] != 1
    both = row(result, "original", "linear", "int8", "token", weights=4)
    assert both["ratio"] != weights["ratio"]


def test_ranges_name_the_token_and_what_it_costs_the_others(result):
    at = {(r["site"], r["layer"]): r for r in result["ranges"]}
    assert len(at) == 8 * CONFIG.depth
    hidden = at["mlp_hidden", WRITER]
    assert hidden["top_token"] == "<s>" and hidden["top_position"] == 0
    assert hidden["top"] == pytest.approx(1600, rel=0.2)
    assert hidden["bits_lost"] == pytest.approx(np.log2(hidden["top"] / hidden["top_without"]),
                                                abs=0.3)
    assert hidden["bits_lost"] > 5 and hidden["zero_share"] > 0.9
    assert hidden["sqnr_without"] > hidden["sqnr"] + 20
    stream = at["resid_post", WRITER]
    assert stream["top"] == pytest.approx(500, rel=0.2)
    assert stream["columns"] - stream["columns_without"] >= 1
    assert at["resid_post", WRITER - 1]["bits_lost"] < 1


def test_the_verdict_names_writer_and_remover_and_the_bits_that_folding_saves(result):
    verdict = result["verdict"]
    assert (verdict["writer"]["layer"], verdict["remover"]["layer"]) == (WRITER, REMOVER)
    alone = {r["layer"]: r["loss_change"] for r in result["sensitivity"]}
    assert len(alone) == CONFIG.depth
    assert verdict["sensitive"] == sorted(
        (layer for layer, change in alone.items() if change > 0.02), key=lambda l: -alone[l])
    assert set(verdict["others"]) == set(verdict["sensitive"]) - {WRITER, REMOVER}
    bits = {(r["variant"], r["sites"]): r for r in result["bits"]}
    assert set(bits) == {(v, s) for v in ("original", "folded") for s in ("linear", "residual")}
    for (_, _), r in bits.items():
        assert r["ratio"] <= 1.1 and 2 <= r["bits"] <= 16
    assert verdict["bits_saved"] == {
        s: bits["original", s]["bits"] - bits["folded", s]["bits"] for s in ("linear", "residual")}


def test_a_quiet_model_rounded_in_other_ways(tmp_path):
    """Kept by PrefixQuant's ratio, rotated, smoothed, by percentile; nothing massive; no token to
    fold, and why."""
    folder = folder_of(Plant(CONFIG).build(), tmp_path / "quiet")
    config = settings(
        variants="original,folded,kept,halved", sensitivity="", sequences=1, static_sequences=1,
        calibration_sequences=1, rows="linear:int8:static@99,residual:int6:tensor,z:float:tensor",
        keep="ratio:1.01", rotate=True, smooth=0.5, first_token="abc", bos="false",
    )
    prepared = prepare(str(folder), config)
    result = run(prepared, config).result
    assert result["massive"] == [] and result["sensitivity"] == [] and result["bits"] == []
    assert "first and folded are left out: first_token 'abc' is 3 tokens" in result["notices"][0]
    assert [r["variant"] for r in result["rows"]] == ["original"] * 4 + ["kept"] * 4
    assert {r["range"] for r in result["rows"]} == {"minmax", "percentile:99"}
    # Rotated and smoothed it is the same model.
    model, _ = ma.load(folder)
    losses = ma.token_losses(model, prepared.inputs.tokens[1:])
    for variant in ("original", "kept"):
        plain = row(result, variant, "linear", "float")["loss"]["mean"]
        np.testing.assert_allclose(plain, losses.mean(), rtol=1e-5)
        assert row(result, variant, "z", "float")["ratio"] == pytest.approx(1, rel=1e-5)
        assert 0 < abs(np.log(row(result, variant, "residual", "int6")["ratio"])) < 0.1
    assert 0 < result["kept_tokens"] < T
    assert "No massive activations" in printed(show, result)


@pytest.mark.parametrize(("text", "says"), [
    ("linear:int8", "2 parts"), ("linear:int1:tensor", "the format is 'int1'"),
    ("linears:int8:tensor", "'linears' is none of"), ("z:int8:all", "the range is 'all'"),
    ("z:int8:token@99", "a percentile from 50 to 100 is of static ranges"),
    ("z:int8:static@x", "a percentile from 50 to 100"), ("z:fp8:token:fp8", "the weights are"),
    ("z:fp8:token,z:fp8:token", "expected: different ones"),
])
def test_rows_that_are_none_are_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        settings(rows=text)


def test_rows_say_sites_and_formats():
    one, two = parse("linear+softmax:int4:static@99.9:int8, resid_post:fp8:token")
    assert one == Row("linear+softmax", "int4", "static", 99.9, 8)
    assert (one.bits, two.bits, one.range) == (4, 8, "percentile:99.9")
    assert [r.spec for r in (one, two)] == ["linear+softmax:int4:static@99.9:int8",
                                            "resid_post:fp8:token"]
    names = lambda row, layer: {s for s, here in zip(SITES, row.places(3)[layer], strict=True)
                                if here}
    assert names(one, 0) == {"attn_in", "z", "mlp_in", "mlp_hidden", "weights"}
    # The stream enters once; after that it is what the block before has left.
    residual = Row("residual", "int8")
    assert names(residual, 0) - names(residual, 1) == {"resid_pre"}


@pytest.mark.parametrize(("changes", "says"), [
    ({"keep": "some"}, "keep is 'some'"), ({"variants": "folded"}, "`original` among them"),
    ({"variants": "original,best"}, "variants"), ({"sensitivity": "weigh"}, "sensitivity"),
    ({"smooth": 1.5}, "smooth"),
])
def test_settings_that_mean_nothing_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        settings(**changes)
